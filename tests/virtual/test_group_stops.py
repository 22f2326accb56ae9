"""Somebody asks a whole group to stop: it ends in good order after a round, in every mode, and can go on later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import stage_group
import test_units
from peer_group import Room, job

from p2ptrain.config import Job
from p2ptrain.core.effects import Stopping
from p2ptrain.core.harvest import stopped_after
from p2ptrain.ids import JobId
from p2ptrain.simulation.room import Visitor
from p2ptrain.wire.messages import Stop


def of_tasks(rounds: int = 8) -> Room:
    room, work = Room(0), job(rounds=rounds)
    for number in range(3):
        room.add(number, job=work, round_s=1.0 + 0.3 * number)
    return room


ROOMS: dict[str, Callable[[int], Room]] = {
    "tasks": of_tasks,
    "pipeline": lambda rounds: stage_group.group(rounds=rounds),
    "split": lambda rounds: test_units.group(rounds=rounds),
}


def job_of(room: Room) -> Job:
    found = room.on()[0].core.job
    assert found is not None
    return found


def ask(room: Room, peers: list[int], after: int = 0, job: str = "", number: int = 99) -> Visitor:
    """As ``p2ptrain stop`` does, of a device that is linked to these peers alone."""
    visitor = room.visit(number, peers)
    room.run(3, lambda: len(visitor.core.answered) >= len(peers))
    after = after or max(device.record.round for device in room.on()) + 1
    stop = Stop(JobId(job) if job else job_of(room).id, after, "a laptop")
    room.perform(visitor, visitor.core.ask_to_stop(stop, room.network.now))
    return visitor


def all_in_round(room: Room, number: int) -> Callable[[], bool]:
    return lambda: (
        all(d.record.round >= number or d.record.part < 0 for d in room.on())
        and any(d.record.round >= number for d in room.on())
    )


@pytest.mark.parametrize("mode", ROOMS)
@pytest.mark.usefixtures("no_work_for_messages")
def test_all_end_a_round_and_are_done(mode: str) -> None:
    room = ROOMS[mode](8)
    assert room.run(200, all_in_round(room, 2))
    newest = max(device.record.round for device in room.on())
    ask(room, [0])  # the others hear of it from that one
    assert room.run(120, room.all_done), [(d.record.phase, d.record.round, d.record.waiting_for) for d in room.on()]
    rounds = {device.record.round for device in room.on() if device.record.part >= 0}
    assert min(rounds) >= 2 and max(rounds) <= newest + 3, "none trains on to the job's last round"
    assert all(device.was_stopped == Stopping(at_once=False) for device in room.on())
    assert 0 < stopped_after([device.record for device in room.on()], job_of(room).id) <= newest + 3
    assert len(room.plans()) == 1, "who leaves then is no reason for another plan"
    epochs = room.epochs()
    room.on()[-1].kill()
    room.run(10)
    assert room.epochs() == epochs and room.all_done()


@pytest.mark.parametrize("mode", ["tasks", "pipeline"])
@pytest.mark.usefixtures("no_work_for_messages")
def test_started_again_they_go_on_to_the_last_round(mode: str) -> None:
    room = ROOMS[mode](5)
    assert room.run(200, all_in_round(room, 1))
    ask(room, [0, 1])
    assert room.run(120, room.all_done)
    before = max(device.record.round for device in room.on())
    for device in room.on():
        device.kill()
    for number in room.devices:
        room.restart(number)
    assert room.run(300, room.all_done), [(d.record.phase, d.record.round, d.record.waiting_for) for d in room.on()]
    rounds = {device.record.round for device in room.on() if device.record.part >= 0}
    assert before < 5 and rounds == {5}


def test_who_refuses_goes_on_alone() -> None:
    room, work = Room(0), job(rounds=12)
    for number in range(3):
        room.add(number, job=work, remote_stop=number != 2)
    assert room.run(60, all_in_round(room, 2))
    visitor = ask(room, [0, 1, 2])
    room.run(1)
    answers = {room.devices[n].id: "refuses" if n == 2 else "ends" for n in range(3)}
    assert visitor.core.stop_answers == answers
    last = room.devices[2]
    assert room.run(60, lambda: last.record.round == 12)
    assert last.was_stopped is None and last.note_kinds()["stop-asked"] == 1
    assert all(device.record.round < 12 for device in room.on() if device is not last)
    assert room.run(60, room.all_done)


def test_who_trains_another_job_does_not_mind() -> None:
    room = of_tasks()
    assert room.run(60, all_in_round(room, 1))
    visitor = ask(room, [0], job="f" * 16)
    room.run(2)
    assert visitor.core.stop_answers == {}, "nobody of another job is asked"
    assert all(device.was_stopped is None and device.record.ends_after == 0 for device in room.on())


def test_who_has_no_plan_yet_or_is_done_goes_at_once() -> None:
    room, work = Room(0), job(rounds=2, min_peers=2)
    alone = room.add(0, job=work)
    room.run(5)
    ask(room, [0], after=1)
    room.run(1)
    assert alone.was_stopped == Stopping(at_once=True)
    room = Room(1)
    for number in range(2):
        room.add(number, job=work)
    assert room.run(60, room.all_done)
    ask(room, [0])
    room.run(1)
    assert all(device.was_stopped == Stopping(at_once=True) for device in room.on())


def test_the_last_state_of_a_split_group_that_is_stopped_gets_all_of_its_copies() -> None:
    """As the job's last one does, though rounds are shorter than the time between two such states."""
    room = test_units.group(rounds=40, strategy="mid-cut", replicas=2)
    assert room.run(200, all_in_round(room, 2))
    ask(room, [0])
    assert room.run(120, room.all_done), test_units.state_of(room)
    last = stopped_after([device.record for device in room.on()], job_of(room).id)
    room.run(5)
    held = Counter(
        ref.blob for device in room.on() for ref in device.disk.replicas if ref.kind == "part" and ref.round == last
    )
    assert held and min(held.values()) >= 3, held
