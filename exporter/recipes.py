"""Which recipes are tried: one codec for all exchanges, and mixed ones made from what each exchange takes."""

from collections.abc import Iterable, Mapping, Sequence
from math import gcd
from typing import Final

from shoal.codec import Codec, codec_of
from shoal.errors import ConfigError

RATES: Final = (2, 4, 8, 16, 32)
"""Of means without and with fewer bytes."""
VALUES_A_CODE: Final = (4, 8, 16)
"""A row is cut into pieces of about so many values: with 256 codes 1/16, 1/32 and 1/64 of the bytes."""
CODES: Final = 256
FEW: Final = 16
NARROW: Final = (2, 4)
"""Pieces of so few values and 16 codes are 1/16 and 1/32 too, less exact and much quicker to make."""
ROWS_A_CODE: Final = 4
"""So many rows for each code there must be at least; of fewer, codes would be the rows themselves."""
MIXED: Final = 5
"""So many mixed recipes are measured as a whole."""


def standard(values: Iterable[int]) -> tuple[Codec, ...]:
    """Return the codecs that are tried unless the user names others, for rows of so many values each."""
    width = gcd(*values)
    words = ["f16", "i8", "i4", "i4-keep1.0"]
    words += [f"means{rate}{number}" for rate in RATES for number in ("", "-i8")]
    words += ["means4-i4", "means4-i8-keep1.1"]
    coded = [f"vq{pieces(width, each)}x{CODES}" for each in VALUES_A_CODE]
    words += [*coded, f"{coded[0]}-keep1.0", f"{coded[1]}x2", f"means2-{coded[0]}"]
    words += [*(f"vq{pieces(width, each)}x{FEW}" for each in NARROW), f"vq1x{CODES}"]
    return tuple(dict.fromkeys(codec_of(each) for each in words))


def pieces(width: int, values: int) -> int:
    """Return in how many equal pieces of `values` values or a bit more a row of `width` can be cut.

    >>> pieces(64, 4), pieces(390, 4)
    (16, 78)
    """
    return max(count for count in range(1, max(1, width // values) + 1) if width % count == 0)


def check_codecs(words: Iterable[str], values: Mapping[tuple[int, str], int]) -> tuple[Codec, ...]:
    """Return the codecs that the user names.  Raises ConfigError if one is none, or does not fit the rows."""
    found = []
    for each in words:
        try:
            codec = codec_of(each)
        except ValueError as error:
            raise ConfigError(f"--codec: {error}") from error
        for (_, tensor), width in values.items():
            if codec.groups and width % codec.groups:
                raise ConfigError(
                    f"--codec {each}: expected groups that divide the {width} values of {tensor}, got "
                    f"{codec.groups}"
                )
        found.append(codec)
    return tuple(dict.fromkeys(found))


def ladder(codecs: Iterable[Codec], values: Iterable[int]) -> tuple[Codec, ...]:
    """Return codecs of single rows from most to fewest bytes, each clearly smaller than the one before."""
    widths = list(values)

    def size(codec: Codec) -> int:
        return sum(codec.row_bytes(width) for width in widths)

    single = [codec for codec in codecs if codec.rate == 1 and not codec.keeps and not codec.exact]
    found: list[Codec] = []
    for codec in sorted(single, key=size, reverse=True):
        if not found or size(codec) <= 0.8 * size(found[-1]):
            found.append(codec)
    return tuple(found)


def mixed(
    errors: Mapping[tuple[int, Codec], float],
    rungs: Sequence[Codec],
    sizes: Mapping[tuple[int, Codec], float],
) -> list[tuple[Codec, ...]]:
    """Return up to MIXED recipes in which exchanges that tolerate more are compressed more.

    `errors` and `sizes` say of each exchange and codec what the answer is off if it alone is compressed so,
    and the bytes.  Greedily, the exchange goes down the ladder of `rungs` next of which a byte less costs the
    least error; recipes are taken along that way at even distances.  The errors of several exchanges add up
    about; what a recipe costs as a whole has to be measured.
    """
    exchanges = sorted({exchange for exchange, _ in errors})
    at = dict.fromkeys(exchanges, 0)
    way = []
    while movable := [exchange for exchange in exchanges if at[exchange] + 1 < len(rungs)]:

        def price(exchange: int) -> tuple[float, int]:
            now, then = rungs[at[exchange]], rungs[at[exchange] + 1]
            saved = sizes[exchange, now] - sizes[exchange, then]
            return (errors[exchange, then] - errors[exchange, now]) / saved, exchange

        at[min(movable, key=price)] += 1
        way.append(tuple(rungs[at[exchange]] for exchange in exchanges))
    truly = [recipe for recipe in way if len(set(recipe)) > 1]
    count = min(MIXED, len(truly))
    return [truly[(2 * index + 1) * len(truly) // (2 * count)] for index in range(count)]
