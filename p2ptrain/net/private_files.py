"""Files of secrets: whole or not there, and readable by their owner only.

Invariant: a file that others may read is refused, not used; one that is written replaces another at once, or not at
all, whenever the device dies.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.lasting import sync, sync_folder
from p2ptrain.words import word

MAX_BYTES = 1 << 20


def read_private(path: Path) -> str | None:
    """The text of a file that only its owner can read; None if there is none."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            raw = file.read(MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror}): check its owner, or choose another --state"
        ) from error
    if os.name == "posix" and mode & 0o077 and _keeps_modes(path.parent):
        raise UserError(
            f"{path} can be read by other users (mode {mode:04o}): run `chmod 600 {word(path)}`; "
            "if one of them may have copied it, delete it instead, to get a new one"
        )
    return raw.decode("utf-8", "replace")


def _keeps_modes(directory: Path) -> bool:
    """Whether a file here can be kept from others: on USB sticks and some network drives all files look alike."""
    probe = directory / f".mode.{secrets.token_hex(8)}"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            return os.fstat(fd).st_mode & 0o077 == 0
        finally:
            os.close(fd)
            probe.unlink(missing_ok=True)
    except OSError:  # a read-only disk, say: there is no telling
        return True


def write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write all of the file or nothing, mode 0600. Without ``replace`` an existing one stays: ``FileExistsError``."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="\n") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
        if replace:
            beside.replace(path)
        else:
            _link(beside, path)
        with contextlib.suppress(OSError):  # some disks can't
            sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): make room or choose another --state") from error
    finally:
        beside.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        source.replace(path)
