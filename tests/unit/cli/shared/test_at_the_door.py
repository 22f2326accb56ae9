"""The person at a terminal lets devices in: each answer is for the one question that is shown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest

from p2ptrain.cli.shared import at_the_door
from p2ptrain.cli.shared.at_the_door import MAX_WAITING, AtTheDoor
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId

PI, LAPTOP = PeerId("a" * 16), PeerId("b" * 16)


class Terminal:
    """One whose person types ``types``."""

    def __init__(self) -> None:
        self._person, screen = os.openpty()
        self.keyboard = os.fdopen(screen)
        self.said: list[str] = []
        self.let_in: list[PeerId] = []
        self.door = AtTheDoor(self.said.append, self._lets_in, self.keyboard)

    def _lets_in(self, peer: PeerId) -> None:
        if peer in self.let_in:
            raise UserError("nobody of that name asks")
        self.let_in.append(peer)

    def types(self, text: str) -> None:
        os.write(self._person, text.encode())

    async def until(self, words: str) -> None:
        async with asyncio.timeout(60):
            while not any(words in line for line in self.said):
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self.keyboard.close()
        os.close(self._person)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def at(terminal: Terminal, scene: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await scene()
        finally:
            terminal.door.close()

    asyncio.run(run())


def test_who_asks_is_let_in_or_stays_out(terminal: Terminal) -> None:
    async def scene() -> None:
        terminal.door.asks(PI, "pi", "10.0.0.7:5710")
        terminal.door.asks(LAPTOP, "laptop", "10.0.0.8:5710")
        assert [line.partition(" asks")[0] for line in terminal.said] == [f"pi ({PI}, at 10.0.0.7:5710)"], "one by one"
        terminal.types("n\n")
        await terminal.until("pi (aaaaaaaaaaaaaaaa, at 10.0.0.7:5710) stays out")
        await terminal.until("laptop (bbbbbbbbbbbbbbbb, at 10.0.0.8:5710) asks")
        terminal.types("Y\n")
        await terminal.until("laptop (bbbbbbbbbbbbbbbb, at 10.0.0.8:5710) is let in")
        assert terminal.let_in == [LAPTOP]
        terminal.door.asks(LAPTOP, "laptop", "10.0.0.8:5710")
        terminal.types("yes\n")
        await terminal.until("could not be let in: nobody of that name asks")

    at(terminal, scene)


def test_what_is_no_answer_lets_nobody_in(terminal: Terminal) -> None:
    async def scene() -> None:
        terminal.types("y\n")  # before anybody asked: it answers no question that is shown
        terminal.door.asks(PI, "pi", "10.0.0.7:5710")
        shown = len(terminal.said)
        terminal.types("\nwho is that\n")
        async with asyncio.timeout(60):
            while len(terminal.said) < shown + 1:
                await asyncio.sleep(0.005)
        assert terminal.let_in == []
        assert " asks to be let in" in terminal.said[-1]

    at(terminal, scene)


def test_names_can_not_draw_on_the_screen_and_a_crowd_is_bounded(terminal: Terminal) -> None:
    async def scene() -> None:
        for number in range(10 * MAX_WAITING):
            terminal.door.asks(PeerId(f"{number:016d}"), "\x1b[2Jme\nlaptop " * 40, "h" * 500)
        assert len(terminal.said) == 1 and len(terminal.said[0]) < 250
        assert terminal.said[0].isprintable()
        assert len(terminal.door._waiting) == MAX_WAITING

    at(terminal, scene)


@pytest.mark.parametrize("why", ["background", "end"])
def test_where_nobody_can_answer_the_command_is_named(
    terminal: Terminal, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        if why == "background":
            monkeypatch.setattr(at_the_door, "_is_in_background", lambda descriptor: True)
        terminal.door.asks(PI, "pi", "10.0.0.7:5710")
        terminal.types("y\n" if why == "background" else "\x04")  # Ctrl-D
        await terminal.until("`p2ptrain group approve` says who waits")
        terminal.types("y\n")
        await asyncio.sleep(0)
        assert terminal.let_in == []

    at(terminal, scene)


def test_without_a_terminal_nobody_is_asked(terminal: Terminal) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w"):
        assert AtTheDoor.is_possible(terminal.keyboard, terminal.keyboard)
        assert not AtTheDoor.is_possible(pipe, terminal.keyboard)
        assert not AtTheDoor.is_possible(terminal.keyboard, pipe)
    assert not AtTheDoor.is_possible(pipe, terminal.keyboard), "a closed one"
