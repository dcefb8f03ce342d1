"""Frozen records to JSON and back, strictly: an unknown, missing or mistyped field is an error.

The types of the fields are the schema.  Known are: the plain JSON types, Literal, Enum, NewType,
`X | None`, unions of records, `tuple[X, ...]`, `Mapping[str, X]` and records of these.  Records of a
union are told apart by their fields, so no two may have the same ones.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import Literal, TypeVar, Union

from shoal.errors import WireError

T = TypeVar("T")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def to_json(record: object) -> bytes:
    """Return `record` as compact JSON; equal records give equal bytes."""
    return json.dumps(_plain(record), separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def from_json(record_type: type[T], text: bytes, where: str) -> T:
    """Return the record in `text`.  Raises WireError, which names `where` and the field."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{where}: expected JSON, got {text[:60]!r} ({error})") from error
    return build(record_type, value, where)


def build(record_type: type[T], value: Json, where: str) -> T:
    """Return `value`, as parsed from JSON or TOML, as a `record_type`; else WireError."""
    return typing.cast(T, _reader(typing.cast(Hashable, record_type))(value, where))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _plain(value: object) -> Json:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


_Reader = Callable[[Json, str], object]


@functools.cache
def _reader(kind: object) -> _Reader:
    """Return the function that checks and converts a value of type `kind`."""
    if isinstance(kind, typing.NewType):
        return _reader(kind.__supertype__)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record_reader(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _choice_reader(arguments)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _tuple_reader(arguments[0])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_reader(arguments[1])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum_reader(kind)
    if kind is type(None):
        return _plain_reader(type(None), "null")
    if kind is float:
        return _read_float
    if kind in (bool, int, str):
        return _plain_reader(typing.cast(type, kind), typing.cast(type, kind).__name__)
    raise TypeError(f"no way to read {kind!r} from JSON")


def _bad(where: str, expected: str, value: Json) -> WireError:
    try:
        got = json.dumps(value, default=str)
    except RecursionError:  # what was just deep enough to be read can be too deep to be written
        got = "a value nested too deep"
    return WireError(f"{where}: expected {expected}, got {got:.80}")


def _read_float(value: Json, where: str) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(where, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _bad(where, "a finite number", str(value)[:20])
    return number


def _plain_reader(kind: type, word: str) -> _Reader:
    def read(value: Json, where: str) -> object:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _bad(where, word, value)
        return value

    return read


def _choice_reader(choices: tuple[object, ...]) -> _Reader:
    def read(value: Json, where: str) -> object:
        if not isinstance(value, str) or value not in choices:
            raise _bad(where, f"one of {list(choices)}", value)
        return value

    return read


def _enum_reader(kind: type[Enum]) -> _Reader:
    by_value = {str(member.value): member for member in kind}

    def read(value: Json, where: str) -> object:
        if not isinstance(value, str) or value not in by_value:
            raise _bad(where, f"one of {list(by_value)}", value)
        return by_value[value]

    return read


def _tuple_reader(item: object) -> _Reader:
    def read(value: Json, where: str) -> object:
        if not isinstance(value, list):
            raise _bad(where, "a list", value)
        return tuple(_reader(item)(v, f"{where}[{i}]") for i, v in enumerate(value))

    return read


def _mapping_reader(item: object) -> _Reader:
    def read(value: Json, where: str) -> object:
        if not isinstance(value, dict):
            raise _bad(where, "an object", value)
        return {key: _reader(item)(v, f"{where}.{key}") for key, v in value.items()}

    return read


def _union_reader(kinds: tuple[object, ...]) -> _Reader:
    records = {
        frozenset(field.name for field in dataclasses.fields(kind)): kind
        for kind in kinds
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    others = [kind for kind in kinds if kind not in records.values()]
    expected = " or ".join(str(getattr(kind, "__name__", kind)) for kind in kinds)

    def read(value: Json, where: str) -> object:
        if isinstance(value, dict) and frozenset(value) in records:
            return _reader(records[frozenset(value)])(value, where)
        for kind in others:
            try:
                return _reader(kind)(value, where)
            except WireError:
                continue
        raise _bad(where, expected, value)

    return read


def _record_reader(kind: type) -> _Reader:
    hints = typing.get_type_hints(kind)
    names = tuple(field.name for field in dataclasses.fields(kind))

    def read(value: Json, where: str) -> object:
        if not isinstance(value, dict):
            raise _bad(where, f"an object ({kind.__name__})", value)
        extra, missing = value.keys() - set(names), set(names) - value.keys()
        if extra:
            raise WireError(f"{where}: expected the fields of {kind.__name__}, got also {sorted(extra)}")
        if missing:
            raise WireError(f"{where}: expected the fields of {kind.__name__}, got no {sorted(missing)}")
        fields = {name: _reader(hints[name])(value[name], f"{where}.{name}") for name in names}
        try:
            return kind(**fields)
        except ValueError as error:
            raise WireError(f"{where}: {error}") from error

    return read
