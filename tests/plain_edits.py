"""Changes of plain JSON by the path of a value, for what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the value at ``table.0.key``."""
    *parents, key = [int(k) if k.isdigit() else k for k in path.split(".")]

    def edit(plain: dict[str, Any]) -> None:
        target: Any = plain
        for parent in parents:
            target = target[parent]
        target[key] = value

    return edit
