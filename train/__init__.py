"""A model in, the same one trained for what its boards hand one another out."""
