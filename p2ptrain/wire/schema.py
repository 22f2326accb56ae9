"""Dataclasses to plain maps and back, checked against their type hints and bounds.

Invariant: ``from_plain`` either returns an instance in which every value has the declared type and lies within the
declared bounds, or raises ``RemoteError``. Nothing that came from the network reaches a state machine unchecked.

A field's bound is written into its type: ``Annotated[int, Bound(0, 10)]`` limits the value of a number, the length of
a string, of bytes or of a tuple. Without one the defaults below hold. ``X | None`` allows None besides;
``RawBytes`` is the only other union.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from p2ptrain.errors import LocalError, RemoteError

T = TypeVar("T")
RawBytes = bytes | memoryview
"""Bytes that need not be copied: they may be a view of where they lie, of single unsigned bytes."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Inclusive limits of a number's value, or of a string's, bytes' or tuple's length."""

    low: float
    high: float


_DEFAULTS: dict[type, Bound] = {
    int: Bound(0, 2**63 - 1),
    float: Bound(-1e300, 1e300),
    str: Bound(0, 256),
    bytes: Bound(0, 4096),
    tuple: Bound(0, 1024),
}


_AS_THEY_ARE = frozenset({NoneType, bool, int, float, str, bytes, memoryview})


def to_plain(value: Any) -> Any:
    """Maps, lists and scalars that msgpack carries; tuples become lists, nested dataclasses maps."""
    kind: Any = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, int | float | str | bytes):  # a kind of its own, as numpy's numbers are
        return value
    return {name: to_plain(getattr(value, name)) for name in _names(kind)}


@cache
def _names(cls: Any) -> tuple[str, ...]:
    if not dataclasses.is_dataclass(cls):
        raise LocalError(f"{cls.__name__} can't go on the wire")
    return tuple(field.name for field in dataclasses.fields(cls))


def from_plain(cls: type[T], plain: object, where: str = "") -> T:
    """Build ``cls`` from a map with exactly its fields. Raises ``RemoteError`` naming the field."""
    if not isinstance(plain, Mapping):
        raise RemoteError("schema", f"{where or cls.__name__}: not a map")
    fields = _fields(cls)  # type: ignore[arg-type]
    if plain.keys() != fields.keys():
        odd = sorted(str(key)[:64] for key in set(plain) ^ set(fields))
        raise RemoteError("schema", f"{where or cls.__name__}: unknown or missing fields {odd[:8]}")
    return cls(**{name: check(plain[name], named) for name, (check, named) in fields.items()})


def field_from_plain(cls: Any, name: str, plain: object) -> Any:
    """The value of one field. Raises ``RemoteError``."""
    check, named = _fields(cls)[name]
    return check(plain, named)


# --- a type hint becomes a function, once: reading hints takes longer than checking values ----------------------------

Check = Callable[[Any, str], Any]
"""The value as its type wants it; raises ``RemoteError``, naming what the second argument says."""


@cache
def _fields(cls: Any) -> dict[str, tuple[Check, str]]:
    """By name, and what an error calls it."""
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: (_check_of(hints[each.name]), f"{cls.__name__}.{each.name}") for each in dataclasses.fields(cls)}


@cache
def _check_of(hint: Any) -> Check:
    bound: Bound | None = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
    if hint == RawBytes:
        return partial(_check_raw, bound or _DEFAULTS[bytes])
    if get_origin(hint) in (UnionType, Union):
        check = _check_of(_some(hint))
        return lambda value, where: None if value is None else check(value, where)
    if hasattr(hint, "__supertype__"):  # NewType
        hint = hint.__supertype__
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return partial(from_plain, hint)
    if get_origin(hint) is Literal:
        words = frozenset(each for each in get_args(hint) if type(each) is str)
        refuses = partial(_check_literal, get_args(hint))
        return lambda value, where: value if type(value) is str and value in words else refuses(value, where)
    if get_origin(hint) is tuple:
        items, any_number = get_args(hint), get_args(hint)[1:] == (Ellipsis,)
        if any_number:
            return partial(_check_list, _check_of(items[0]), bound or _DEFAULTS[tuple])
        return partial(_check_items, tuple(map(_check_of, items)))
    return _scalar_check(hint, None if hint is bool else bound or _DEFAULTS[hint])


def _some(optional: Any) -> Any:
    """``X`` of ``X | None``."""
    kinds = [kind for kind in get_args(optional) if kind is not NoneType]
    if len(kinds) != 1:
        raise LocalError(f"{optional}: a field is of one type, or of that or None")
    return kinds[0]


def _scalar_check(kind: Any, bound: Bound | None) -> Check:
    """What is as it should be passes at once: most of what a message costs are its scalars."""
    if bound is None:
        return partial(_check_scalar, kind, None)
    low, high = bound.low, bound.high

    def number(value: Any, where: str) -> Any:
        return value if type(value) is kind and low <= value <= high else _check_scalar(kind, bound, value, where)

    def sized(value: Any, where: str) -> Any:
        return value if type(value) is kind and low <= len(value) <= high else _check_scalar(kind, bound, value, where)

    return number if kind is int or kind is float else sized


def _check_scalar(kind: Any, bound: Bound | None, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise RemoteError("schema", f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    if bound is None:
        return value
    measure: float = value if kind is int or kind is float else len(value)
    if not bound.low <= measure <= bound.high:  # NaN is not, either
        problem = f"{measure} is outside {bound.low:g}..{bound.high:g}" if math.isfinite(measure) else "not finite"
        raise RemoteError("schema", f"{where}: {problem}")
    return value


def _check_raw(bound: Bound, value: Any, where: str) -> Any:
    """Bytes, wherever they lie."""
    if type(value) is memoryview and value.format == "B" and bound.low <= len(value) <= bound.high:
        return value
    return _check_scalar(bytes, bound, value, where)


def _check_literal(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if not any(value == each and type(value) is type(each) for each in allowed):
        raise RemoteError("schema", f"{where}: {value!r:.64} is not allowed")
    return value


def _check_list(check: Check, bound: Bound, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RemoteError("schema", f"{where}: expected a list")
    if not bound.low <= len(value) <= bound.high:
        raise RemoteError("schema", f"{where}: {len(value)} items, allowed {bound.low:g}..{bound.high:g}")
    try:
        return tuple([check(item, where) for item in value])
    except RemoteError:  # to name all items takes longer than to check them
        return tuple([check(item, f"{where}[{i}]") for i, item in enumerate(value)])


def _check_items(checks: tuple[Check, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RemoteError("schema", f"{where}: expected a list")
    if len(value) != len(checks):
        raise RemoteError("schema", f"{where}: expected {len(checks)} items, got {len(value)}")
    return tuple([check(item, f"{where}[{i}]") for i, (check, item) in enumerate(zip(checks, value, strict=True))])
