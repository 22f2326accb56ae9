"""What a page is told: the group of each mode, its history, what happened, and what comes next."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from groups import MODES, found_in, look_of, room_of

from p2ptrain import api
from p2ptrain.ids import JobId
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.ui.group_map import KINDS as TRAFFIC
from p2ptrain.ui.group_map import traffic
from p2ptrain.web.events import Events
from p2ptrain.web.history import MAX_POINTS, WHOLE, History
from p2ptrain.web.view import MAX_PEERS, NOTHING, Pace, View
from p2ptrain.wire.messages import KINDS, LookFigure, MemberState, Record


def told(found: api.Status | None) -> Any:
    view = View(lambda: found, clock=lambda: 100.0)
    view.glance()
    return json.loads(view.now())


def changed(found: api.Status, index: int, state: MemberState = "alive", **changes: Any) -> api.Status:
    """With another record, or state, of one peer."""
    records = list(found.records)
    records[index] = dataclasses.replace(records[index], **changes)
    states = {**found.states, records[index].peer: state}
    return dataclasses.replace(found, records=tuple(records), states=states)


@pytest.mark.parametrize("mode", MODES)
def test_every_part_of_the_model_is_covered_and_somebody_trains_it(mode: str) -> None:
    group = told(found_in(mode))["group"]
    peers = {peer["peer"] for peer in group["peers"]}
    cells = group["coverage"]["cells"]
    assert cells and all(cell["trainers"] and peers.issuperset(cell["trainers"]) for cell in cells)
    assert all(peers.issuperset(cell["copies"]) for cell in cells)
    assert group["coverage"]["lost_without"].keys() == peers
    assert group["harvest"]["state"] == "half-way" and 0 < group["harvest"]["oldest"] < group["harvest"]["of"]
    assert all(flow["from"] in peers and flow["to"] in peers for flow in group["plan"]["flows"])
    assert told(found_in(mode))["next"]["of"] == 20
    assert all(peer["here"] and peer["does"] == "training" for peer in group["peers"])


def test_stages_and_units_send_and_who_trains_alone_does_not() -> None:
    sends = {mode: {flow["what"] for flow in told(found_in(mode))["group"]["plan"]["flows"]} for mode in MODES}
    assert sends == {
        "tasks": set(),
        "replicas": {"averages"},
        "pipeline": {"activations"},
        "split": {"activations"},
    }
    links = [link for peer in told(found_in("pipeline"))["group"]["peers"] for link in peer["links"]]
    assert links and all(link["bytes_per_s"] > 0 and link["latency_s"] > 0 for link in links)


def test_what_would_be_lost_is_what_nobody_else_has() -> None:
    found = found_in("tasks")
    own = next(i for i, record in enumerate(found.records) if record.part == 0)
    peer = found.records[own].peer
    ahead = changed(found, own, round=9)
    assert "of a, b" in told(ahead)["group"]["coverage"]["lost_without"][peer]
    others = [
        dataclasses.replace(record, holdings=() if record.peer != peer else record.holdings) for record in found.records
    ]
    alone = dataclasses.replace(found, records=tuple(others))
    assert told(alone)["group"]["coverage"]["lost_without"][peer] == "all that was learnt of a, b"
    assert told(found_in("replicas"))["group"]["coverage"]["lost_without"][found_in("replicas").records[0].peer] == ""
    gone = changed(found, own, "dead")
    cells = told(gone)["group"]["coverage"]["cells"]
    assert cells[0]["trainers"] == [] and peer not in told(gone)["group"]["coverage"]["lost_without"]


@pytest.mark.parametrize("mode", ["pipeline", "split"])
def test_status_tells_of_all_blocks_who_has_them_how_old_copies_are_and_what_would_be_lost_with_whom(mode: str) -> None:
    found, lines = found_in(mode), told(found_in(mode))["group"]["told"]
    cells = told(found)["group"]["coverage"]["cells"]
    names = {record.peer: record.name for record in found.records}
    for cell in cells:
        (line,) = [each.strip() for each in lines if each.strip().startswith(f"{cell['name']}:")]
        assert all(names[peer] in line.split("; copies:")[0] for peer in cell["trainers"])
        unit = "batch" if mode == "pipeline" else "round"
        others = {p: at for p, at in cell["copies"].items() if mode == "split" or p not in cell["trainers"]}
        assert all(f"{names[peer]} ({unit} {at})" in line for peer, at in others.items()) and others
    assert all(any(f"without {name}" in line or f" or {name}" in line for line in lines) for name in names.values())


def test_nobody_is_nothing_and_a_crowd_is_cut() -> None:
    assert told(None)["group"] is None
    found = found_in("replicas")
    crowd = [dataclasses.replace(found.records[0], peer=f"{n:016d}") for n in range(MAX_PEERS)]
    many = told(dataclasses.replace(found, records=(*found.records, *crowd)))
    assert len(many["group"]["peers"]) == MAX_PEERS and many["left_out"] == 3


def test_a_name_is_passed_on_as_it_is_for_the_page_never_reads_markup() -> None:
    name = "<script>alert(1)</script>"
    found = changed(found_in("tasks"), 0, name=name, waiting_for=f"{name}\n")
    peer = told(found)["group"]["peers"][0]
    assert peer["name"] == name and peer["notes"] == [f"waits for {name}?"]


# --- history ---


def trains(step: int, **changes: Any) -> Record:
    first = found_in("tasks").records[0]
    return dataclasses.replace(first, **({"step": step, "samples": step, "loss": 1 / step} | changes))


def test_pages_get_all_points_first_and_then_what_is_new() -> None:
    history, job = History(), trains(1).job
    history.add([trains(1)], job, 1.0)
    whole, points = history.since(NOTHING[0])
    assert whole and [point.loss for _, point in points] == [1.0]
    cursor = history.number
    history.add([trains(1)], job, 2.0)
    assert history.since(cursor) == (False, []), "nothing new was said"
    history.add([trains(2, accuracy=0.5)], job, 3.0)
    whole, points = history.since(cursor)
    assert not whole and points[0][1] == (3.0, trains(2).round, 2, 0.5, 0.5)


def test_a_history_is_bounded_and_keeps_both_ends() -> None:
    history, job = History(), trains(1).job
    for step in range(1, 3 * MAX_POINTS):
        history.add([trains(step)], job, float(step))
    _, points = history.since(NOTHING[0])
    assert len(points) <= MAX_POINTS and points[0][1].time == 1.0 and points[-1][1].time == 3 * MAX_POINTS - 1
    cursor = history.number
    history.add([trains(5)], JobId("f" * 16), 9.0)
    assert history.since(cursor) == (True, []), "another job begins anew, and this record is not about it"


def test_what_is_no_number_is_no_point() -> None:
    history, job = History(), trains(1).job
    history.add([trains(3, loss=float("nan")), trains(4, loss=0.0), dataclasses.replace(trains(1), step=0)], job, 1.0)
    assert history.since(NOTHING[0])[1] == []


# --- events ---


def texts(events: Events) -> list[str]:
    return [event.text for event in events.since(0)]


def test_who_comes_and_goes_and_what_goes_on_is_told_once() -> None:
    found, events = changed(found_in("tasks"), 0, name="board"), Events()
    events.look(found, 1.0)
    events.look(found, 2.0)
    assert texts(events)[0] == "board is here" and len(texts(events)) == 4
    assert texts(events)[-1].startswith(f"plan of epoch {found.plan.epoch if found.plan else 0}: ")
    events.look(changed(found, 0, "dead"), 3.0)
    assert texts(events)[4:] == ["board is lost: no answer any more"]
    gone = changed(found, 0, "dead")
    events.look(changed(gone, 1, step=10**6), 8.0)
    assert texts(events)[5:] == ["training goes on, about 5 s after the loss was seen"]
    events.look(changed(gone, 0, "alive"), 9.0)
    events.look(changed(gone, 0, phase="failed", waiting_for="memory"), 9.5)
    assert texts(events)[6:] == ["board is here again", "board trains no more: its trainer failed (memory)"]


def test_an_epoch_of_somebody_s_own_is_short_on_the_page_too() -> None:
    found, events = found_in("tasks"), Events()
    assert found.plan is not None
    apart = dataclasses.replace(found.plan, epoch=82_600_000)
    events.look(dataclasses.replace(found, plan=apart), 1.0)
    (text,) = [each for each in texts(events) if each.startswith("plan of epoch")]
    assert text.startswith(f"plan of epoch {epoch_words(82_600_000)}: ") and "82600000" not in text


def test_every_kind_that_traffic_is_told_by_is_one_of_a_message() -> None:
    assert {kind for kinds in TRAFFIC.values() for kind in kinds} <= set(KINDS)
    assert traffic({"chunk": 5, "ping": 2, "fetch": 1}) == {"models and copies": 6, "staying in touch": 2}


def test_a_round_is_told_when_all_have_ended_it() -> None:
    found, events = found_in("replicas"), Events()
    for number, rounds in enumerate([(3, 3, 3), (4, 3, 3), (4, 4, 4), (4, 5, 5), (5, 5, 5)]):
        now = found
        for index, done in enumerate(rounds):
            now = changed(now, index, round=done)
        events.look(now, 10.0 * number, plans=False)
    assert texts(events) == ["round 4 of 20 is done everywhere", "round 5 of 20 is done everywhere, after 20 s"]


def test_events_are_bounded_and_counted() -> None:
    events = Events()
    for number in range(1000):
        events.say(float(number), f"event {number}")
    assert len(events.since(0)) == 200 and [e.text for e in events.since(998)] == ["event 998", "event 999"]
    for number in range(1000):
        events.say(float(number), f"round {number}", "round")
    kept = events.since(0)
    assert [e.text for e in kept if e.kind == "round"] == [f"round {number}" for number in range(970, 1000)]
    assert kept[0].text == "event 830", "ends of rounds leave room for what else happened"


def test_the_end_is_told_ahead_from_the_last_few_rounds() -> None:
    pace = Pace()
    for rounds, now in [(0, 0.0), (1, 10.0), (2, 20.0), (3, 30.0)]:
        pace.seen(rounds, now)
    assert pace.round_s == 10.0 and pace.since == 30.0
    pace.seen(1, 40.0)
    assert pace.round_s is None, "a group that goes back begins anew"


def test_a_view_follows_a_real_group_through_the_loss_of_a_peer() -> None:
    room = room_of("tasks")
    view = View(look_of(room), clock=lambda: room.network.now)
    text, cursor = "", NOTHING
    view.glance()
    text, cursor = view.news(cursor)
    assert json.loads(text)["whole"] and view.news(cursor) == ("", cursor)
    lost = room.on()[-1]
    lost.kill()
    for _ in range(40):
        room.run(1.0)
        view.glance()
    news = json.loads(view.news(cursor)[0])
    said = [text for _, _, text in news["events"]]
    assert "device 2 is lost: no answer any more" in said, said
    assert news["points"] and not news["whole"]
    peers = {peer["name"]: peer["does"] for peer in json.loads(view.now())["group"]["peers"]}
    assert peers["device 2"] == "lost"


def test_who_asks_gets_what_only_the_others_know() -> None:
    room = room_of("tasks")
    first, others = room.on()[0], [device.id for device in room.on()[1:]]
    assert look_of(room)().sent.keys() == {first.id}
    for device in room.on():
        device.core.figures = {"battery": 0.4}
    room.perform(first, first.core.ask_status(room.network.now))
    room.run(1.0)
    found = look_of(room)()
    assert found.figures == {peer: {"battery": 0.4} for peer in [first.id, *others]}
    assert all(sum(found.sent[peer].values()) > 1000 and found.sent[peer]["records"] for peer in others)
    told_of = told(found)["group"]["peers"]
    assert all(peer["figures"]["battery"] == 0.4 and peer["figures"]["computes"] is None for peer in told_of)
    assert all(peer["sent_by_kind"]["models and copies"] > 0 for peer in told_of)


def test_the_whole_model_has_a_curve_of_its_own() -> None:
    found = found_in("replicas")
    first = changed(found, 0, looks=(LookFigure("a" * 16, 2, 10, 6, 5.0),))
    history, job = History(), found.job.id if found.job else ""
    history.add(found.records, job, 1.0)
    history.add(first.records, job, 2.0)
    history.add(first.records, job, 3.0)
    more = changed(first, 1, looks=(LookFigure("a" * 16, 2, 10, 8, 5.0), LookFigure("b" * 16, 4, 10, 9, 1.0)))
    history.add(more.records, job, 4.0)
    points = [(p.time, p.round, p.accuracy, p.loss) for peer, p in history.since(0)[1] if peer == WHOLE]
    assert points == [(2.0, 2, 0.6, 0.5), (4.0, 4, 0.9, 0.1)]
    group = told(more)["group"]
    assert [(look["round"], look["samples"], look["accuracy"]) for look in group["looks"]] == [
        (2, 20, 0.7),
        (4, 10, 0.9),
    ]
    assert group["best_look"]["round"] == 4, "who looked at both, half of the samples, found more right in it"
    assert any(
        "put together after round 4: 90 % of 10" in line or "after round 4: 90.0 % of 10" in line
        for line in group["told"]
    )
