"""The person at this terminal is asked whom to let into a group that lets devices in one by one.

    nobody waits --somebody asks--> the question is shown --y--> let in, the next one
                                                          --n--> not let in, the next one

Invariant: an answer counts for the one question that is shown, and nothing is read from a terminal that is not ours to
read from, as of a process in the background, which would be stopped for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import IO

from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.words import clean

MAX_WAITING = 16
"""Of those who wait to be asked about; `p2ptrain group approve` lists all."""


class AtTheDoor:
    """In a running event loop. ``let_in`` may wait for the disk; it raises ``UserError``."""

    def __init__(
        self,
        say: Callable[[str], None],
        let_in: Callable[[PeerId], object],
        keyboard: IO[str] | None = None,
    ) -> None:
        self._say = say
        self._let_in = let_in
        self._keyboard = keyboard or sys.stdin
        self._waiting: dict[PeerId, str] = {}
        self._is_listening = False
        self._answering: set[asyncio.Future[None]] = set()

    @staticmethod
    def is_possible(keyboard: IO[str] | None = None, screen: IO[str] | None = None) -> bool:
        """Whether there is a person to ask."""
        try:
            return (keyboard or sys.stdin).isatty() and (screen or sys.stdout).isatty()
        except (AttributeError, ValueError):  # there is none, or it is closed
            return False

    def asks(self, peer: PeerId, name: str, host: str) -> None:
        """That device wants to be let in."""
        if peer in self._waiting or len(self._waiting) >= MAX_WAITING:
            return
        self._waiting[peer] = f"{clean(name, 40)} ({peer}, at {clean(host, 60)})"
        if len(self._waiting) == 1:
            self._ask()

    def close(self) -> None:
        """Nobody is asked any more."""
        if self._is_listening:
            asyncio.get_running_loop().remove_reader(self._keyboard.fileno())
            self._is_listening = False

    # --- inside ---

    def _ask(self) -> None:
        if not self._is_listening:
            try:
                asyncio.get_running_loop().add_reader(self._keyboard.fileno(), self._typed)
            except (OSError, ValueError, NotImplementedError):  # a keyboard that can't be waited for
                self._waiting.clear()
                return
            self._is_listening = True
        _forget_typed(self._keyboard.fileno())
        who = next(iter(self._waiting.values()))
        self._say(f"{who} asks to be let in. Is it that device? It shows its id itself. Let it in? [y/n]")

    def _typed(self) -> None:
        if _is_in_background(self._keyboard.fileno()):
            self._stop()
            return
        line = self._keyboard.readline()
        if not line:
            self._stop()
            return
        answer = line.strip().casefold()
        if not self._waiting or not answer:
            return
        if answer not in ("y", "yes", "n", "no"):
            self._ask()
            return
        peer = next(iter(self._waiting))
        who = self._waiting.pop(peer)
        if answer.startswith("y"):
            task = asyncio.ensure_future(self._answered(peer, who))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        else:
            self._say(f"{who} stays out (`p2ptrain group approve {peer}` lets it in after all)")
        if self._waiting:
            self._ask()

    async def _answered(self, peer: PeerId, who: str) -> None:
        try:
            await asyncio.to_thread(self._let_in, peer)
        except UserError as error:
            self._say(f"{who} could not be let in: {error}")
        else:
            self._say(f"{who} is let in, as soon as it meets this device")

    def _stop(self) -> None:
        self.close()
        if self._waiting:
            self._say("nobody can be asked here now: `p2ptrain group approve` says who waits, and lets them in")
        self._waiting.clear()


def _forget_typed(descriptor: int) -> None:
    """What was typed before a question was shown is no answer to it."""
    try:
        import termios
    except ImportError:
        return
    with contextlib.suppress(OSError, termios.error):
        termios.tcflush(descriptor, termios.TCIFLUSH)


def _is_in_background(descriptor: int) -> bool:
    """Of the terminal that started this process: to read from there would stop it."""
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    except OSError:  # another terminal, or none
        return False
