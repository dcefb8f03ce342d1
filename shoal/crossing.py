"""What taking part in an exchange costs a board: its processor's time, beside the way over the wire.

A board hands out its part of a collective and takes in what others hand it.  Each of both has a price of its
own (steps in Python, waking a thread), one for each message, one for each byte that the kernel copies, and
one for coding.  Boards measure these figures of themselves, see `records.ExchangeCosts`; what they have not
measured (codes of product quantisation) is reckoned in copies of memory, each as long as decoding f32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.codec import Codec
from shoal.records import ExchangeCosts
from shoal.search import by_grid

COPY_BYTES_PER_S: Final = 2.5e9
"""Memory copied by one thread of a Raspberry Pi 4 (sbc-bench: 2.3 to 2.8 GB/s)."""
_COPY_S: Final = 1 / COPY_BYTES_PER_S
USUAL: Final = ExchangeCosts(
    step_s=2e-4,
    message_s=3e-4,
    byte_s=0.0,
    encode_s={"f32": 0.0, "f16": 2 * _COPY_S, "i8": 4 * _COPY_S, "i4": 8 * _COPY_S},
    decode_s={"f32": _COPY_S, "f16": _COPY_S, "i8": _COPY_S, "i4": 3 * _COPY_S},
)
"""About those of a Raspberry Pi 4 (benchmarks/coding.py, benchmarks/collective.py); for boards of which
nothing is known."""
VQ_COPIES: Final = 8.0
"""Passes over the floats to encode them as codes, beside the search ..."""
CODE_COPIES: Final = 0.07
"""... for each code that a piece is compared with ..."""
SCORE_COPIES: Final = 1.8
"""... and, of a piece of one value, so many more to find the nearest; of a wider one in proportion less."""
GRID_COPIES: Final = 3.0
"""In place of both, where codes are looked up in a grid."""
VQ_BACK: Final = 2.0
"""Passes to decode codes, in each stage ..."""
UNPACK_COPIES: Final = 5.0
"""... and so many more if codes do not fill bytes or half bytes."""


def give_s(
    costs: ExchangeCosts,
    codec: Codec,
    *,
    messages: int,
    float_bytes: float,
    size_bytes: float,
    first: bool = True,
) -> float:
    """Return the seconds to hand out as many messages of `size_bytes`, made of so many bytes of floats.

    One message of the first chunk is free: its share is in the round trip of the link already.
    """
    sent_s = (messages - first) * costs.message_s + messages * size_bytes * costs.byte_s
    return costs.step_s + sent_s + encode_s(costs, codec, float_bytes, size_bytes)


def take_s(
    costs: ExchangeCosts, codec: Codec, *, messages: int, float_bytes: float, size_bytes: float
) -> float:
    """Return the seconds to take in messages of `size_bytes` together, made of so many bytes of floats."""
    came_s = (messages - 1) * costs.message_s + size_bytes * costs.byte_s
    return costs.step_s + came_s + decode_s(costs, codec, float_bytes)


def encode_s(costs: ExchangeCosts, codec: Codec, float_bytes: float, size_bytes: float) -> float:
    """Return the seconds to make `size_bytes` for the wire of so many bytes of floats.

    Means are made in one pass.
    """
    copy_s = costs.decode_s["f32"]
    averaged, rows = (float_bytes if codec.rate > 1 else 0.0), float_bytes / codec.rate
    if codec.number != "vq":
        return averaged * copy_s + rows * costs.encode_s[codec.number]
    copies = VQ_COPIES
    if size_bytes:
        width = rows / 4 / (8 * size_bytes / codec.code_bits) * codec.stages
        compared = CODE_COPIES + SCORE_COPIES / width
        copies += GRID_COPIES if by_grid(codec, round(width)) else codec.codes * codec.stages * compared
    return (averaged + rows * copies) * copy_s


def decode_s(costs: ExchangeCosts, codec: Codec, float_bytes: float) -> float:
    """Return the seconds to put what came where it is read; it was made of so many bytes of floats."""
    rows = float_bytes / codec.rate
    if codec.number != "vq":
        return rows * costs.decode_s[codec.number]
    copies = VQ_BACK * codec.stages
    if codec.code_bits not in (4, 8):
        copies += UNPACK_COPIES * codec.stages
    return rows * copies * costs.decode_s["f32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """What a board did in a gather or reduce: it handed out its part, or took in what came."""

    given: bool
    codec: Codec
    messages: int
    float_bytes: int
    """Of all that was taken in, or of the part that was handed out."""
    size_bytes: int
    """On the wire: of all messages that came, or of one that was handed out."""

    def seconds(self, costs: ExchangeCosts) -> float:
        """Return what it should take the thread that computes; taking messages in is the work of others."""
        if self.given:
            return give_s(
                costs,
                self.codec,
                messages=self.messages,
                float_bytes=self.float_bytes,
                size_bytes=self.size_bytes,
            )
        return costs.step_s + decode_s(costs, self.codec, self.float_bytes)


WILD: Final = 0.1
"""The wildest tenth of readings does not count: the board did something else meanwhile."""
MOST_OFF: Final = 8.0
"""A board is not taken to be further from what it measured of itself, whatever exchanges in service say."""


def factor_of(readings: Sequence[tuple[float, float]]) -> float:
    """Return how many times as long exchanges take as they should, of pairs (should, took) in seconds.

    >>> factor_of([(1.0, 1.5)] * 9 + [(1.0, 90.0)])
    1.5
    """
    tame = sorted(readings, key=lambda each: each[1] / each[0])[: math.ceil((1 - WILD) * len(readings))]
    found = sum(took for _, took in tame) / sum(should for should, _ in tame)
    return min(MOST_OFF, max(1 / MOST_OFF, found))
