"""The small records that all parts share: tensors, blobs, addresses, measurements, profiles."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NewType, TypeVar

import numpy as np

BoardId = NewType("BoardId", str)
Sha256 = NewType("Sha256", str)

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
"""A tensor in memory, of any shape and type."""

Dim = int | str
"""A fixed size, or the name of a size that a request chooses."""

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
}
"""Bytes of one element, by numpy name; these are the types that may cross the wire."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = "[0-9A-Za-z_-]{1,63}"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[0-9A-Za-z]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name a board, a cluster or a model, else raise ValueError.

    Names become MQTT topic levels and file names, so they hold letters, digits, `.`, `_`, `-` only.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what}: expected 1 to 64 letters, digits, '.', '_' or '-', starting with a letter "
            f"or digit, got {name!r}"
        )
    return name


def check_sha256(what: str, digest: str) -> Sha256:
    """Return `digest` if it is 64 lower-case hex digits, else raise ValueError."""
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"{what}: expected 64 lower-case hex digits, got {digest!r:.80}")
    return Sha256(digest)


def check_positive(what: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what}: expected a finite number above 0, got {value!r}")


def check_not_negative(what: str, value: int) -> None:
    """Raise ValueError unless `value` is 0 or more."""
    if value < 0:
        raise ValueError(f"{what}: expected 0 or more, got {value}")


LEAST_S = 1e-9
LONGEST_S = 1e6
"""Times outside these are no measurements."""
MOST_BYTES = 1 << 60
"""No board has so much memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, element type (numpy's word) and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(
                f"tensor {self.name}: expected a type of {sorted(ITEM_BYTES)}, got {self.dtype!r}"
            )
        for dim in self.shape:
            if isinstance(dim, int) and dim < 0:
                raise ValueError(f"tensor {self.name}: expected sizes of 0 or more, got {dim}")

    def size_bytes(self, sizes: Mapping[str, int]) -> int:
        """Return the tensor's bytes when named dimensions have `sizes`; KeyError if one lacks."""
        count = 1
        for dim in self.shape:
            count *= dim if isinstance(dim, int) else sizes[dim]
        return count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes named by their SHA-256."""

    sha256: Sha256
    size_bytes: int

    def __post_init__(self) -> None:
        check_sha256("blob", self.sha256)
        check_not_negative(f"blob {self.sha256} size_bytes", self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a board listens: tensors on `data_port`, requests on `http_port`."""

    host: str
    data_port: int
    http_port: int

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError(f"address: expected a host name or an IP address, got {self.host!r:.80}")
        for port in (self.data_port, self.http_port):
            if not 0 < port < 65536:
                raise ValueError(f"address {self.host}: expected ports 1 to 65535, got {port}")

    @property
    def http_url(self) -> str:
        """Return the base URL of the board's HTTP server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.http_port}"


class Source(str, Enum):
    """Where a number comes from."""

    MEASURED = "measured"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one run of a segment takes on a board, at the bundle's sample sizes."""

    median_s: float
    spread_s: float
    """Median absolute deviation of the runs, in seconds."""
    runs: int

    def __post_init__(self) -> None:
        check_positive("timing median_s", self.median_s)
        if not LEAST_S <= self.median_s <= LONGEST_S:
            raise ValueError(f"timing: expected {LEAST_S} to {LONGEST_S} s, got {self.median_s}")
        if not (math.isfinite(self.spread_s) and self.spread_s >= 0 and self.runs >= 1):
            raise ValueError(f"timing: expected spread_s >= 0 and runs >= 1, got {self!r}")

    def scaled(self, factor: float) -> "Timing":
        """Return the timing on a board on which all takes `factor` times as long."""
        return replace(self, median_s=self.median_s * factor, spread_s=self.spread_s * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The time of a segment by its counts.

    `base_s + row_s * rows + pair_s * rows * attended + column_s * attended * batch`: the last is what a
    board computes of the tokens of others, where it gathers them before their keys and values are made.

    Rows are tokens times batch; attended is the number of tokens that each row attends to.  Of a segment of
    which boards hold a part of the units, rows are units held times batch, and attended is 1: the last term
    is then what is not shared out.
    """

    base_s: float
    row_s: float
    pair_s: float
    column_s: float
    residual: float
    """Largest share by which a reading differs from the law."""
    points: int
    """Pairs of counts that were timed."""

    def __post_init__(self) -> None:
        terms = (self.base_s, self.row_s, self.pair_s, self.column_s)
        if not all(0 <= term <= LONGEST_S for term in terms) or not any(terms):
            raise ValueError(f"law: expected terms of 0 to {LONGEST_S} s, one above 0, got {self!r}")
        if not (math.isfinite(self.residual) and self.residual >= 0 and self.points >= 1):
            raise ValueError(f"law: expected residual of 0 or more and points >= 1, got {self!r}")

    def seconds(self, rows: int, attended: int, batch: int = 1) -> float:
        """Return the time for these counts; `batch` is a factor of `rows` already."""
        return self.base_s + (self.row_s + self.pair_s * attended) * rows + self.column_s * attended * batch

    def scaled(self, factor: float) -> "Law":
        """Return the law on a board on which all takes `factor` times as long."""
        terms = {name: getattr(self, name) * factor for name in ("base_s", "row_s", "pair_s", "column_s")}
        return replace(self, **terms)


_Scalable = TypeVar("_Scalable", Timing, Law)


def scaled(found: Mapping[str, _Scalable], factor: float) -> dict[str, _Scalable]:
    """Return timings or laws on a board on which all takes `factor` times as long."""
    return {name: each.scaled(factor) for name, each in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """What one board measured towards a peer."""

    rtt_s: float
    """Least time of a small message there and back, software included."""
    goodput_bytes_per_s: float
    rtt_p95_s: float | None = None
    """Time within which 95 of 100 small messages are there and back; None: not known."""
    dozing: bool = False
    """Wi-Fi on the way saves power: what comes after a pause waits for a beacon, some 50 ms more."""
    shared: bool | None = None
    """Both ways share one medium, with all other such links of these boards: the air of a Wi-Fi cell; False:
    each way has its own, as on a switch; None: not known."""

    def __post_init__(self) -> None:
        if not LEAST_S <= self.rtt_s <= LONGEST_S:
            raise ValueError(f"link: expected a round trip of {LEAST_S} to {LONGEST_S} s, got {self.rtt_s}")
        if not 1.0 <= self.goodput_bytes_per_s <= 1e13:
            raise ValueError(f"link: expected 1 to 1e13 bytes/s, got {self.goodput_bytes_per_s}")
        if self.rtt_p95_s is not None and not 0 <= self.rtt_p95_s <= LONGEST_S:
            raise ValueError(f"link: expected rtt_p95_s of 0 to {LONGEST_S} s, got {self.rtt_p95_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeCosts:
    """What taking part in an exchange costs a board in processor time; `shoal.crossing` reckons with it."""

    step_s: float
    """To hand out its part of a collective, or to take in what came of the others, whatever that is."""
    message_s: float
    """For each message beyond the first, at either end: system calls and threads that wake."""
    byte_s: float
    """For each byte on the wire, at either end: what the kernel copies."""
    encode_s: Mapping[str, float]
    """For each byte of floats, by the numbers that they cross the wire as: f32, f16, i8 and i4 ..."""
    decode_s: Mapping[str, float]
    """... and back, to where they are read; of f32 that is a copy."""

    def __post_init__(self) -> None:
        for what, seconds in (("step_s", self.step_s), ("message_s", self.message_s)):
            if not 0 <= seconds <= LONGEST_S:
                raise ValueError(f"exchange costs: expected {what} of 0 to {LONGEST_S} s, got {seconds}")
        rates = (self.byte_s, *self.encode_s.values(), *self.decode_s.values())
        if not all(0 <= rate < 1.0 for rate in rates):
            raise ValueError(f"exchange costs: expected 0 up to 1 s for a byte, got {self!r}")
        for what, known in (("encode_s", self.encode_s), ("decode_s", self.decode_s)):
            if missing := {"f32", "f16", "i8", "i4"} - known.keys():
                raise ValueError(f"exchange costs: expected {what} of {sorted(missing)} too, got {known}")

    def scaled(self, factor: float) -> "ExchangeCosts":
        """Return the costs on a board on which all takes `factor` times as long."""
        return replace(
            self,
            step_s=self.step_s * factor,
            message_s=self.message_s * factor,
            byte_s=self.byte_s * factor,
            encode_s={number: each * factor for number, each in self.encode_s.items()},
            decode_s={number: each * factor for number, each in self.decode_s.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a board measured about itself and its links for one bundle."""

    incarnation: int
    bundle: Sha256
    segments: Mapping[str, Timing]
    """By segment name; a segment that the board cannot hold is missing."""
    laws: Mapping[str, Law]
    """By segment name, for those whose counts a request or a plan can choose."""
    links: Mapping[BoardId, LinkProfile]
    memory_bytes: int
    """What the board lets programs use for weights and activations."""
    slowdown: float
    """Service time over profiled time just now; the timings include it already."""
    staging_s: float
    """Besides those, for each byte that has to be copied to a device with memory of its own, or back; 0: the
    board has none."""
    exchanges: ExchangeCosts
    """What exchanges cost it just now."""
    source: Source

    def __post_init__(self) -> None:
        check_positive("profile slowdown", self.slowdown)
        if not 0 <= self.memory_bytes <= MOST_BYTES:
            raise ValueError(f"profile memory_bytes: expected 0 to {MOST_BYTES}, got {self.memory_bytes}")
        if not 0 <= self.staging_s < 1.0:
            raise ValueError(f"profile: expected staging_s of 0 up to 1 s a byte, got {self.staging_s!r}")
