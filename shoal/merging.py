"""Attention to rows that come in parts, put together exactly: online softmax (arXiv 1805.02867).  Pure."""

from dataclasses import dataclass

import numpy as np

from shoal.records import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a board's rows make of some of the rows that they attend to."""

    mixed: Array
    """[..., rows, width], by weights that add up to 1 in this part."""
    log_sum: Array
    """[..., rows, 1]: the logarithm of the sum of the exponentials of a row's scores in it."""


def merged(old: Part, new: Part) -> Part:
    """Return attention to the rows of both parts; `new` is spoilt, for what it mixed is written over.

    In both together a row's weights in a part are what they were times the share of the part in the sum.
    """
    short = np.subtract(old.log_sum, new.log_sum)
    share = np.exp(np.negative(np.logaddexp(0, short)))  # 1 / (1 + exp(short)), for any difference
    mixed = new.mixed
    np.subtract(mixed, old.mixed, out=mixed)
    np.multiply(mixed, share, out=mixed)
    np.add(mixed, old.mixed, out=mixed)
    return Part(mixed=mixed, log_sum=np.logaddexp(old.log_sum, new.log_sum))
