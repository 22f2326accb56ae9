"""What is written down of a training, when, and that no logger and no disk can hold it up."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.errors import UserError
from p2ptrain.ids import peer_id
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.metrics import recorder as module
from p2ptrain.runtime.metrics.recorder import OTHERS_EVERY_S, OWN_EVERY_S, Recorder, named
from p2ptrain.runtime.node.journal import Line, read
from p2ptrain.wire.messages import LookFigure, Record

JOB = Job(name="shapes", data=DataConfig(classes=("a", "b"), input_shape=(1, 8, 8)))
KEYS = (b"a" * 32, b"b" * 32)
WAIT_S = 60.0


class FakeGroup:
    """This peer and another one."""

    def __init__(self) -> None:
        self.said = {
            peer_id(key): blank_record(peer_id(key), key, 1, name=name, job=JOB.id)
            for key, name in zip(KEYS, ("laptop", "board"), strict=True)
        }
        self.own_id = peer_id(KEYS[0])

    @property
    def own(self) -> Record:
        return self.said[self.own_id]

    def records(self) -> list[Record]:
        return list(self.said.values())

    def say(self, key: bytes = KEYS[0], **changes: object) -> None:
        self.said[peer_id(key)] = dataclasses.replace(self.said[peer_id(key)], **changes)  # type: ignore[arg-type]


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, dict[str, float]]] = []
        self.threads = {threading.get_ident()}
        self.closed = False

    def log(self, peer: str, step: int, values: Mapping[str, float]) -> None:
        self.told.append((peer, step, dict(values)))
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        self.closed = True
        self.threads.add(threading.get_ident())


@pytest.fixture
def group() -> FakeGroup:
    return FakeGroup()


@pytest.fixture
def recorder(tmp_path: Path, group: FakeGroup) -> Iterator[Recorder]:
    made = Recorder(tmp_path / "metrics.jsonl", {})
    made.follow(lambda: (JOB, group))
    yield made
    made.close()


def written(path: Path, recorder: Recorder) -> list[dict[str, object]]:
    recorder.close()
    return [{"kind": line.kind, **line.fields} for line in read(path / "metrics.jsonl")]


def test_a_line_says_what_is_known_and_nothing_else(tmp_path: Path, group: FakeGroup, recorder: Recorder) -> None:
    group.say(phase="training", epoch=3, part=1, round=2, step=40, samples=900, loss=0.5, samples_per_s=12.5)
    recorder.look(100.0)
    job, own, other = written(tmp_path, recorder)
    assert job == {
        **{"kind": "job", "job": JOB.id, "name": "shapes", "mode": "tasks", "model": "lenet"},
        **{"rounds": 10, "classes": 2},
    }
    assert own == {
        **{"kind": "metrics", "job": JOB.id, "peer": group.own_id, "name": "laptop", "own": True, "phase": "training"},
        **{"epoch": 3, "part": 1, "round": 2, "step": 40, "samples": 900, "bytes_sent": 0, "loss": 0.5},
        "samples_per_s": 12.5,
    }
    assert other["name"] == "board" and other["own"] is False and not {"loss", "accuracy"} & other.keys()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["time"] == 100.0


def test_within_a_round_now_and_then_but_what_matters_at_once(
    tmp_path: Path, group: FakeGroup, recorder: Recorder
) -> None:
    recorder.look(0.0)
    for second in range(1, 31):
        group.say(step=second, samples=second, bytes_sent=second)
        group.say(KEYS[1], step=second)
        recorder.look(float(second))
    group.say(phase="trained")
    recorder.look(30.1)
    group.say(bytes_sent=10**6)
    recorder.look(99.0)  # nothing of the training is new
    steps = {
        name: [line["step"] for line in written(tmp_path, recorder) if line.get("name") == name]
        for name in ("laptop", "board")
    }
    assert steps["laptop"] == [0, *range(int(OWN_EVERY_S), 31, int(OWN_EVERY_S)), 30]
    assert steps["board"] == [0, *range(int(OTHERS_EVERY_S), 31, int(OTHERS_EVERY_S))]


def test_a_clock_that_is_set_back_stops_nothing(tmp_path: Path, group: FakeGroup, recorder: Recorder) -> None:
    recorder.look(7200.0)
    group.say(step=1, samples=1)
    recorder.look(3600.0)
    assert [line["step"] for line in written(tmp_path, recorder) if line.get("name") == "laptop"] == [0, 1]


def test_no_round_is_missed_however_short(tmp_path: Path, group: FakeGroup, recorder: Recorder) -> None:
    """Of stages that don't know the loss, the journal's line does."""
    for number in range(1, 6):
        group.say(round=number, step=3 * number)
        recorder.heard(Line(1.0 + number / 100, "round", {"part": 0, "round": number, "loss": 1 / number}))
    recorder.heard(Line(2.0, "validated", {"accuracy": 0.75, "samples": 80}))
    lines = [line for line in written(tmp_path, recorder) if line.get("own")]
    assert [line["loss"] for line in lines if "loss" in line] == [round(1 / n, 6) for n in range(1, 6)]
    assert lines[-1]["kind"] == "model" and (lines[-1]["model_accuracy"], lines[-1]["model_samples"]) == (0.75, 80)


def test_a_round_that_is_told_late_is_not_mixed_with_the_next(
    tmp_path: Path, group: FakeGroup, recorder: Recorder
) -> None:
    """A stage's round is told when its snapshot is saved: by then the record may speak of the next round."""
    recorder.look(0.0)
    group.say(round=2, step=20, loss=0.25)  # round 1 went by between two looks
    recorder.look(1.0)
    recorder.heard(Line(1.1, "round", {"round": 1, "loss": 0.5}))
    recorder.heard(Line(1.2, "round", {"round": 2, "loss": 0.25}))
    group.say(round=4, step=45)
    recorder.heard(Line(2.0, "round", {"round": 4, "loss": 0.1}))
    own = [(line["round"], line.get("step"), line.get("loss")) for line in written(tmp_path, recorder) if "own" in line]
    rounds = [each for each in own if each[0]]
    assert rounds[0] == (2, 20, 0.25) and [each[0] for each in rounds] == sorted(each[0] for each in rounds)
    assert rounds[-1] == (4, 45, 0.1) and len(rounds) <= 3


def test_a_look_at_the_whole_model_is_written_down_again_when_more_have_told(
    tmp_path: Path, group: FakeGroup, recorder: Recorder
) -> None:
    group.say(round=4, step=80, looks=(LookFigure("a" * 16, 3, 10, 6, 5.0),))
    recorder.look(1.0)
    recorder.look(2.0)
    group.say(KEYS[1], looks=(LookFigure("a" * 16, 3, 30, 24, 3.0), LookFigure("b" * 16, 4, 30, 3, 9.0)))
    recorder.look(3.0)
    looks = [line for line in written(tmp_path, recorder) if line["kind"] == "model"]
    figures = [
        (each["round"], each["model_samples"], each["model_accuracy"], each["model_loss"], each["step"])
        for each in looks
    ]
    assert figures == [(3, 10, 0.6, 0.5, 80), (3, 40, 0.75, 0.2, 80), (4, 30, 0.1, 0.3, 80)]


def test_nothing_is_written_before_there_is_a_job(tmp_path: Path, recorder: Recorder) -> None:
    recorder.follow(lambda: None)
    recorder.look(1.0)
    recorder.heard(Line(1.0, "round", {"round": 1}))
    assert written(tmp_path, recorder) == []


def test_loggers_are_told_numbers_in_a_thread_of_their_own(tmp_path: Path, group: FakeGroup) -> None:
    kept: list[Kept] = []

    def make() -> Kept:
        kept.append(Kept())
        return kept[0]

    recorder = Recorder(None, {"kept": make})
    recorder.follow(lambda: (JOB, group))
    group.say(step=7, loss=0.25, accuracy=0.5)
    group.say(KEYS[1], name="Laptop")  # two devices of one name, as some systems' folders see it
    recorder.look(1.0)
    recorder.close()
    (own, other) = kept[0].told
    assert own == ("laptop", 7, {"round": 0.0, "samples": 0.0, "loss": 0.25, "accuracy": 0.5, "bytes_sent": 0.0})
    assert other[0] == f"Laptop {peer_id(KEYS[1])[:6]}"
    assert kept[0].closed and len(kept[0].threads) == 1 and threading.get_ident() not in kept[0].threads


def test_a_job_that_goes_on_from_a_model_is_a_run_of_its_own(group: FakeGroup) -> None:
    kept = Kept()
    more = dataclasses.replace(JOB, model=ModelConfig(init="0" * 64, init_bytes=9))
    job = [JOB]
    recorder = Recorder(None, {"kept": lambda: kept})
    recorder.follow(lambda: (job[0], group))
    group.say(step=40)
    recorder.look(1.0)
    job[0] = more
    group.say(step=0)
    recorder.look(2.0)
    recorder.close()
    own = [(name, step) for name, step, _ in kept.told if name.startswith("laptop")]
    assert own == [("laptop", 40), (f"laptop {more.id[:6]}", 0)], "a curve never goes back"


def test_a_logger_that_fails_is_told_of_once_and_called_no_more(tmp_path: Path, group: FakeGroup) -> None:
    class Failing(Kept):
        calls = 0

        def log(self, peer: str, step: int, values: Mapping[str, float]) -> None:
            Failing.calls += 1
            raise RuntimeError("no network")

    recorder = Recorder(tmp_path / "metrics.jsonl", named([Failing]))
    recorder.follow(lambda: (JOB, group))
    recorder.look(1.0)
    recorder.close()  # all that waited was tried
    (note,) = recorder.troubles()
    assert note.kind == "logger-failed" and dict(note.fields)["why"] == "it failed: RuntimeError: no network"
    assert (Failing.calls, recorder.troubles()) == (1, [])
    assert len(list(read(tmp_path / "metrics.jsonl"))) == 3, "the own file has all of it"


def test_a_logger_that_hangs_loses_figures_and_that_is_said(group: FakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    class Hanging(Kept):
        def log(self, peer: str, step: int, values: Mapping[str, float]) -> None:
            goes_on.wait(WAIT_S)

    monkeypatch.setattr("p2ptrain.runtime.outlet.CLOSE_S", 0.01)
    recorder = Recorder(None, named([Hanging]))
    recorder.follow(lambda: (JOB, group))
    for number in range(5000):
        group.say(round=number)
        recorder.look(float(number))
    (note,) = recorder.troubles()
    assert note.kind == "logger-behind" and int(str(dict(note.fields)["why"])) >= 5000 - 4096
    goes_on.set()
    recorder.close()


def test_a_logger_that_does_not_begin_is_an_error_before_the_training() -> None:
    def fails() -> Kept:
        raise ValueError("no key")

    with pytest.raises(UserError, match="logger fails: it does not begin: ValueError: no key"):
        Recorder(None, named([fails]))


def test_it_looks_once_more_when_it_is_told_to_end(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(recorder, "look", looks.append)

    async def play() -> None:
        watching = recorder.watch(notes.append)
        await asyncio.sleep(0)  # it waits for its first look
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()

    notes: list[Note] = []
    asyncio.run(play())
    assert len(looks) == 1 and notes == []


def test_a_bug_of_what_only_writes_down_is_told_when_it_happens_and_fails_nobody(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(now: float) -> None:
        raise ZeroDivisionError("a figure")

    monkeypatch.setattr(recorder, "look", fail)
    monkeypatch.setattr(module, "LOOK_S", 0.0)

    async def play() -> None:
        watching = recorder.watch(notes.append)
        await asyncio.wait([watching])
        await asyncio.sleep(0)
        assert notes == [Note("metrics-failed", (("why", "ZeroDivisionError: a figure"),))]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    notes: list[Note] = []
    asyncio.run(play())
    assert len(notes) == 1
