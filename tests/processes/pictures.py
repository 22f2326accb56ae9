"""Folders of real pictures, a folder a class, as a user has them: cut from the CIFAR-10 pictures of the shared data."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.modes.tasks.config import TasksConfig

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("P2PTRAIN_DATA", ROOT.parent / "shared" / "data"))
PICTURES = "cifar10-images.zip"


def find_zip() -> Path:
    """The pictures; skips the test where they are not."""
    path = DATA / PICTURES
    if not path.is_file():
        pytest.skip(
            f"no {path}; P2PTRAIN_DATA names the folder with the real data (a clone elsewhere finds it only by that)"
        )
    return path


@cache
def _names(path: Path) -> Mapping[tuple[str, str], list[str]]:
    """Files in the zip by split and class, in order."""
    found = defaultdict(list)
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            split, _, rest = name.partition("/")
            if rest.endswith(".jpg"):
                found[split, rest.partition("/")[0]].append(name)
    return found


def unpack(
    folder: Path, classes: Mapping[str, int] | Iterable[str], each: int = 0, *, split: str, skip: int = 0
) -> str:
    """So many pictures of each class, after the first ``skip`` of it; the folder as a data set for peers.

    ``classes`` says how many of each, or ``each`` does for all.
    """
    wanted = dict(classes) if isinstance(classes, Mapping) else dict.fromkeys(classes, each)
    path = find_zip()
    with zipfile.ZipFile(path) as archive:
        for name, count in wanted.items():
            files = _names(path)[split, name][skip : skip + count]
            assert len(files) == count, f"{path} has not so many pictures of {name}"
            (folder / name).mkdir(parents=True)
            for file in files:
                (folder / name / Path(file).name).write_bytes(archive.read(file))
    return f"images:{folder}"


def picture_job(
    data: str, *, classes: Iterable[str] = (), peers: int = 2, rounds: int = 4, epochs: float = 4.0, seed: int = 0
) -> Job:
    """A small network on pictures of 16 x 16, that learns in seconds; the group chooses the mode.

    ``classes``: those of all peers, where the data of the first don't have them all.
    """
    contract = propose_contract(open_source(data), (3, 16, 16))
    if classes:
        contract = dataclasses.replace(contract, classes=tuple(sorted(classes)))
    return Job(
        name="pictures",
        mode="auto",
        seed=seed,
        model=ModelConfig("lenet"),
        data=contract,
        training=TrainingConfig(rounds=rounds, epochs_per_round=epochs, batch_size=32, learning_rate=0.01),
        tables=(TasksConfig(head_fit_steps=60),),
        group=GroupConfig(min_peers=peers, settle_s=1.0),
    )


def num_samples(job: Job, data: str) -> dict[str, int]:
    """Training samples by class, as a peer counts them: without what is held out for validation."""
    return open_source(data).fitted(job.data).counts("train")
