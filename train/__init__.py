"""Fine-tunes a model for what its boards hand one another: the only folder that knows torch, besides one module."""
