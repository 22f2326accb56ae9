"""``peer --log-file``: what a peer prints, in a file that never grows beyond a bound.

Invariant: a disk that is full or hangs holds up nobody: a thread writes, and what it can't write is lost.
"""

from __future__ import annotations

import contextlib
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.runtime.outlet import Outlet

MAX_BYTES = 1 << 20
KEPT = 4
"""Older files beside it: ``FILE.1`` is the newest of them."""


class LogFile:
    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """Raises ``UserError`` for a place that can't be written to."""
        try:
            self._handler = _Handler(path, maxBytes=max_bytes, backupCount=KEPT, encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"--log-file {path}: can't be written ({error.strerror or error}); name another") from None
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        self._outlet = Outlet("log file")

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._outlet.lost

    def write(self, line: str) -> None:
        """A line as it is printed."""
        record = logging.LogRecord("p2ptrain", logging.INFO, "", 0, line.rstrip("\n"), None, None)
        self._outlet.put(lambda: self._handler.emit(record))

    def close(self) -> None:
        if self._outlet.close():
            with contextlib.suppress(OSError):  # what it could not write is counted
                self._handler.close()


class _Handler(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """The thread counts what is lost."""
        raise
