"""``job continue``, and what ``peer`` says of a job that is nearly the last one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

from p2ptrain.cli.job import command
from p2ptrain.cli.shared.continue_job import differing, new_job_hint
from p2ptrain.config import DataConfig, Job, TrainingConfig
from p2ptrain.ids import GroupTag
from p2ptrain.learning.checkpoint import save_model
from p2ptrain.learning.initial import told_classes
from p2ptrain.learning.models import global_model
from p2ptrain.modes.jobs import init_path, load_job
from p2ptrain.runtime.store.kept import MODEL, KeptJob, kept_job
from p2ptrain.runtime.store.manifest import Manifest
from p2ptrain.runtime.store.state_dir import StateDir

DATA = DataConfig(("cat", "dog"), (1, 8, 8), mean=(0.0,), std=(1.0,))
JOB = Job(data=DATA, training=TrainingConfig(rounds=3))
GROUP = GroupTag("group")
PART = {"part": 0, "classes": ["cat", "dog"], "share": 1.0, "trainers": ["me"], "round": 3, "rounds": 3}


def write_model(path: Path, job: Job = JOB, **extra: Any) -> Path:
    state = global_model(job, allow_user_code=False).state_dict()
    save_model(path, state, job, {"lineage": [PART], "completeness": "complete", **extra})
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """In which the job was trained to its end."""
    directory = StateDir(tmp_path / "state")
    store = directory.open_job(JOB.id)
    store.set_job(JOB.to_json())
    directory.save_job(GROUP, JOB.id)
    store.close()
    directory.close()
    write_model(tmp_path / "state" / JOB.id / MODEL)
    return tmp_path / "state"


def run(folder: Path, *words: str, job: Job = JOB) -> tuple[int, str]:
    (folder / "job.toml").write_text(job.to_toml(), encoding="utf-8")
    more = ["continue", str(folder / "job.toml"), *words, "-o", str(folder / "more.toml")]
    result = CliRunner().invoke(command, more)
    return result.exit_code, result.output + str(result.exception or "")


def test_it_goes_on_from_the_model_that_was_written(tmp_path: Path, state: Path) -> None:
    status, said = run(tmp_path, "--state", str(state), "--rounds", "+2")
    assert status == 0 and "2 more rounds" in said and "3 behind it" in said
    new = load_job(tmp_path / "more.toml")
    path = init_path(tmp_path / "more.toml")
    assert path is not None and path == (tmp_path / "more.safetensors").resolve() and path.stat().st_size > 1000
    assert differing(JOB, new) == {"training.rounds", "model.init", "model.init_bytes"}
    from p2ptrain.learning.snapshots import read_init

    old, _ = read_init(path)
    assert all(torch.equal(old[n], t) for n, t in global_model(JOB, allow_user_code=False).state_dict().items())
    status, said = run(tmp_path, "--state", str(state))
    assert status != 0 and "--force" in said
    (tmp_path / "state" / JOB.id / MODEL).unlink()
    assert path.is_file(), "a file of its own"


def test_a_job_file_whose_rounds_were_raised_already_goes_on_too(tmp_path: Path, state: Path) -> None:
    raised = dataclasses.replace(JOB, training=TrainingConfig(rounds=6))
    assert run(tmp_path, "--state", str(state), job=raised)[0] == 0
    assert load_job(tmp_path / "more.toml").training.rounds == 6


def test_a_harvested_model_is_taken_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    given = write_model(tmp_path / "models" / "half.safetensors", completeness="half-way")
    status, said = run(tmp_path, "--model", str(given))
    assert status == 0 and "half-way model" in said
    assert init_path(tmp_path / "more.toml") == given.resolve()


def test_what_is_missing_or_does_not_fit_is_said(tmp_path: Path, state: Path) -> None:
    status, said = run(tmp_path, "--state", str(tmp_path / "nowhere"))
    assert status != 0 and "keeps nothing of this job" in said and "p2ptrain harvest" in said
    (state / JOB.id / MODEL).unlink()
    status, said = run(tmp_path, "--state", str(state))
    assert status != 0 and "was not done yet" in said and "start the peer again" in said
    other = dataclasses.replace(JOB, data=dataclasses.replace(DATA, classes=("cat", "fox")))
    status, said = run(tmp_path, "--model", str(write_model(tmp_path / "other.safetensors", other)))
    assert status != 0 and "other classes" in said
    (tmp_path / "text").write_text("no model")
    said = run(tmp_path, "--model", str(tmp_path / "text"))[1]
    assert "no model of p2ptrain" in said and "job new --init" in said and "--force" not in said
    assert "no such file" in run(tmp_path, "--model", str(tmp_path / "missing"))[1]
    assert not (tmp_path / "more.toml").exists()


def test_a_job_that_differs_from_the_last_one_is_said_to_be_new(tmp_path: Path, state: Path) -> None:
    kept = kept_job(state, GROUP)
    raised = dataclasses.replace(JOB, training=TrainingConfig(rounds=6))
    path = Path("job.toml")
    assert new_job_hint(JOB, path, kept) == new_job_hint(JOB, path, None) == ""
    said = new_job_hint(raised, path, kept)
    assert "starts from nothing" in said and "training.rounds alone (3 before, 6 now)" in said
    assert "p2ptrain job continue job.toml --rounds 3 -o more.toml" in said
    renamed = dataclasses.replace(raised, name="mine", seed=4)
    assert "in name, seed, training.rounds. To go on with that one, start without --job" in new_job_hint(
        renamed, path, kept
    )
    unfinished = KeptJob(tmp_path, JOB, Manifest(job=JOB.to_json()))
    assert "start without --job" in new_job_hint(raised, path, unfinished)
    meant = dataclasses.replace(raised, model=dataclasses.replace(JOB.model, init="0" * 64, init_bytes=9))
    assert new_job_hint(meant, path, kept) == "", "it says what it starts from"


THREE = ("Pepper,_bell", "Käse", "dog")


def job_of(*classes: str, **changes: Any) -> Job:
    return dataclasses.replace(JOB, data=dataclasses.replace(DATA, classes=classes), **changes)


def test_a_new_class_comes_after_the_others_which_keep_their_rows(tmp_path: Path, state: Path) -> None:
    status, said = run(tmp_path, "--state", str(state), "--classes", "+ant", "--classes", '+"Eel, raw",+Bär')
    assert status == 0 and "2 of 5 classes keep what it has learnt of them" in said, said
    assert "new, so with fresh weights: ant, Eel, raw, Bär" in said
    new = load_job(tmp_path / "more.toml")
    assert new.data.classes == ("cat", "dog", "ant", "Eel, raw", "Bär")
    assert differing(JOB, new) == {"data.classes", "model.init", "model.init_bytes"}


def test_a_job_file_with_a_class_more_goes_on_from_the_model_without(tmp_path: Path, state: Path) -> None:
    grown = job_of("ant", "cat", "dog")
    status, said = run(tmp_path, "--state", str(state), job=grown)
    assert status == 0 and "2 of 3 classes keep" in said, said
    assert load_job(tmp_path / "more.toml").data.classes == ("ant", "cat", "dog")
    said = new_job_hint(grown, Path("job.toml"), kept_job(state, GROUP))
    assert "in data.classes. To go on from that one's model: p2ptrain job continue job.toml -o more.toml" in said
    fewer = job_of("cat", "fox")
    assert "start without --job" in new_job_hint(fewer, Path("job.toml"), kept_job(state, GROUP))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["+Dog"], "has the class 'dog' already"),
        (["+ant,ANT"], "'ant' is too"),
        (["ant"], "classes can only be added here; write +ant"),
        (["+"], "write different names with commas between them"),
        (["+ant,ant"], "write different names"),
        (["+ant", "+ant"], "a class is named twice"),
    ],
)
def test_classes_that_are_no_new_ones_are_refused(tmp_path: Path, state: Path, words: list[str], reason: str) -> None:
    more = [word for each in words for word in ("--classes", each)]
    status, said = run(tmp_path, "--state", str(state), *more)
    assert status != 0 and reason in said, said
    assert not (tmp_path / "more.toml").exists() and not (tmp_path / "more.safetensors").exists()


def test_the_classes_of_a_text_can_not_grow(tmp_path: Path) -> None:
    data = DataConfig(tuple(map(str, range(256))), (1, 1, 16), "text", mean=(0.0,), std=(1.0,))
    text = Job(data=data, mode="replicas")
    status, said = run(tmp_path, "--classes", "+256", job=text)
    assert status != 0 and "the classes of a text are its bytes" in said


def test_an_old_model_that_names_no_classes_has_those_of_the_job(tmp_path: Path) -> None:
    job = job_of(*THREE)
    given = without_classes(write_model(tmp_path / "old.safetensors", job))
    before = given.read_bytes()
    status, said = run(tmp_path, "--model", str(given), "--classes", "+ant", job=job)
    assert status == 0 and "does not say its classes: they are taken to be those of" in said, said
    assert "3 of 4 classes keep" in said and given.read_bytes() == before
    path = init_path(tmp_path / "more.toml")
    assert path == (tmp_path / "more.safetensors").resolve()
    assert told_classes(path) == THREE
    status, said = run(tmp_path, "--model", str(given), "--force", job=job_of("cat", "dog"))
    assert status != 0 and "fc2.weight is [3, 120] there and [2, 120] here" in said, said


def without_classes(path: Path) -> Path:
    """As a version wrote it that did not say them."""
    with safe_open(path, framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "classes"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors, path, metadata)
    return path
