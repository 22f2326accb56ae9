"""From nested tables, of a file or of what came from the network, to a job.

Invariant: every key is known and every value has the type of its field; names of older job files become those of today.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from p2ptrain.config import Job
from p2ptrain.errors import JobError
from p2ptrain.modes.registry import MODES

MAX_BITS = 1000
"""Of a whole number: a ``float`` holds it, and Python writes it."""


def job_of(raw: Mapping[str, Any], where: str) -> Job:
    """Refuses unknown keys and wrong types: ``JobError`` naming the key. Whether its values make sense is not asked."""
    raw = _renamed(raw, where)
    mode = raw.get("mode", Job().mode)
    if not isinstance(mode, str) or mode not in MODES:
        raise JobError(f"{where}: mode: {mode!r} is not one of {', '.join(MODES)}")
    kinds = {each.config.TABLE: each.config for each in MODES.values()}
    own = {each.name for each in dataclasses.fields(Job)} - {"tables"}
    _refuse_unknown(raw, own | kinds.keys(), where, "")
    job: Job = _build(Job, {key: value for key, value in raw.items() if key in own}, where, "")
    for title, kind in kinds.items():
        if title in raw:
            job = job.with_table(_convert(kind, raw[title], where, title))
    return job


def _renamed(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With the names of today."""
    names = {old: new for mode in MODES.values() for old, new in mode.old_names.items()}
    tables = _with_new_names(raw, names, where, "")
    mode = tables.get("mode")
    return tables | {"mode": names[mode]} if isinstance(mode, str) and mode in names else tables


def _with_new_names(raw: Mapping[str, Any], names: Mapping[str, str], where: str, prefix: str) -> dict[str, Any]:
    for old, new in names.items():
        if old in raw and new in raw:
            raise JobError(
                f"{where}: {prefix}{old}: the old name of {prefix}{new}, which is there too; keep one of them"
            )
    return {names.get(key, key): value for key, value in raw.items()}


def _refuse_unknown(raw: Iterable[str], known: Collection[str], where: str, prefix: str) -> None:
    for key in raw:
        if key not in known:
            raise JobError(f"{where}: {prefix}{key}: unknown key; known here: {', '.join(sorted(known))}")


def _build(cls: Any, raw: Mapping[str, Any], where: str, prefix: str) -> Any:
    hints = get_type_hints(cls)
    raw = _with_new_names(raw, getattr(cls, "OLD_KEYS", {}), where, prefix)
    _refuse_unknown(raw, {f.name for f in dataclasses.fields(cls)}, where, prefix)
    values = {key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in raw.items()}
    return cls(**values)


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise JobError(f"{where}: {key}: expected a table")
        return _build(hint, value, where, f"{key}.")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise JobError(f"{where}: {key}: {value!r} is not one of {', '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise JobError(f"{where}: {key}: expected a list")
        return tuple(_convert(get_args(hint)[0], v, where, f"{key}[{i}]") for i, v in enumerate(value))
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise JobError(f"{where}: {key}: too large")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise JobError(f"{where}: {key}: expected {hint.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise JobError(f"{where}: {key}: {value} is not a finite number")
    if isinstance(value, str) and len(value) > 4096:
        raise JobError(f"{where}: {key}: longer than 4096 characters")
    return value
