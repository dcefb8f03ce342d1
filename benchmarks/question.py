"""What the benchmarks of a Transformer ask it."""

import numpy as np

from shoal.records import Array


def question(tokens: int) -> Array:
    """Return token ids, int64 [1, tokens]."""
    return np.random.default_rng(0).integers(0, 1000, (1, tokens))
