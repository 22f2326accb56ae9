"""Repaints a status snapshot: with ``rich`` where it is installed, else plainly; one view after another where nothing
can be repainted, as in a file, a pipe or a terminal that only writes on.

Invariant: a screen is given text or a snapshot and never asks for one; closing it leaves the terminal as it was.
"""

from __future__ import annotations

import os
import sys
from typing import IO, Any, Protocol

from p2ptrain.ui import status_table
from p2ptrain.ui.status_table import Snapshot

HOME_AND_CLEAR = "\x1b[H\x1b[2J"
HINT = "Ctrl-C ends the view; the group goes on without it"
WIDE = 120
LEFT_OUT = ("device", "step", "sent")
"""Columns that a terminal narrower than ``WIDE`` does without."""
COLOURS = {"training": "green", "done": "cyan", "failed": "red", "lost": "red", "left": "dim", "waiting": "yellow"}


class Screen(Protocol):
    def show(self, snapshot: Snapshot | None, words: str = "") -> None:
        """The group as it is now; or, without one, ``words``."""
        ...

    def close(self) -> None: ...


class PlainScreen:
    """Repaints a terminal; where that can't be done it writes only what changed, one view after another."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._repaint = can_repaint(out)
        self._last = ""

    def show(self, snapshot: Snapshot | None, words: str = "") -> None:
        text = status_table.render(snapshot) if snapshot is not None else words
        if text == self._last:
            return
        self._last = text
        self._out.write(f"{HOME_AND_CLEAR}{text}\n\n{HINT}\n" if self._repaint else f"{text}\n\n")
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


class RichScreen:
    """The same table, in colour, without flicker."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def show(self, snapshot: Snapshot | None, words: str = "") -> None:
        width = self._live.console.width
        self._live.update(_rich_view(snapshot, width) if snapshot is not None else words, refresh=True)

    def close(self) -> None:
        self._live.stop()


def _rich_view(snapshot: Snapshot, width: int) -> Any:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    shown = [i for i, title in enumerate(status_table.TITLES) if width >= WIDE or title not in LEFT_OUT]
    for index in shown:
        title = status_table.TITLES[index]
        table.add_column(title, justify="right" if index in status_table.RIGHT else "left", no_wrap=title != "part")
    records, others = status_table.rows_of(snapshot)
    remarks = [others] if others else []
    for record in records:
        cells = [Text(cell) for cell in status_table.row(snapshot, record)]
        cells[2].stylize(COLOURS.get(cells[2].plain, ""))
        table.add_row(*(cells[index] for index in shown))
        remarks += [f"{cells[0].plain}: {note}" for note in status_table.notes(snapshot, record)]
    below = Text("\n".join([*remarks, "", HINT]), style="dim")
    return Group(Text(status_table.headline(snapshot)), table, below)


def can_repaint(out: IO[str]) -> bool:
    """Whether it is a terminal that takes its cursor back. One of the kind ``dumb`` shows the codes for it as text."""
    return out.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def open_screen(*, plain: bool = False) -> Screen:
    """The best screen that standard output allows."""
    if plain or not can_repaint(sys.stdout):
        return PlainScreen(sys.stdout)
    try:
        return RichScreen()
    except ImportError:
        return PlainScreen(sys.stdout)
