"""What happened, as JSON lines: appended, bounded in size and by kind, and readable by a person.

Invariant: writing a line never raises and, ``aside``, never waits for the disk; a line that can't be written is counted
in ``lost``, a line after it says how many, and every line that can be read back is whole. A file that ends in half a
line (a kill, a full disk) gets a line break before the next one, and readers skip what is no line. At ``max_bytes`` the
file becomes ``journal.old.jsonl``, in place of the one before.

Of one kind at most ``MAX_OF_A_KIND`` lines are kept in ``PERIOD_S``, so that what happens all the time does not push
out what happens once. How many were left out is a line of its own, when that time is over, or at the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.outlet import Outlet

Value = str | int | float | bool | None
MAX_OF_A_KIND = 600
PERIOD_S = 60.0
LEFT_OUT = "lines-left-out"
_MAX_TEXT = 2000
_MAX_FIELDS = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One entry: seconds since 1970, what happened in a word, and its particulars."""

    time: float
    kind: str
    fields: Mapping[str, Value]


class Journal:
    """Appends to ``path``; without one it only keeps the tail in memory. ``on_line`` hears every line, kept or not.

    ``aside``: a thread does the appending, until ``close``. ``max_of_a_kind`` None: all are kept.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int = 4 << 20,
        max_of_a_kind: int | None = MAX_OF_A_KIND,
        tail_lines: int = 500,
        aside: bool = False,
        on_line: Callable[[Line], None] | None = None,
    ) -> None:
        self._path = path
        self._on_line = on_line
        self._max_bytes = max_bytes
        self._max_of_a_kind = max_of_a_kind
        self._of_kind: Counter[str] = Counter()
        """Lines since ``_since``."""
        self._since = self._last = -math.inf
        self._tail: deque[Line] = deque(maxlen=tail_lines)
        self._fd = -1
        self._size = 0
        self._torn = False
        self._lost = self._told_lost = 0
        self._outlet = Outlet("journal") if aside and path is not None else None
        if path is not None:
            if tail_lines:
                self._tail.extend(read(path))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._open()
            except OSError:
                pass  # each line tries again

    def write(self, at: float, kind: str, /, **fields: Value) -> Line:
        """Append a line, unless there were too many of its kind."""
        line = Line(at, kind, {name: _plain(value) for name, value in list(fields.items())[:_MAX_FIELDS]})
        if not 0 <= at - self._since < PERIOD_S:  # or the clock was set
            self._tell_left_out(at)
            self._since = at
        self._last = at
        self._of_kind[kind] += 1
        if self._max_of_a_kind is None or self._of_kind[kind] <= self._max_of_a_kind:
            self._keep(line)
        if self._on_line is not None:
            with contextlib.suppress(OSError, ValueError):  # whoever hears it may print it where nothing can be printed
                self._on_line(line)
        return line

    def _keep(self, line: Line) -> None:
        self._tail.append(line)
        if self._outlet is not None:
            self._outlet.put(lambda: self._append_line(line))
        elif self._path is not None:
            try:
                self._append_line(line)
            except OSError:
                self._lost += 1

    def _tell_left_out(self, at: float) -> None:
        """And count anew."""
        if self._max_of_a_kind is not None:
            for kind, lines in self._of_kind.items():
                if lines > self._max_of_a_kind:
                    self._keep(Line(at, LEFT_OUT, {"of": kind, "lines": lines - self._max_of_a_kind}))
        self._of_kind.clear()

    @property
    def lost(self) -> int:
        """Lines that are in no file, because it could not be written."""
        return self._lost + (self._outlet.lost if self._outlet else 0)

    def note(self, at: float, note: Note) -> Line:
        """Append what a state machine or the store has to say."""
        return self.write(at, note.kind, **dict(note.fields))

    def tail(self, num_lines: int | None = None) -> tuple[Line, ...]:
        """The last lines, oldest first."""
        lines = tuple(self._tail)
        return lines if num_lines is None else lines[len(lines) - min(num_lines, len(lines)) :]

    def close(self) -> None:
        self._tell_left_out(self._last)
        if self._outlet is not None:
            outlet, self._outlet = self._outlet, None
            written = outlet.close()
            self._lost += outlet.lost
            if not written:
                return  # the disk hangs: the file is the thread's for good
        self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        assert self._path is not None
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._torn = self._size > 0 and os.pread(self._fd, 1, self._size - 1) != b"\n"

    def _append_line(self, line: Line) -> None:
        self._append(encode(line))
        missing = self.lost - self._told_lost
        if missing > 0 and not self._torn:
            self._told_lost += missing
            self._append(encode(Line(line.time, "lines-lost", {"lines": missing})))

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        if self._size > 0 and self._size + len(data) > self._max_bytes:
            self._rotate()
        if self._torn:
            data = b"\n" + data
        num_bytes = os.write(self._fd, data)
        self._size += num_bytes
        self._torn = num_bytes < len(data)
        if self._torn:
            self._lost += 1

    def _rotate(self) -> None:
        assert self._path is not None
        os.replace(self._path, old_path(self._path))
        self._close_file()
        self._open()


def old_path(path: Path) -> Path:
    """Where the older half of a journal lies."""
    return path.with_name(f"{path.stem}.old{path.suffix}")


def encode(line: Line) -> bytes:
    """A line as it stands in the file."""
    plain = {
        "time": round(line.time, 3),
        "kind": line.kind,
        **{f"_{k}" if k in _OWN else k: v for k, v in line.fields.items()},
    }
    return (
        json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace") + b"\n"
    )


_OWN = ("time", "kind")


def decode(data: bytes) -> Line | None:
    """A line of the file; ``None`` if it is no whole line."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict):
        return None
    at, kind = raw.pop("time", None), raw.pop("kind", None)
    if type(at) not in (int, float) or not isinstance(kind, str):
        return None
    return Line(float(at), kind, {_as_told(name): _plain(value) for name, value in raw.items()})


def _as_told(name: str) -> str:
    """A field's name as it was before ``encode`` made it another one than the line's own."""
    return name.removeprefix("_") if name.removeprefix("_") in _OWN else name


def read(path: Path) -> Iterator[Line]:
    """All lines, oldest first, of the old file and the current one; what is no line is skipped."""
    for part in (old_path(path), path):
        try:
            with part.open("rb") as file:
                for data in file:
                    line = decode(data)
                    if line is not None:
                        yield line
        except OSError:
            continue


def render(line: Line) -> str:
    """For a person: local time, kind, particulars. No control character of anybody's text reaches the terminal."""
    fields = [f"{_shown(name)}={_shown(value)}" for name, value in line.fields.items()]
    return "  ".join([clock(line), f"{_shown(line.kind):<18}", *fields]).rstrip()


def clock(line: Line) -> str:
    """The local time of day at which it was written."""
    return time.strftime("%H:%M:%S", _written(line))


def day(line: Line) -> str:
    """The local date on which it was written."""
    return time.strftime("%Y-%m-%d", _written(line))


def _written(line: Line) -> time.struct_time:
    return time.localtime(line.time if 0 <= line.time < 2**40 else 0)


def _plain(value: object) -> Value:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)[:_MAX_TEXT]


def _shown(value: Value) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, int):
        return str(value)
    text = "".join(c if c.isprintable() else "?" for c in value)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12]  # a blob
    return f'"{text}"' if " " in text or not text else text
