"""Dataclasses to plain maps and back, checked against their type hints and bounds.

Invariant: ``from_plain`` either returns an instance in which every value has the declared type and lies within the
declared bounds, or raises ``RemoteError``. Nothing that came from the network reaches a state machine unchecked.

A field's bound is written into its type: ``Annotated[int, Bound(0, 10)]`` limits the value of a number, the length of
a string, of bytes or of a tuple. Without one the defaults below hold. ``X | None`` allows None besides; no other union.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from p2ptrain.errors import LocalError, RemoteError

T = TypeVar("T")


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


@cache
def _fields(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def to_plain(value: Any) -> Any:
    """Maps, lists and scalars that msgpack carries; tuples become lists, nested dataclasses maps."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise LocalError(f"{type(value).__name__} can't go on the wire")


def from_plain(cls: type[T], plain: object, where: str = "") -> T:
    """Build ``cls`` from a map with exactly its fields. Raises ``RemoteError`` naming the field."""
    if not isinstance(plain, Mapping):
        raise RemoteError("schema", f"{where or cls.__name__}: not a map")
    fields: dict[str, Any] = _fields(cls)  # type: ignore[arg-type]
    if plain.keys() != fields.keys():
        odd = sorted(str(key)[:64] for key in set(plain) ^ set(fields))
        raise RemoteError("schema", f"{where or cls.__name__}: unknown or missing fields {odd[:8]}")
    return cls(**{name: _check(hint, plain[name], f"{cls.__name__}.{name}") for name, hint in fields.items()})


def _check(hint: Any, value: Any, where: str) -> Any:
    bound: Bound | None = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
    if get_origin(hint) in (UnionType, Union):
        return None if value is None else _check(_some(hint), value, where)
    if hasattr(hint, "__supertype__"):  # NewType
        hint = hint.__supertype__
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint) or type(value) not in {type(arg) for arg in get_args(hint)}:
            raise RemoteError("schema", f"{where}: {value!r:.64} is not allowed")
        return value
    if get_origin(hint) is tuple:
        return _check_tuple(get_args(hint), value, bound or _DEFAULTS[tuple], where)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise RemoteError("schema", f"{where}: expected {getattr(hint, '__name__', hint)}, got {type(value).__name__}")
    if hint is bool:
        return value
    bound = bound or _DEFAULTS[hint]
    measure = value if hint in (int, float) else len(value)
    if isinstance(measure, float) and not math.isfinite(measure):
        raise RemoteError("schema", f"{where}: not a finite number")
    if not bound.low <= measure <= bound.high:
        raise RemoteError("schema", f"{where}: {measure} is outside {bound.low:g}..{bound.high:g}")
    return value


@cache
def _some(optional: Any) -> Any:
    """``X`` of ``X | None``."""
    kinds = [kind for kind in get_args(optional) if kind is not NoneType]
    if len(kinds) != 1:
        raise LocalError(f"{optional}: a field is of one type, or of that or None")
    return kinds[0]


def _check_tuple(args: tuple[Any, ...], value: Any, bound: Bound, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RemoteError("schema", f"{where}: expected a list")
    if len(args) == 2 and args[1] is Ellipsis:
        if not bound.low <= len(value) <= bound.high:
            raise RemoteError("schema", f"{where}: {len(value)} items, allowed {bound.low:g}..{bound.high:g}")
        return tuple(_check(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise RemoteError("schema", f"{where}: expected {len(args)} items, got {len(value)}")
    return tuple(_check(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
