"""The devices of a night, and what befalls them: each hardship with the journal line that must tell of it.

Invariant: every process and terminal that ``Night`` started is ended by its ``stop``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lab.network import Network
from p2ptrain.experiment.processes import end, stop, with_children
from p2ptrain.net.keys import Group

DATA, NAMES = "digits", ("desktop", "laptop", "board")
IN_TERMINAL = ("board",)
"""These print to a terminal, the others into a file."""
TAKE_S = 0.2
PATIENCE_S = 240.0
"""For a device that leaves, for a journal's line, and until all train again."""
LATE_S = 30.0
"""For a line that may come only when a hardship is over, as where the disk was full to the last byte."""


@dataclass(frozen=True, slots=True)
class Hardship:
    """``begin`` and ``end``: what is done; ``told``: kinds of journal lines of which one must follow on ``by``."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]
    by: tuple[str, ...]
    told: tuple[str, ...]


class Terminal:
    """What a device prints is kept in its log, until the terminal is closed; then nobody reads it."""

    def __init__(self, fd: int, log: Path) -> None:
        self._fd = fd
        self._log = log
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while not self._is_over.is_set():
                ready, _, _ = select.select([self._fd], [], [], 0.2)
                try:
                    log.write(os.read(self._fd, 1 << 16) if ready else b"")
                except OSError:  # nobody prints there any more
                    break
        os.close(self._fd)


@dataclass(slots=True)
class Night:
    """The devices, and what can happen to them."""

    folder: Path
    network: Network
    code: Group
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    terminals: dict[str, Terminal] = field(default_factory=dict)
    _num_moves: int = 0
    _has_room: threading.Event = field(default_factory=threading.Event)
    _taker: threading.Thread | None = None

    def start(self, name: str) -> None:
        number = NAMES.index(name) + 1
        command = [sys.executable, "-m", "p2ptrain.cli.main", "peer", "--name", name, "--data", DATA]
        command += ["--shard", f"{number}/{len(NAMES)}", "--state", str(self.folder / name), "--threads", "1"]
        command += ["--no-model", "--device", "cpu"]
        if number == 1:
            command += ["--job", str(self.folder / "job.toml")]
        environment = os.environ | {"P2PTRAIN_CODE": str(self.code), "PYTHONUNBUFFERED": "1"}
        log = self.folder / f"{name}.log"
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.network.inside(name))
            if name in IN_TERMINAL:
                self.close_terminal(name)
                ours, output = os.openpty()
                stack.callback(os.close, output)
                self.terminals[name] = Terminal(ours, log)
            else:
                output = stack.enter_context(log.open("ab")).fileno()
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def close_terminal(self, name: str) -> None:
        if (terminal := self.terminals.pop(name, None)) is not None:
            terminal.close()

    def stop(self) -> None:
        stop(self.processes.values())
        self._stop_taking()
        for name in list(self.terminals):
            self.close_terminal(name)

    def move(self, name: str) -> None:
        """Its link gets another address."""
        self._num_moves += 1
        self.network.move(name, f"10.77.0.{100 + self._num_moves % 100}")

    def signal(self, name: str, number: signal.Signals, *, trainer_only: bool = False) -> None:
        for process in with_children(self.processes[name].pid)[1 if trainer_only else 0 :]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def leave(self, name: str) -> None:
        self.processes[name].terminate()
        self.processes[name].wait(PATIENCE_S)

    def fill(self, name: str) -> None:
        """The disk is full, and whatever is freed there is taken at once, until ``empty``."""
        self._has_room.clear()
        self._taker = threading.Thread(target=self._take_room, args=(self.folder / name / "ballast",), daemon=True)
        self._taker.start()

    def _take_room(self, ballast: Path) -> None:
        while not self._has_room.wait(TAKE_S):
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while file.write(bytes(1 << 12)):
                    pass

    def _stop_taking(self) -> None:
        self._has_room.set()
        if self._taker is not None:
            self._taker.join()

    def empty(self, name: str) -> None:
        self._stop_taking()
        (self.folder / name / "ballast").unlink(missing_ok=True)

    def journal(self, name: str) -> list[dict[str, Any]]:
        lines = []
        for path in sorted((self.folder / name).glob("journal*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def hardships(self) -> list[Hardship]:
        others = ("failed", "link-closed", "suspected")

        def nothing() -> None:
            return

        return [
            Hardship(
                "the board sleeps",
                lambda: self.signal("board", signal.SIGSTOP),
                lambda: self.signal("board", signal.SIGCONT),
                ("desktop", "laptop"),
                others,
            ),
            Hardship(
                "the desktop's trainer is killed",
                lambda: self.signal("desktop", signal.SIGKILL, trainer_only=True),
                nothing,
                ("desktop",),
                ("trainer-failed",),
            ),
            Hardship(
                "the board's trainer hangs",
                lambda: self.signal("board", signal.SIGSTOP, trainer_only=True),
                nothing,
                ("board",),
                ("trainer-hangs",),
            ),
            Hardship(
                "the board's terminal is closed",
                lambda: self.close_terminal("board"),
                nothing,
                ("board",),
                ("output-lost",),
            ),
            Hardship(
                "the laptop gets another address",
                lambda: self.move("laptop"),
                nothing,
                ("laptop",),
                ("addresses",),
            ),
            Hardship(
                "the laptop's link is cut",
                lambda: self.network.cut((("desktop", "board"), ("laptop",))),
                self.network.heal,
                ("laptop",),
                others,
            ),
            Hardship(
                "the laptop's disk is full",
                lambda: self.fill("laptop"),
                lambda: self.empty("laptop"),
                ("laptop",),
                ("storage-full", "storage-works"),  # its journal is on that disk, too: the first may have no room
            ),
            Hardship(
                "the board leaves, and comes back",
                lambda: self.leave("board"),
                lambda: self.start("board"),
                ("desktop", "laptop"),
                ("left",),
            ),
            Hardship(
                "the desktop's power fails",
                lambda: end(self.processes["desktop"]),
                lambda: self.start("desktop"),
                ("laptop", "board"),
                others,
            ),
        ]
