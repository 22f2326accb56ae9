"""The model that is written when the group is done: where it goes, and what is said when it can't be."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.core.harvest import Harvest, KeptHarvest, Look, MisfitError, PartReport
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.learning.data import load, open_source, select
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.models import global_model
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime import misfits as misfits_of
from p2ptrain.runtime import model_writer as writer
from p2ptrain.runtime import report
from p2ptrain.ui import messages_for_people
from p2ptrain.wire.messages import LookFigure, SnapshotRef

JOB = Job(data=DataConfig(("cat", "dog"), (1, 8, 8), mean=(0.0,), std=(1.0,)))
PART = PartReport(0, ("cat", "dog"), 1.0, ("me",), 3, 3, 30, 300, 1000)
MADE = KeptHarvest(JOB, SimpleNamespace(hash="p", mode="tasks"), {}, {}, (PART,), told="told")  # type: ignore[arg-type]


def request(folder: Path, out: str = "") -> writer.Request:
    return writer.Request("code", JOB.id, str(folder / "model.safetensors"), ("127.0.0.1:1",), out=out)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Copies that were collected: of 4 bytes each."""
    parts = {0: [SimpleNamespace(data=b"four")]}

    async def collect(*_: object, **__: object) -> Any:
        return SimpleNamespace(job=JOB, parts=parts, records={})

    monkeypatch.setattr(writer, "_collect", collect)
    monkeypatch.setattr(harvesting, "assemble", lambda collected, *, allow_user_code: MADE)
    return parts[0]


def test_it_is_kept_and_put_where_it_was_asked_for(tmp_path: Path, collected: list[Any]) -> None:
    kept, out = tmp_path / "model.safetensors", tmp_path / "mine.safetensors"
    assert writer.carry_out(request(tmp_path)) == writer.Written(str(kept), "complete model", "told")
    assert writer.carry_out(request(tmp_path, str(out))).path == str(out)
    assert out.read_bytes() == kept.read_bytes()


def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, collected: list[Any]) -> None:
    out = tmp_path / "thesis"
    out.write_text("mine")
    made = writer.carry_out(request(tmp_path, str(out)))
    assert made.path == str(tmp_path / "model.safetensors") and "no model of p2ptrain" in made.why_not
    assert out.read_text() == "mine" and Path(made.path).is_file()
    assert writer.carry_out(request(tmp_path, str(tmp_path / "no" / "folder"))).why_not


def test_too_little_memory_is_said_before_it_is_taken(
    tmp_path: Path, collected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=4 * writer.ROOM - 1))
    with pytest.raises(UserError, match="harvest the model on another device"):
        writer.carry_out(request(tmp_path))
    assert not list(tmp_path.iterdir())


def told(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Any]) -> list[Note]:
    """What is noted when the process answers so."""
    left, notes = list(answers), list[Note]()

    async def write(*_: object) -> writer.Written:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    monkeypatch.setattr(writer, "write", write)
    monkeypatch.setattr(writer, "AGAIN_S", 0.0)
    asyncio.run(writer.keep_model(request(folder), 1, notes.append))
    assert not left
    return notes


def test_what_came_of_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = UserError("model.safetensors: can't write the model (No space left on device)")
    made = writer.Written("/m", "complete model", "")
    for answers, kind, words in (
        ([made], "model-written", "the complete model is in /m"),
        ([full, made], "model-written", "the complete model is in /m"),
        ([dataclasses.replace(made, why_not="not in /o: full")], "model-written", "is in /m (not in /o: full)"),
        ([full, full], "model-not-written", "could not be written here"),
    ):
        (note,) = told(tmp_path, monkeypatch, answers)
        line: Any = SimpleNamespace(kind=note.kind, fields=dict(note.fields))
        assert note.kind == kind and words in (messages_for_people.tell(line) or "")
    (tmp_path / "model.safetensors").write_text("of yesterday")
    (note,) = told(tmp_path, monkeypatch, [full, full])
    assert note.kind == "model-kept", "that of an earlier end stays"


def test_a_process_that_fails_is_a_reason(tmp_path: Path) -> None:
    """The real one: nobody is at that address, and the code is none."""
    with pytest.raises(UserError, match="join code"):
        asyncio.run(writer.write(request(tmp_path), 1))


def test_the_finished_model_is_looked_at_on_own_validation_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a share, the share's; not where the group has looked together, nor at half a model."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = (rng.random((200, 1, 8, 8)) / 4 + y[:, None, None, None] / 2).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, classes=np.array(["cat", "dog"]))
    spec = f"npz:{tmp_path / 'd.npz'}"
    job = dataclasses.replace(JOB, model=ModelConfig("lenet"))
    model = global_model(job, allow_user_code=False)
    part = PartReport(0, ("cat", "dog"), 1.0, ("me",), 20, 20, 30, 300, 1000)
    made = Harvest(job, SimpleNamespace(hash="p", mode="tasks"), model.state_dict(), {}, (part,))  # type: ignore[arg-type]
    asked = dataclasses.replace(request(tmp_path), data=spec, name="me")

    def looked(asked: writer.Request, made: Harvest) -> Look | None:
        return writer.look(asked, made, allow_user_code=False)

    source = open_source(spec)
    held = load(source, job.data, "val", select(source, job.data, "val"))
    right = evaluate(model, [held.tensors()], 2)
    assert looked(asked, made) == Look("me", len(held), right.accuracy) and 10 < len(held) < 40
    half = looked(dataclasses.replace(asked, shard="1/2"), made)
    assert half is not None and 0 < half.samples < len(held)
    assert looked(dataclasses.replace(asked, data=""), made) is None, "a helper"
    assert looked(asked, dataclasses.replace(made, missing=(1,))) is None
    assert looked(asked, dataclasses.replace(made, report=(dataclasses.replace(part, round=3),))) is None
    monkeypatch.setattr(Harvest, "is_judged", True)
    assert looked(asked, made) is None


def test_samples_that_are_gone_by_then_cost_no_model(
    tmp_path: Path, collected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = writer.carry_out(dataclasses.replace(request(tmp_path), data=f"images:{tmp_path / 'usb'}", name="me"))
    assert Path(made.path).is_file() and "usb" in made.not_looked and not made.samples


def test_what_devices_found_adds_up() -> None:
    looks = (Look("a", 100, 0.9), Look("b", 300, 0.5))
    assert report.look_lines(looks) == [
        "on 400 validation samples of 2 devices: 60.0 % right (a 90.0 % of 100, b 50.0 % of 300)"
    ]
    assert report.look_lines(looks[:1]) == ["on 100 validation samples of a: 90.0 % right"]
    assert report.look_lines(()) == [] and report.mean_of(()) is None


def test_the_best_state_is_kept_beside_it_where_the_group_has_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = dataclasses.replace(blank_record(PeerId("a" * 16), b"k" * 40, 1), job=JOB.id)
    looked = dataclasses.replace(record, looks=(LookFigure("a" * 16, 2, 10, 9, 1.0),))
    there = {"best": True}

    async def collect(*_: object, best: bool = False) -> Any:
        if best and not there["best"]:
            raise NotCoveredError("no state is whole any more")
        records = {record.peer: looked if there["looked"] else record}
        return SimpleNamespace(job=JOB, parts={}, records=records, round=2 if best else 3)

    monkeypatch.setattr(writer, "_collect", collect)
    made = lambda collected, *, allow_user_code: dataclasses.replace(MADE, told=f"of round {collected.round}")  # noqa: E731
    monkeypatch.setattr(harvesting, "assemble", made)
    best = tmp_path / "best.safetensors"
    for looked_at, has_best in ((False, True), (True, False), (True, True)):
        there |= {"looked": looked_at, "best": has_best}
        assert writer.carry_out(request(tmp_path)).told == "of round 3"
        assert best.exists() == (looked_at and has_best)
    former = harvesting.former_model(best)
    assert former is not None and former["report"] == "of round 2"


def test_a_copy_that_is_none_of_the_model_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collected: list[Any]
) -> None:
    """One of the devices may serve anything under its own name: all the others write their model all the same."""
    odd = SnapshotRef(0, PeerId("b" * 16), 1, 3, 30, 1, BlobId("0" * 64), 4)
    asked: list[bool] = []

    async def collect(_: object, misfits: misfits_of.Misfits, **__: object) -> Any:
        asked.append(misfits.has(odd))
        return SimpleNamespace(job=JOB, parts={0: collected}, records={})

    def assemble(collected: object, *, allow_user_code: bool) -> Any:
        if asked == [False]:
            raise MisfitError("it does not fit", [odd])
        return MADE

    monkeypatch.setattr(writer, "_collect", collect)
    monkeypatch.setattr(harvesting, "assemble", assemble)
    assert writer.carry_out(request(tmp_path)).told == "told" and asked == [False, True]


def test_copies_that_are_no_model_or_never_come_are_looked_for_a_bounded_time() -> None:
    made_by = [PeerId(letter * 16) for letter in "abcdefghijkl"]
    refs = [SnapshotRef(0, peer, 1, 3, n, 1, BlobId(f"{n:064x}"), 4) for n, peer in enumerate(made_by * 2)]
    misfits = misfits_of.Misfits()
    assert misfits.add(MisfitError("no model", [refs[0]]))
    assert misfits.has(refs[0]) and not misfits.has(refs[12]), "another copy of the same device may be one"
    assert misfits.add(MisfitError("no model", [refs[12]]))
    assert misfits.has(dataclasses.replace(refs[0], blob=BlobId("f" * 64))), "but not for ever"
    holder, other = made_by[2:4]
    misfits.never_came(misfits_of.FETCH_TIMEOUT_S - 1, [holder])
    assert not misfits.has(refs[1], [holder])
    misfits.never_came(2.0, [holder])
    assert misfits.has(refs[1], [holder]), "who says to have it never hands out anything"
    assert not misfits.has(refs[1], [holder, other]) and not misfits.has(refs[2], [other]), "but for others' copies"
    record = dataclasses.replace(blank_record(made_by[0], b"k" * 40, 1), holdings=tuple(refs[3:6]))
    huge = dataclasses.replace(refs[3], num_bytes=1 << 40)
    assert misfits_of.credible_bytes(huge, [record]) == 4, "a made-up size buys no time"
    answers = [misfits.add(MisfitError("no model", [ref])) for ref in refs[2:]]
    assert answers[:14] == [True] * 14 and not any(answers[14:])
