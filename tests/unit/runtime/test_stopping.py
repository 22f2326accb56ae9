"""What is told of peers that were asked to stop: no more than they answered, or their records say."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.runtime import stopping
from p2ptrain.wire.messages import MemberState, Record, Stop, StopAnswer

JOB = JobId("0123456789abcdef")
NAMES = [PeerId(f"peer{number:012d}") for number in range(3)]


def record(peer: PeerId, **changes: Any) -> Record:
    blank = blank_record(peer, b"k" * 40, 1, name=f"device {NAMES.index(peer)}")
    return dataclasses.replace(blank, **({"job": JOB, "phase": "training", "round": 4} | changes))


class Observer:
    def __init__(self) -> None:
        self.records = {peer: record(peer) for peer in NAMES}
        self.states: dict[PeerId, MemberState] = dict.fromkeys(NAMES, "alive")
        self.answered = set(NAMES)
        self.stop_answers: dict[PeerId, StopAnswer] = {}
        self.asked: list[Stop] = []

    def alive(self) -> list[Record]:
        return list(self.records.values())

    def ask_to_stop(self, stop: Stop, now: float) -> list[object]:
        self.asked.append(stop)
        return []


class Node:
    """Whose clock goes on by a second a look, at which ``events`` happen."""

    failure = None

    def __init__(self, events: dict[int, Any]) -> None:
        self.observer, self._events, self._now = Observer(), events, 0.0

    def now(self) -> float:
        self._now += 0.5
        if (event := self._events.pop(int(self._now), None)) is not None:
            event(self.observer)
        return self._now

    def feed(self, event: Any) -> None:
        event(self._now)

    async def look_around(self, wait_s: float) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LOOK_S", 0.0)


def ask(node: Node, until_s: float = 60.0) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    found = asyncio.run(stopping.stop_group(node, 1.0, until_s, said.append))  # type: ignore[arg-type]
    return {each.name: each.how for each in found}, said


def test_each_is_told_once_when_it_has_stopped_refused_or_gone() -> None:
    def answered(observer: Observer) -> None:
        observer.stop_answers = {NAMES[0]: "ends", NAMES[1]: "refuses", NAMES[2]: "ends"}

    def done(observer: Observer) -> None:
        observer.records[NAMES[0]] = record(NAMES[0], phase="done", round=5)
        observer.answered.discard(NAMES[2])
        observer.states[NAMES[2]] = "left"

    node = Node({3: answered, 6: done})
    found, said = ask(node)
    assert found == {"device 0": "stopped", "device 1": "refuses", "device 2": "gone"}
    assert said == [
        "device 0 ends its round (4 are done)",
        "device 1 goes on: it was started with --no-remote-stop",
        "device 2 ends its round (4 are done)",
        "device 0 has stopped, after round 5",
        "device 2 is gone, 4 rounds when it was last heard of",
    ]
    assert {stop.after for stop in node.observer.asked} == {5} and len(node.observer.asked) > 1, "asked again"


def test_who_does_not_answer_is_not_said_to_have_stopped() -> None:
    node = Node({2: lambda observer: observer.stop_answers.update({NAMES[0]: "ends"})})
    found, said = ask(node, until_s=40.0)
    assert found == {"device 0": "ends", "device 1": "silent", "device 2": "silent"}
    assert "device 1 has not answered yet" in said
    node = Node({2: lambda observer: observer.stop_answers.update({NAMES[0]: "ends"})})
    node.observer.records[NAMES[0]] = record(NAMES[0], phase="done")
    assert ask(node, until_s=5.0)[0]["device 0"] == "stopped"
    assert ask(Node({}), until_s=5.0)[0]["device 0"] == "silent", "done, but it has not said that it goes"
