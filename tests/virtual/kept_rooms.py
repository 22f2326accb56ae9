"""A room as it was at some moment, to be gone on with more than once: bringing it there may take longer than the rest.

A room is plain objects, and functions in its network's heap that see some of them; so it can be pickled, functions too.
"""

from __future__ import annotations

import importlib
import io
import pickle
import types
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_kept: dict[object, bytes] = {}
_codes: dict[str, types.CodeType] = {}


def forget() -> None:
    """Modules may change what a room is made with, for as long as they run."""
    _kept.clear()
    _codes.clear()


def again(build: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What ``build`` makes of these, which is a function of them: made once, and a copy of it each time."""
    key = (build, arguments, tuple(sorted(options.items())))
    if key not in _kept:
        file = io.BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(build(*arguments, **options))
        _kept[key] = file.getvalue()
    print(f"as made by {build.__name__}{arguments} {options}")
    copy: T = pickle.loads(_kept[key])  # noqa: S301 (own bytes)
    return copy


class _Pickler(pickle.Pickler):
    """Also functions that have no name to be found by, and what they see."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CellType):
            return _cell, ()  # filled by the functions that see it, which it may hold itself
        if isinstance(obj, types.ModuleType):
            return importlib.import_module, (obj.__name__,)
        if isinstance(obj, types.FunctionType) and "<" in obj.__qualname__:
            code = f"{obj.__module__} {obj.__qualname__} {id(obj.__code__)}"
            _codes[code] = obj.__code__
            cells = obj.__closure__ or ()
            state = [_content(cell) for cell in cells], obj.__defaults__, obj.__kwdefaults__
            return _function, (code, obj.__module__, cells), state, None, None, _fill
        return NotImplemented


def _cell() -> types.CellType:
    return types.CellType()


def _function(code: str, module: str, cells: tuple[types.CellType, ...]) -> types.FunctionType:
    return types.FunctionType(_codes[code], vars(importlib.import_module(module)), None, None, cells)


def _content(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()  # nothing was put in it yet


def _fill(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    contents, function.__defaults__, function.__kwdefaults__ = state
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            (cell.cell_contents,) = content
