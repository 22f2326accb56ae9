"""What people are told of split training."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from test_split_planner import ANNA, BEN, HELPER, MODEL, SAMPLES, job, peer, room

from p2ptrain.cli.demo import ProgressLine
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.core.stages.figures import MeasuredPeer
from p2ptrain.ids import PeerId
from p2ptrain.modes.split import words
from p2ptrain.modes.split.plan import body_of
from p2ptrain.modes.split.planner import first_plan
from p2ptrain.modes.split.rounds import states as at

IDLE = PeerId("d" * 16)


def test_everyone_is_told_what_it_does_and_for_whom() -> None:
    slow = peer(IDLE, 1.0)
    odd = MeasuredPeer(PeerSnapshot(PeerId("e" * 16), 0.0, 0, SAMPLES, ()), None)
    plan = first_plan(job(), MODEL, [*room(), slow, odd], HELPER)
    cut = {unit.owner: unit.cut for unit in body_of(plan).split.units}
    told = {name: words.plan_sentence(plan, job(), name) for name in (HELPER, ANNA, BEN, IDLE, odd.snapshot.peer)}
    assert f"blocks 0-{cut[ANNA] - 1} of its copy, and {HELPER} the others" in told[ANNA]
    assert f"for {ANNA}" in told[HELPER] and f"for {BEN}" in told[HELPER] and "averages" in told[HELPER]
    assert "stands by" in told[IDLE] and "make no sense" in told[odd.snapshot.peer]
    assert words.plan_notes(plan, job(), ANNA) == [
        f"activations of this device's samples, and their labels, go to {HELPER}"
    ]
    assert words.plan_notes(plan, job(), HELPER) == []
    texts = [words.part_text(plan, job(), part.index) for part in plan.parts]
    assert f"for {ANNA}" in texts[0] and f"with {HELPER}" in texts[1] and f"with {HELPER}" in texts[2]


def test_a_demonstration_tells_once_who_helps_whom(capsys: pytest.CaptureFixture[str]) -> None:
    plan, line = first_plan(job(), MODEL, room(), HELPER), ProgressLine(quiet=False, rounds=5)
    names = {ANNA: "anna", BEN: "ben", HELPER: "hal"}
    records = [
        SimpleNamespace(peer=peer, name=name, phase="training", round=0, samples=0) for peer, name in names.items()
    ]
    line.group(1.0, SimpleNamespace(plan=None, job=None, records=()))
    assert "starting" in capsys.readouterr().err
    for _ in range(2):
        line.group(2.0, SimpleNamespace(plan=plan, job=job(), records=records))
    said = capsys.readouterr().err
    assert said.count("hal helps anna, ben") == 1 and "anna trains blocks 0" in said and HELPER not in said


def test_where_labels_stay_everyone_is_told_so() -> None:
    stay = job(labels="stay")
    plan = first_plan(stay, MODEL, room(), HELPER)
    cut = {unit.owner: unit.cut for unit in body_of(plan).split.units}[ANNA]
    assert f"blocks 0-{cut - 1} and 5-5 of its copy, and {HELPER} the others" in words.plan_sentence(plan, stay, ANNA)
    assert f"blocks {cut}-4 for {ANNA}" in words.plan_sentence(plan, stay, HELPER)
    assert words.plan_notes(plan, stay, ANNA) == [
        f"activations of this device's samples, and gradients, go to {HELPER}; their labels stay here"
    ]
    assert "labels of its samples go" in words.job_lines(job())[0] and "stay" in words.choice_lines(job())[0]
    assert "labels of its samples go" not in words.job_lines(stay)[0]


def test_whose_samples_are_not_trained_on_is_told_how_many_and_why() -> None:
    plan = first_plan(job(), MODEL, [peer(ANNA, 1e-3, SAMPLES, memory=1), peer(BEN, 1e-3, SAMPLES)], BEN)
    for text in (words.plan_sentence(plan, job(), ANNA), words.waiting_words(plan, ANNA, at.Idle(), [])):
        assert f"{sum(SAMPLES)} samples" in text and "memory" in text
    assert "memory" not in words.plan_sentence(plan, job(), BEN)


def test_who_comes_later_is_not_told_that_its_figures_make_no_sense() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    for text in (words.plan_sentence(plan, job(), IDLE), words.waiting_words(plan, IDLE, at.Idle(), [])):
        assert "made before this peer came" in text and "sense" not in text


def test_status_tells_shares_loads_and_seconds() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    lines = "\n".join(words.plan_lines(plan, job()))
    assert "a round is planned to take" in lines and "granted" in lines and f"{HELPER} helps {ANNA}, {BEN}: " in lines
    plain = words.plan_plain(plan)
    assert json.loads(json.dumps(plain)) == plain
    assert {unit["owner"] for unit in plain["units"]} == {ANNA, BEN} and plain["averager"] == HELPER
    alone = first_plan(job(strategy="alone"), MODEL, room(), HELPER)
    lines = "\n".join(words.plan_lines(alone, job()))
    assert f"{ANNA} trains alone" in lines and "nobody helps" in lines
    assert words.granted(plan, ANNA).keys() == {HELPER} and words.granted(plan, HELPER).keys() == {ANNA, BEN}


def test_what_leaves_the_device_is_said_where_the_mode_is_chosen_and_checked() -> None:
    for lines in (words.choice_lines(job()), words.job_lines(job())):
        assert "labels" in lines[0] and "activations" in lines[0]


def test_every_wait_has_words() -> None:
    plan = first_plan(job(), MODEL, room(), HELPER)
    assert "saved state" in words.waiting_words(plan, ANNA, at.Lost(), [])
    assert "after 2 rounds" in words.waiting_words(plan, ANNA, at.Gathering(2), [])
    assert "a second peer" in words.waiting_words(plan, ANNA, at.Gathering(2), [], has_all=True)
    assert HELPER in words.waiting_words(plan, ANNA, at.Ended(2), [])
    assert ANNA in words.waiting_words(plan, HELPER, at.Ended(2), [ANNA])
    assert words.waiting_words(plan, ANNA, at.Training(1), []) == ""


def test_a_class_that_nobody_has_is_told() -> None:
    some = [peer(ANNA, 1e-3, (40, 0, 40, 40)), peer(BEN, 4e-4, (40, 0, 40, 40))]
    plan = first_plan(job(), MODEL, some, ANNA)
    (told,) = words.plan_notes(plan, job(), BEN)
    assert told.startswith(f"NOBODY HAS SAMPLES OF {job().data.classes[1]}: the model will not know it")
