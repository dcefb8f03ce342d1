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
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from operator import attrgetter
from typing import Final, Literal, TypeVar, Union

from shoal.errors import WireError

T = TypeVar("T")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MOST_KEPT: Final = 32
"""Of so many records, see `keep`, it is remembered how they are written."""


def to_json(record: object) -> bytes:
    """Return `record` as compact JSON; equal records give equal bytes."""
    return _ENCODER.encode(_plain(record)).encode()


def from_json(record_type: type[T], text: bytes, where: str) -> T:
    """Return the record in `text`.  Raises WireError, which names `where` and the field."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{where}: expected JSON, got {text[:60]!r} ({error})") from error
    return build(record_type, value, where)


def build(record_type: type[T], value: Json, where: str) -> T:
    """Return `value`, as parsed from JSON or TOML, as a `record_type`; else WireError."""
    try:
        return typing.cast(T, _reader(typing.cast(Hashable, record_type))(value))
    except _FitError as misfit:
        raise WireError(f"{where}{misfit.at}: {misfit.words}") from misfit


def keep(kind: type) -> None:
    """Have the written form of the records of `kind` remembered, for those that are written again and again.

    They must be frozen, all the way down.
    """
    _WRITERS.pop(kind, None)
    _KEPT_KINDS.add(kind)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


# --- writing: a function for each type, which returns what the json module takes ------------------

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False)
_KEPT_KINDS: Final[set[type]] = set()
_KEPT: Final[OrderedDict[int, tuple[object, Json]]] = OrderedDict()
"""Records by their identity, which is theirs alone as long as they are in here, and their plain form."""

_Writer = Callable[[object], Json]
_WRITERS: Final[dict[type, _Writer]] = {}


def _plain(value: object) -> Json:
    kind = type(value)
    if kind not in _WRITERS:
        _WRITERS[kind] = _writer(kind)
    return _WRITERS[kind](value)


def _writer(kind: type) -> _Writer:
    """Return the function that turns values of exactly this type into plain ones."""
    if issubclass(kind, Enum):
        return lambda value: _plain(typing.cast(Enum, value).value)
    if kind is type(None) or issubclass(kind, bool | int | float | str):
        return lambda value: typing.cast(Json, value)
    if issubclass(kind, tuple | list):
        return lambda value: [_plain(item) for item in typing.cast(tuple[object, ...], value)]
    if issubclass(kind, Mapping):
        return lambda value: {
            str(key): _plain(item) for key, item in typing.cast(Mapping[str, object], value).items()
        }
    if dataclasses.is_dataclass(kind):
        return _kept_writer(_record_writer(kind)) if kind in _KEPT_KINDS else _record_writer(kind)
    raise TypeError(f"cannot write a {kind.__name__} as JSON")


def _record_writer(kind: type) -> _Writer:
    getters = [(field.name, attrgetter(field.name)) for field in dataclasses.fields(kind)]
    return lambda value: {name: _plain(get(value)) for name, get in getters}


def _kept_writer(write: _Writer) -> _Writer:
    def written(value: object) -> Json:
        known = _KEPT.get(id(value))
        if known is None:
            known = _KEPT[id(value)] = (value, write(value))
            if len(_KEPT) > MOST_KEPT:
                _KEPT.popitem(last=False)
        return known[1]

    return written


# --- reading: a function for each type, which checks and converts ---------------------------------


class _FitError(Exception):
    """A value is not of its type; `at` is the way to it, made longer by each record around it."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
        self.at = ""


_Reader = Callable[[Json], object]


@functools.cache
def _reader(kind: object) -> _Reader:
    """Return the function that checks and converts a value of type `kind`, or raises _FitError."""
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
        return _tuple_reader(_reader(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_reader(_reader(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum_reader(kind)
    if kind is type(None):
        return _plain_reader(type(None), "null")
    if kind is float:
        return _read_float
    if kind in (bool, int, str):
        return _plain_reader(typing.cast(type, kind), typing.cast(type, kind).__name__)
    raise TypeError(f"no way to read {kind!r} from JSON")


def _bad(expected: str, value: Json) -> _FitError:
    try:
        got = json.dumps(value, default=str)
    except RecursionError:  # what was just deep enough to be read can be too deep to be written
        got = "a value nested too deep"
    return _FitError(f"expected {expected}, got {got:.80}")


def _read_float(value: Json) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad("a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _bad("a finite number", str(value)[:20])
    return number


def _plain_reader(kind: type, word: str) -> _Reader:
    def read(value: Json) -> object:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _bad(word, value)
        return value

    return read


def _choice_reader(choices: tuple[object, ...]) -> _Reader:
    def read(value: Json) -> object:
        if not isinstance(value, str) or value not in choices:
            raise _bad(f"one of {list(choices)}", value)
        return value

    return read


def _enum_reader(kind: type[Enum]) -> _Reader:
    by_value = {str(member.value): member for member in kind}

    def read(value: Json) -> object:
        if not isinstance(value, str) or value not in by_value:
            raise _bad(f"one of {list(by_value)}", value)
        return by_value[value]

    return read


def _tuple_reader(read_item: _Reader) -> _Reader:
    def read(value: Json) -> object:
        if not isinstance(value, list):
            raise _bad("a list", value)
        items: list[object] = []
        try:
            for item in value:
                items.append(read_item(item))  # whose number says where it went wrong
        except _FitError as misfit:
            misfit.at = f"[{len(items)}]{misfit.at}"
            raise
        return tuple(items)

    return read


def _mapping_reader(read_item: _Reader) -> _Reader:
    def read(value: Json) -> object:
        if not isinstance(value, dict):
            raise _bad("an object", value)
        items: dict[str, object] = {}
        key = ""
        try:
            for key, item in value.items():
                items[key] = read_item(item)
        except _FitError as misfit:
            misfit.at = f".{key}{misfit.at}"
            raise
        return items

    return read


def _union_reader(kinds: tuple[object, ...]) -> _Reader:
    records = {
        frozenset(field.name for field in dataclasses.fields(kind)): kind
        for kind in kinds
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    others = [kind for kind in kinds if kind not in records.values()]
    expected = " or ".join(str(getattr(kind, "__name__", kind)) for kind in kinds)

    def read(value: Json) -> object:
        if isinstance(value, dict) and frozenset(value) in records:
            return _reader(records[frozenset(value)])(value)
        for kind in others:
            try:
                return _reader(kind)(value)
            except _FitError:
                continue
        raise _bad(expected, value)

    return read


def _record_reader(kind: type) -> _Reader:
    hints = typing.get_type_hints(kind)
    names = frozenset(field.name for field in dataclasses.fields(kind))
    readers: list[tuple[str, _Reader]] = []

    def read(value: Json) -> object:
        if not isinstance(value, dict):
            raise _bad(f"an object ({kind.__name__})", value)
        if value.keys() != names:
            extra, missing = value.keys() - names, names - value.keys()
            got = f"got also {sorted(extra)}" if extra else f"got no {sorted(missing)}"
            raise _FitError(f"expected the fields of {kind.__name__}, {got}")
        if not readers:  # at the first value: a record may hold others of its kind
            readers.extend((field.name, _reader(hints[field.name])) for field in dataclasses.fields(kind))
        fields: dict[str, object] = {}
        name = ""
        try:
            for name, read_field in readers:
                fields[name] = read_field(value[name])
        except _FitError as misfit:
            misfit.at = f".{name}{misfit.at}"
            raise
        try:
            return kind(**fields)
        except ValueError as error:
            raise _FitError(str(error)) from error

    return read
