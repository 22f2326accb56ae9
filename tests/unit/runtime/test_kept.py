"""The last job of a group in a state directory, what a peer makes of it, and which file gives way to a model."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain import api, lasting
from p2ptrain.cli.shared.peer_session import prepare_state
from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.ids import GroupTag, JobId, blob_id
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime.model_writer import copy_whole
from p2ptrain.runtime.node import group_job
from p2ptrain.runtime.store.kept import GROUPS, all_jobs, kept_job, load_groups, newest_job, why_none
from p2ptrain.runtime.store.state_dir import StateDir

ONE, TWO = GroupTag("one"), GroupTag("two")
JOB = Job(data=DataConfig(("cat", "dog"), (1, 8, 8), mean=(0.0,), std=(1.0,)))
OTHER = dataclasses.replace(JOB, name="other")


def keep(state: Path, group: GroupTag, job: Job) -> None:
    directory = StateDir(state)
    store = directory.open_job(job.id)
    store.set_job(job.to_json())
    directory.save_job(group, job.id)
    store.close()
    directory.close()


def test_each_group_has_its_last_job(tmp_path: Path) -> None:
    assert kept_job(tmp_path, ONE) is None and newest_job(tmp_path / "nowhere") is None
    keep(tmp_path, ONE, JOB)
    keep(tmp_path, TWO, OTHER)
    keep(tmp_path, ONE, OTHER)
    keep(tmp_path, ONE, JOB)
    for group, job in ((ONE, JOB), (TWO, OTHER)):
        kept = kept_job(tmp_path, group)
        assert kept is not None and kept.job == job and kept.round == 0 and kept.model is kept.plan is None
    assert [each.job for each in all_jobs(tmp_path)] == [JOB, OTHER], "the last used first"
    for name in ("manifest.json", "manifest.old.json"):
        (tmp_path / JOB.id / name).write_text("{", encoding="utf-8")
    assert [each.job for each in all_jobs(tmp_path)] == [OTHER], "what can't be read is not there"
    assert f"{JOB.id}/manifest.json can't be read" in why_none(tmp_path)


def test_what_another_version_kept_is_said_to_be_there(tmp_path: Path) -> None:
    """That it is no state directory would be wrong, and send a person looking for another one."""
    assert "no state directory with a job in it" in why_none(tmp_path / "nowhere")
    keep(tmp_path, ONE, JOB)
    for name in ("manifest.json", "manifest.old.json"):
        path = tmp_path / JOB.id / name
        if path.exists():
            path.write_text(path.read_text(encoding="utf-8").replace('"version": 1', '"version": 2'), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest.json can't be read \(.*version.*another version of p2ptrain"):
        asyncio.run(api.harvest_kept([tmp_path]))


@pytest.mark.parametrize("text", ["", "{", "3", '{"a": 1}', '[["one", "../../etc"]]', '[["one"]]', "[[1, 2]]"])
def test_a_damaged_list_of_groups_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / GROUPS).write_text(text, encoding="utf-8")
    assert load_groups(tmp_path) == {} and kept_job(tmp_path, ONE) is None
    keep(tmp_path, ONE, JOB)
    assert load_groups(tmp_path) == {ONE: JOB.id}


def test_what_a_job_starts_from_stays_so_that_any_member_can_start_the_group_again(tmp_path: Path) -> None:
    data = b"a checkpoint"
    job = dataclasses.replace(JOB, model=ModelConfig(init=blob_id(data), init_bytes=len(data)))
    keep(tmp_path, ONE, job)
    for _ in range(2):
        directory = StateDir(tmp_path)
        store = directory.open_job(job.id)
        store.set_job(job.to_json())
        if not store.blobs.stored():
            store.put(data)
            store.collect()
        assert store.blobs.stored() == {blob_id(data)}
        store.close()
        directory.close()
    (tmp_path / job.id / "blobs" / blob_id(data)).write_bytes(b"damaged")
    directory = StateDir(tmp_path)
    assert not directory.open_job(job.id).blobs.stored()
    directory.close()


def test_jobs_that_were_set_aside_are_not_gone_on_with(tmp_path: Path) -> None:
    keep(tmp_path, ONE, JOB)
    prepare_state(tmp_path, fresh=True)
    assert kept_job(tmp_path, ONE) is None and newest_job(tmp_path) is None


def test_a_kept_job_with_an_own_model_runs_only_where_that_is_allowed(tmp_path: Path) -> None:
    own = dataclasses.replace(JOB, model=ModelConfig(name="mine.net:make"))
    keep(tmp_path, ONE, own)
    with pytest.raises(UserError, match=r"--allow-model mine\.net:make"):
        asyncio.run(group_job.wait_for_kept(tmp_path, ONE, 0.0, ""))
    found = asyncio.run(group_job.wait_for_kept(tmp_path, ONE, 0.0, "mine.net:make"))
    assert found is not None and found.job == own
    assert asyncio.run(group_job.wait_for_kept(tmp_path, TWO, 0.0, "")) is None


def follow(monkeypatch: pytest.MonkeyPatch, phase: str, others: list[str], has_plan: bool = True) -> float:
    """Seconds until a peer with job "ours" leaves it; others have these jobs. -1 = not within an hour."""
    records = {number: SimpleNamespace(job=job) for number, job in enumerate(others)}
    peer: Any = SimpleNamespace(
        job_id="ours",
        group=SimpleNamespace(alive=lambda: list(records)),
        records=SimpleNamespace(get=records.get, own=SimpleNamespace(phase=phase)),
        role=SimpleNamespace(plan="plan" if has_plan else None),
    )
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 3600:
            raise TimeoutError

    monkeypatch.setattr(group_job.asyncio, "sleep", sleep)
    try:
        assert asyncio.run(group_job.superseded(peer, lambda: now)) == "theirs"
    except TimeoutError:
        return -1.0
    return now


@pytest.mark.parametrize(
    ("phase", "others", "has_plan", "is_left"),
    [
        ("training", [], True, False),
        ("training", [""], True, False),
        ("training", ["ours", "theirs"], True, False),
        ("training", ["theirs"], True, True),
        ("waiting", ["theirs"], False, True),
        ("done", ["ours", "theirs"], True, True),
        ("done", ["ours"], True, False),
    ],
)
def test_a_job_that_nobody_asked_for_gives_way_to_that_of_the_others(
    phase: str, others: list[str], has_plan: bool, is_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = follow(monkeypatch, phase, others, has_plan)
    assert (after > 0) is is_left
    if is_left:
        idle = phase == "done" or not has_plan
        assert after > (group_job.NEWS_S if idle else group_job.ALONE_S)
        assert after < group_job.ALONE_S or not idle


def test_without_a_plan_there_is_nothing_to_harvest(tmp_path: Path) -> None:
    keep(tmp_path, ONE, JOB)
    kept = kept_job(tmp_path, ONE)
    assert kept is not None
    with pytest.raises(NotCoveredError, match="no plan was made of this job yet"):
        harvesting.from_state([kept])


# --- files of models ---


def harvest(job: Job = JOB, **plain: Any) -> Any:
    from p2ptrain.core.harvest import KeptHarvest, PartReport

    rounds = plain.pop("rounds", 3)
    part = PartReport(0, ("cat", "dog"), 1.0, ("me",), rounds, 3, 30, 300, 1000)
    return KeptHarvest(job, SimpleNamespace(hash="p", mode="tasks"), {}, {}, (part,), told="told", plain=plain)  # type: ignore[arg-type]


def test_a_model_gives_way_only_to_one_that_is_as_far(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    harvesting.check_replaces(path, harvest())
    harvesting.save(path, harvest(half_way=True, rounds=2))
    harvesting.check_replaces(path, harvest(half_way=True, rounds=2))
    with pytest.raises(UserError, match="after 2 rounds, and what there is now is after 1"):
        harvesting.check_replaces(path, harvest(half_way=True, rounds=1))
    harvesting.save(path, harvest())
    harvesting.check_replaces(path, harvest())
    for other, words in ((harvest(half_way=True), "is the complete model"), (harvest(OTHER), "of another job")):
        with pytest.raises(UserError, match=words):
            harvesting.check_replaces(path, other)
    former = harvesting.former_model(path)
    assert former is not None and former["completeness"] == "complete" and former["report"] == "told"


@pytest.mark.parametrize("content", [b"", b"my thesis", b"\x08\0\0\0\0\0\0\0{}      "])
def test_any_other_file_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "thesis.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"no model of p2ptrain.*--force"):
        harvesting.former_model(path)
    assert path.read_bytes() == content


def test_a_copy_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"model")
    target.write_bytes(b"older")
    synced: list[bytes] = []
    monkeypatch.setattr(lasting, "sync", lambda fd: synced.append(os.read(fd, 5)))
    copy_whole(source, target)
    assert target.read_bytes() == b"model" and target.samefile(source)

    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    source.write_bytes(b"newer")
    copy_whole(source, target)
    assert target.read_bytes() == b"newer"
    with pytest.raises(OSError):
        copy_whole(tmp_path / "missing", target)
    assert synced == [b"model", b"newer"]
    assert target.read_bytes() == b"newer" and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_that_may_only_be_read_is_copied_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"model")
    source.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to all
    copy_whole(source, target)
    assert target.read_bytes() == b"model" and target.stat().st_mode & 0o200


def test_a_group_is_known_by_its_tag_alone(tmp_path: Path) -> None:
    keep(tmp_path, ONE, JOB)
    assert (tmp_path / GROUPS).read_text(encoding="utf-8").count(JOB.id) == 1
    assert load_groups(tmp_path) == {ONE: JobId(JOB.id)}
