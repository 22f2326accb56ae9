"""Small JSON files of the state directory, and where damaged ones go.

Invariant: what can't be read is moved to a folder of its own, under a name that is free there; it is never deleted.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.store.disk import Disk

MAX_BYTES = 64 << 20


def json_bytes(plain: Any) -> bytes:
    """The same for the same content."""
    return json.dumps(plain, sort_keys=True, indent=1, allow_nan=False).encode()


def load_json(path: Path) -> Any:
    """``None`` if there is no such file, or no JSON in it, or more than any of these files has. Raises ``OSError``."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:  # a pipe would be waited for, without an end
            return None
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def move_aside(disk: Disk, path: Path, damaged: Path, why: str) -> Note:
    """Move a file to the folder ``damaged``; what there is to say about it."""
    damaged.mkdir(exist_ok=True, mode=0o700)
    disk.replace(path, free_name(damaged, path.name))
    return Note("storage-damaged", (("file", path.name), ("moved_to", str(damaged)), ("why", why)))


def free_name(folder: Path, name: str) -> Path:
    """A path in the folder at which nothing is yet."""
    path, number = folder / name, 1
    while path.exists():
        path, number = folder / f"{name}.{number}", number + 1
    return path
