"""Which codecs may be used where the operator accepts so much error.

Until a bundle is calibrated the error is that of the numbers that cross the wire, against the largest of
their row; the answer's may be larger or smaller.
"""

from collections.abc import Mapping
from typing import Final

from shoal.codec import Codec, Number

BOUNDS: Final[Mapping[Number, float]] = {"f32": 0.0, "f16": 2.0**-11, "i8": 1 / 254}
"""Half a step: of the 11 bits of a float16's fraction (IEEE 754), and of the 127 on either side of zero."""


def allowed(max_error: float) -> tuple[Codec, ...]:
    """Return the codecs whose error is `max_error` at most, a share of the largest number.

    >>> [str(codec) for codec in allowed(0.001)]
    ['f32', 'f16']
    """
    return tuple(Codec(number=number) for number, bound in BOUNDS.items() if bound <= max_error)
