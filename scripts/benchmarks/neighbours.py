"""The digits workload with p2ptrain and with its neighbours: accuracy, time, memory, traffic, and a kill -9.

Three processes, 12 rounds of one pass over the own samples in batches of 16 (30 local steps on an equal share, 28 to 37
with classes apart), then averaging. Equal for all: scikit-learn's digits, split 1,437 / 360 as p2ptrain splits them;
the shares (``iid``: a third each; ``disjoint``: class y to process y mod 3); LeNet of width 2 from the same initial
weights; SGD with Nesterov momentum 0.9, learning rate 0.05 with warm-up and cosine, weight decay, gradient clipping;
one torch thread a process; torch of one version; 127.0.0.1 in a network namespace of its own, where that is allowed.
Momentum stays local everywhere. A repetition's number is part of the seed.

- *p2ptrain replicas* is the like for like: the whole model on each, averaged by gossip while training goes on. Its head
  is fitted again only where a peer lacks a class, as by default.
- *p2ptrain tasks* is what p2ptrain is for: class sub-models a third as wide, and a head that the group re-fits.
- *hivemind* 1.1.12: ``TrainingAverager`` after the last step of a round, weighted by samples. Its ``Optimizer`` with
  local updates was not taken: its rounds end when a count of samples says so, not after a number of steps. A group of
  three starts at once (``target_group_size``); an incomplete one after 2 s, where its documentation names 3 to 5 s (1 s
  lost groups in trials). Its wheel holds the ``p2pd`` that it needs for Linux on x86-64 alone.
- *torchft* 0.2.0: ``LocalSGD`` over gloo, unweighted, as it does. Its lighthouse, a server, runs beside the three and
  takes a process for dead after 2 s without a heartbeat (its default: 5 s), about when a peer of p2ptrain would.

Both are installed on demand into environments of their own (``environments.py``); what can't be installed, or fails,
stands in the table as a line that says why.

``one killed``: once all have ended round 6, the third process and all that it started get SIGKILL. ``go on`` is the
time until both others have ended one more round including its averaging (p2ptrain replicas: ended a round, and merged
another's parameters; p2ptrain tasks average nothing while they train). Accuracy on the test images is that of the
harvested model for p2ptrain, and for others the mean over the processes left of each one's own model after the last
averaging, which are equal unless an averaging failed. ``round`` is the median time between the ends of two rounds.
RSS is the sum of the peaks of a participant's processes, PSS the sum of what they take at the end; ``sent`` is what
crossed loopback from start to end, headers included, by participant.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import environments
from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.loopback import bytes_sent, own_loopback
from benchmarks.neighbours_groups import (
    HIVEMIND,
    LIGHTHOUSE,
    READY_S,
    TORCHFT,
    WORKERS,
    Files,
    Group,
    p2ptrain_group,
    start_central,
    start_hivemind,
    start_torchft,
    worker_group,
    write_files,
)
from benchmarks.neighbours_observed import memory, rounds, wait_to_go_on
from benchmarks.peers import PeerProcess, wait_for_all
from benchmarks.rows import Remark, Row, Section
from p2ptrain import api
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment.group import PeerShare, shares
from p2ptrain.experiment.measure import accuracy
from p2ptrain.experiment.processes import LOOPBACK
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.learning.models import global_model
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.net.keys import read_code
from p2ptrain.runtime.node.node import NetworkConfig

LISTED = {
    "neighbours": "p2ptrain, hivemind and torchft on one workload: accuracy, seconds, memory, bytes, and a kill -9",
}
BASELINE = "all samples in one plain torch process: the same model, optimizer and passes"
COLUMNS = (
    Column("accuracy_percent", "accuracy, %"),
    Column("round_s", "round, s", 2),
    Column("peak_rss_mb", "peak RSS, MB", 0),
    Column("go_on_s", "go on, s", 2),
    Column("ended", "ended", 0),
    Column("in_all_s", "in all, s"),
    Column("averagings_a_round", "averagings a round", 2),
    Column("processes", "processes", 0),
    Column("pss_mb", "PSS, MB", 0),
    Column("sent_mb", "sent, MB"),
)
NUM_PROCESSES = 3
ROUNDS = 12
BATCH_SIZE = 16
HEAD_FIT_STEPS = 100
TRAINING_S = 240.0
"""The longest that training may take, and, after a kill, the rest of it."""

Framework = Literal["central", "p2ptrain replicas", "p2ptrain tasks", "hivemind", "torchft"]
INSTALLED: tuple[Framework, ...] = ("hivemind", "torchft")
STARTERS = {"central": start_central, "hivemind": start_hivemind, "torchft": start_torchft}
GOES_ON: dict[str, tuple[str, ...]] = {
    "p2ptrain replicas": ("note:round", "note:gossip"),
    "p2ptrain tasks": ("note:round",),
    "hivemind": ("note:averaged", "note:round"),
    "torchft": ("note:averaged", "note:round"),
}
"""What each of those that are left has to do once more."""


@dataclass(frozen=True, slots=True)
class Case:
    framework: Framework
    split: Literal["iid", "disjoint"]
    one_killed: bool = False

    @property
    def name(self) -> str:
        return f"{self.split}{', one killed' if self.one_killed else ''}: {self.framework}"


CASES = tuple(
    Case(framework, split, one_killed)
    for split in ("iid", "disjoint")
    for one_killed in (False, True)
    for framework in ("central", "p2ptrain replicas", "p2ptrain tasks", "hivemind", "torchft")
    if not (framework == "central" and one_killed)
)
TINY = (Case("central", "iid"), Case("p2ptrain replicas", "iid", True), Case("hivemind", "iid"), Case("torchft", "iid"))


def run(settings: Settings) -> Iterator[Sample]:
    pythons, missing = _environments(settings.tiny)
    with own_loopback() as is_own:
        if not is_own:
            print("  no network namespace of our own: bytes sent are not counted", file=sys.stderr)
        for repetition in settings.repetitions:
            for case in TINY if settings.tiny else CASES:
                if case.framework in missing:
                    continue
                name = case.name
                figures: dict[str, float] = {}
                try:
                    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
                        num_rounds = 4 if settings.tiny else ROUNDS
                        seed = SEED + repetition
                        figures = measure_case(case, seed, num_rounds, Path(folder), pythons, count_bytes=is_own)
                except (TimeoutError, P2PTrainError) as error:
                    name = f"{case.name}: failed: {error}"
                yield Sample(name, repetition, figures, is_baseline=case.framework == "central")
            for framework, why in missing.items():
                if not settings.tiny:
                    yield Sample(f"{framework}: not installable here: {why}", repetition, {})


def notes(cases: list[dict[str, Any]]) -> list[str]:
    """The settings that are not p2ptrain's own."""
    versions = {
        framework: line
        for framework in INSTALLED
        for line in (WORKERS / f"requirements-{framework}.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"{framework}==")
    }
    return [
        f"all: {NUM_PROCESSES} processes, {ROUNDS} rounds of one pass, batches of {BATCH_SIZE}, one thread each, torch "
        f"{torch.__version__}; p2ptrain tasks: {HEAD_FIT_STEPS} steps of the head fit",
        f"{versions['hivemind']}: TrainingAverager, {_words(HIVEMIND)}",
        f"{versions['torchft']}: LocalSGD over gloo, {_words(TORCHFT)}; lighthouse: {_words(LIGHTHOUSE)}",
    ]


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items())


def _environments(tiny: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """The neighbours' interpreters, and why there is none. ``tiny``: only those that are there already."""
    pythons: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for framework in INSTALLED:
        requirements = WORKERS / f"requirements-{framework}.txt"
        python = environments.python_of(framework, requirements)
        if python is None and not tiny:
            try:
                python = environments.ensure(framework, requirements)
            except environments.NotInstallableError as error:
                missing[framework] = str(error)
        elif python is None:
            missing[framework] = "no environment yet"
        if python is not None:
            pythons[framework] = python
    return pythons, missing


def make_job(framework: Framework, seed: int, num_rounds: int) -> Job:
    mode = "tasks" if framework == "p2ptrain tasks" else "replicas"
    return Job(
        name="benchmark",
        mode=mode,
        seed=seed,
        model=ModelConfig("lenet", width=2.0),
        data=dataclasses.replace(propose_contract(open_source("digits")), val=0.0),  # all train on all samples
        training=TrainingConfig(rounds=num_rounds, batch_size=BATCH_SIZE),
        tables=(TasksConfig(fit_head="always" if mode == "tasks" else "auto", head_fit_steps=HEAD_FIT_STEPS),),
        group=GroupConfig(min_peers=NUM_PROCESSES, settle_s=0.5),
    )


def measure_case(
    case: Case, seed: int, num_rounds: int, folder: Path, pythons: dict[str, Path], *, count_bytes: bool
) -> dict[str, float]:
    """Figures of one run. Raises ``TimeoutError`` if it does not come to its end."""
    job = make_job(case.framework, seed, num_rounds)
    parts = shares(NUM_PROCESSES, job.data.classes, case.split)
    files = write_files(folder, job, parts)
    sent = bytes_sent() if count_bytes else 0
    with _group(case, folder, job, files, parts, pythons) as group:
        wait_for_all(group.peers, "note:training", READY_S)
        figures, left = {}, list(group.peers)
        if case.one_killed:
            wait_for_all(left, "note:round", TRAINING_S, num_rounds // 2)
            victim = left.pop()
            killed_at = victim.kill()
            went_on_at = wait_to_go_on(left, GOES_ON[case.framework], killed_at, victim.name)
            if went_on_at is not None:
                figures["go_on_s"] = went_on_at - killed_at
        try:
            done_at = wait_for_all(left, "note:done", TRAINING_S)
        except TimeoutError:
            if not case.one_killed:
                raise
            return figures | {"ended": 0.0}
        if count_bytes:
            figures["sent_mb"] = (bytes_sent() - sent) / len(group.peers) / 1e6
        figures |= {"ended": 1.0, "in_all_s": done_at - min(p.started_at for p in group.peers)}
        figures |= memory(group, left) | rounds(left)
        if group.code:
            figures["accuracy_percent"] = 100 * _harvested_accuracy(job, group.code, left)
        else:
            accuracies = [p.seen("note:done")[0].fields["accuracy"] for p in left]
            figures["accuracy_percent"] = 100 * statistics.mean(accuracies)
    return figures


def _group(
    case: Case, folder: Path, job: Job, files: Files, parts: Sequence[PeerShare], pythons: dict[str, Path]
) -> AbstractContextManager[Group]:
    if case.framework.startswith("p2ptrain"):
        return p2ptrain_group(folder, job, files, parts)
    data = [files.everything] if case.framework == "central" else files.shares
    python = pythons.get(case.framework, Path(sys.executable))
    return worker_group(folder, python, job, data, STARTERS[case.framework])


def _harvested_accuracy(job: Job, code: str, peers: Sequence[PeerProcess]) -> float:
    ports = [peer.wait_for("listening", 1.0).fields["port"] for peer in peers]
    network = NetworkConfig((LOOPBACK,), peers=tuple(f"{LOOPBACK}:{port}" for port in ports), discover=False)
    time.sleep(1.0)  # until the last snapshots are known to all
    harvest = asyncio.run(api.harvest(read_code(code), network=network))
    model = global_model(job, allow_user_code=False)
    model.load_state_dict(harvest.state)
    test = load(open_source("digits"), job.data, "test")
    return accuracy(model, test, len(job.data.classes)).accuracy


SUBJECTS = ("p2ptrain tasks", "p2ptrain replicas", "hivemind", "torchft")
FORMS = (
    ("a third of the samples each: accuracy", "{iid: NAME/accuracy_percent:.1f} %"),
    ("disjoint classes: accuracy", "{disjoint: NAME/accuracy_percent:.1f} %"),
    ("seconds a round of 30 steps, averaging included", "{iid: NAME/round_s:.2f} s"),
    ("memory of a participant (PSS)", "{iid: NAME/pss_mb:.0f} MB"),
    ("sent by a participant, 12 rounds", "{iid: NAME/sent_mb:.1f} MB"),
    ("kill -9 of one: the others go on after", "{iid, one killed: NAME/go_on_s:.2f} s"),
    ("accuracy then, a third of the samples each", "{iid, one killed: NAME/accuracy_percent:.1f} %"),
    (
        "accuracy then, disjoint classes (three classes have no samples any more)",
        "{disjoint, one killed: NAME/accuracy_percent:.1f} %",
    ),
)
"""What is said of each; NAME stands for it."""
FIGURES = Section(
    "What comes out",
    "Beside hivemind and torchft",
    [
        Row("neighbours", words, cells[0], cells[1], tuple(cells[2:]))
        for words, form in FORMS
        for cells in [[form.replace("NAME", name) for name in SUBJECTS]]
    ],
    (
        Remark(
            "neighbours",
            "Averaging whole models every 30 steps does well on the disjoint digits too: hivemind"
            " {disjoint: hivemind/accuracy_percent:.1f} %, class sub-models"
            " {disjoint: p2ptrain tasks/accuracy_percent:.1f} %, which send"
            " {disjoint: p2ptrain tasks/sent_mb:.1f} MB where hivemind sends {disjoint: hivemind/sent_mb:.1f}.",
        ),
        Remark(
            "neighbours",
            "When the only one with samples of some classes is killed, p2ptrain's group goes on at once. These classes"
            " keep what their part had learnt, and take no more of other classes' samples than two fitted classes do."
            " The models of hivemind and torchft are averaged on without them. In replicas, what was learnt of them"
            " since the last average is lost.",
        ),
        Remark(
            "neighbours",
            "Replicas average about once a round and keep no snapshots of each other. With classes apart they also fit"
            " the last layer together, and send {disjoint: p2ptrain replicas/sent_mb:.1f} MB, hivemind"
            " {disjoint: hivemind/sent_mb:.1f} MB.",
        ),
    ),
    ("digits, three processes", "p2ptrain, class sub-models", "p2ptrain, replicas", "hivemind", "torchft", "command"),
    in_readme=(
        Row(
            "neighbours",
            "digits: accuracy when the only peer with some of the classes is killed half-way",
            "{disjoint, one killed: p2ptrain tasks/accuracy_percent:.0f} %",
            "hivemind: {disjoint, one killed: hivemind/accuracy_percent:.0f} %; torchft:"
            " {disjoint, one killed: torchft/accuracy_percent:.0f} %",
        ),
    ),
)
