"""Split training in the lab: seconds of a round for every way to cut, share and help, measured and predicted.

One device with a whole core and no samples helps four weak ones of 0.4 to 0.05 of a core, over links of 5 to 100
Mbit/s. Each case trains the same rounds of the same samples by another plan: as the group plans, and by the strategies
that it is compared with (``planning.split.strategies``). Models are narrow and samples few (``WIDTHS``, ``SAMPLES``):
the slowest case takes minutes, not hours. A round lasts until all copies of each block are averaged and everybody
begins the next one. The first round does not count: caches fill, and heaps grow. What is predicted is of the plan that
the case trained by, from the times of blocks that the devices measured themselves.

    scripts/bench.py split --only "all alone" --only "one mid cut" --only planned      some cases, three repetitions
    scripts/bench.py split --resume                                                    then all others

``split-mobilenet`` is the same with MobileNetV2, ``split-alexnet`` with AlexNet; ``split-two-helpers`` has two helpers
of half a core each; ``split-shared-medium`` one medium of 100 Mbit/s for all, as on one Wi-Fi, planned as such; in
``split-memory`` the two weakest devices have not the memory to train the model alone, which the lab enforces. Needs
Linux and root, as the lab does.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab import host, jobs, rehearsal, session
from lab.quota import sweep
from lab.spec import Device, LabSpec, device_of

from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.rows import Remark, Row, Section
from benchmarks.tasks import data_file
from p2ptrain.api import Status
from p2ptrain.core.plan import Plan
from p2ptrain.errors import NotCoveredError
from p2ptrain.modes.split.plan import SplitBody
from p2ptrain.planning.devices.footprint import PEER_BASE_BYTES, SPARE_PART

LISTED = {
    "split": "split training in a lab: seconds of a round for every strategy, measured and predicted",
    "split-mobilenet": "the same with MobileNetV2 in place of VGG-11",
    "split-alexnet": "the same with AlexNet, whose blocks have many parameters for their work",
    "split-two-helpers": "the same with two helpers",
    "split-shared-medium": "the same where one medium carries all that the room sends",
    "split-memory": "the same with two devices that have not the memory to train alone",
}
BASELINE = "all alone (federated averaging); one mid cut for all"
COLUMNS = (
    Column("round_s", "s a round", 1),
    Column("predicted_s", "predicted", 1),
    Column("measured_of_predicted", "measured/predicted speed", 2),
    Column("times_alone", "x all alone", 2),
    Column("times_mid_cut", "x one mid cut", 2),
    Column("times_common_cut", "x best common cut", 2),
    Column("helped", "helped", 0),
    Column("limited", "short of memory, and train", 0),
    Column("rounds", "rounds measured", 0),
)
ALONE, MID_CUT, COMMON, UNSPLIT, PLANNED = (
    "all alone",
    "one mid cut",
    "best common cut, equal shares",
    "no micro-batches in flight",
    "planned",
)
CASES = {
    ALONE: "alone",
    MID_CUT: "mid-cut",
    COMMON: "common-cut",
    "cuts only": "cuts-only",
    "shares only": "shares-only",
    "alternating": "alternating",
    UNSPLIT: "unsplit",
    PLANNED: "planned",
}
TINY_CASES = (ALONE, PLANNED)
WEAK = {"weak-1": (0.4, 100.0), "weak-2": (0.2, 50.0), "weak-3": (0.1, 20.0), "weak-4": (0.05, 5.0)}
"""Shares of a core, and Mbit/s."""
HELPERS = {"helper": (1.0, 100.0)}
TWO_HELPERS = {"helper-1": (0.5, 100.0), "helper-2": (0.5, 50.0)}
LIMITED = ("weak-3", "weak-4")
LIMITED_BYTES = 60e6
"""That these may take for their blocks: VGG-11 takes more than 110 MB with gradients and momentum."""
CHOICES = tuple(CASES)
WIDTHS = {"vgg11": 0.35, "mobilenetv2": 0.5, "alexnet": 0.5}
"""Of the models; where devices are short of memory, VGG-11 has all of its width."""
BATCH_SIZE, MICRO_BATCHES = 32, 8
SAMPLES = 128
"""Of each owner: a round of four batches."""
LIMITED_SAMPLES = 64
NUM_SAMPLES = 50_000
"""Of CIFAR-10."""
TINY_SAMPLES = 64
MOST_S, FEW_ROUNDS, MOST_ROUNDS, ENOUGH_S = 600.0, 1, 2, 15.0
"""A case is over when so many rounds are measured, or at least so few and so many seconds are over."""


@dataclass(slots=True)
class RoundPace:
    """When all who train had begun each round, as one who looks on sees it.

    Only plans with ``owners`` units count: a room that has lost a weak device has faster rounds.
    """

    owners: int
    began: dict[int, float] = field(default_factory=dict)
    """By round, of the plan in force."""
    plan: Plan | None = None
    seconds: float = 0.0
    names: dict[str, str] = field(default_factory=dict)
    """Of the devices, by peer."""

    def trains(self, device: str) -> bool:
        """Whether the plan has a unit on its samples."""
        units = self.plan.body.split.units if self.plan is not None and isinstance(self.plan.body, SplitBody) else ()
        return any(self.names.get(unit.owner) == device for unit in units)

    def look(self, seconds: float, status: Status) -> None:
        self.seconds, plan = seconds, status.plan
        self.names |= {record.peer: record.name for record in status.records}
        if plan is None or not isinstance(plan.body, SplitBody):
            return
        if self.plan is None or plan.hash != self.plan.hash:
            self.plan, self.began = plan, {}
        owners = {unit.owner for unit in plan.body.split.units}
        if len(owners) < self.owners:
            return
        rounds = [r.round for r in status.records if r.peer in owners and r.plan == plan.hash and r.phase == "training"]
        if len(rounds) == len(owners):
            self.began.setdefault(min(rounds), seconds)

    @property
    def measured(self) -> tuple[int, float]:
        """Rounds and seconds, without the first round of the plan."""
        rounds = sorted(self.began)[1:]
        if len(rounds) < 2:
            return 0, 0.0
        return rounds[-1] - rounds[0], self.began[rounds[-1]] - self.began[rounds[0]]

    def is_over(self) -> bool:
        rounds, seconds = self.measured
        return rounds >= MOST_ROUNDS or (rounds >= FEW_ROUNDS and seconds >= ENOUGH_S) or self.seconds >= MOST_S


def run(settings: Settings) -> Iterator[Sample]:
    yield from compare("vgg11", settings)


def compare(
    model: str,
    settings: Settings,
    helpers: Mapping[str, tuple[float, float]] = HELPERS,
    medium: str = "switched",
    *,
    limited: bool = False,
) -> Iterator[Sample]:
    """The cases of one model and room, in turn; with ``tiny`` a LeNet and two of them. ``limited``: the weakest devices
    are short of memory, and what is planned is the only case."""
    controllers = host.check_host()
    sweep(controllers)
    for repetition in settings.repetitions:
        cases = {PLANNED: CASES[PLANNED]} if limited else CASES
        if settings.tiny:
            cases = {name: cases[name] for name in TINY_CASES if name in cases}
        if cases := {name: strategy for name, strategy in cases.items() if settings.wants(name, repetition)}:
            yield from _measured(cases, model, settings, repetition, helpers, medium, controllers, limited=limited)


def devices_of(
    helpers: Mapping[str, tuple[float, float]], samples: int, total: int, *, limited: bool = False
) -> tuple[Device, ...]:
    """The helpers without samples, and the weak ones with so many of ``total`` each."""
    parts = max(1, total // samples)
    short_mb = {name: memory_mb_of(LIMITED_BYTES) for name in LIMITED if limited}
    return (
        *(device_of(name, share, rate, has_data=False) for name, (share, rate) in helpers.items()),
        *(
            device_of(name, share, rate, short_mb.get(name, 0.0), shard=f"{number}/{parts}")
            for number, (name, (share, rate)) in enumerate(WEAK.items(), 1)
        ),
    )


def memory_mb_of(num_bytes: float) -> float:
    """Of a device that can take so many for its blocks (``pipeline_bytes``)."""
    return (num_bytes + PEER_BASE_BYTES) * SPARE_PART / (SPARE_PART - 1) / 1e6


def compared(samples: Sequence[Sample]) -> list[Sample]:
    """In the order of the cases, each beside the others of its repetition."""
    found = {(sample.case, sample.repetition): sample.figures["round_s"] for sample in samples}
    made = []
    for sample in sorted(samples, key=lambda sample: (CHOICES.index(sample.case), sample.repetition)):
        figures = dict(sample.figures)
        for figure, other in (("times_alone", ALONE), ("times_mid_cut", MID_CUT), ("times_common_cut", COMMON)):
            if (seconds := found.get((other, sample.repetition))) is not None:
                figures[figure] = seconds / figures["round_s"]
        made.append(replace(sample, figures=figures))
    return made


def _measured(
    cases: Mapping[str, str],
    model: str,
    settings: Settings,
    repetition: int,
    helpers: Mapping[str, tuple[float, float]],
    medium: str,
    controllers: Any,
    *,
    limited: bool,
) -> Iterator[Sample]:
    tables: dict[str, Any] = {"model": {"name": model, "width": 1.0 if limited else WIDTHS[model]}}
    samples, total = LIMITED_SAMPLES if limited else SAMPLES, NUM_SAMPLES
    if settings.tiny:
        tables, data = {"model": {"name": "lenet", "width": 2.0}}, "digits"
        samples, total = TINY_SAMPLES, 1437
    else:
        data = f"images:{data_file('cifar10-images.zip')}"
    devices = devices_of(helpers, samples, total, limited=limited)
    times: Mapping[str, bytes] | None = None
    for name, strategy in cases.items():
        spec = spec_of(f"split, {name}", data, tables, devices, strategy, medium, SEED + repetition)
        job = jobs.job_of(spec)
        if times is None:
            _, times = rehearsal.rehearse(job, devices, controllers)
        pace = RoundPace(len(WEAK))
        with tempfile.TemporaryDirectory(prefix="p2ptrain-split-") as out, contextlib.suppress(NotCoveredError):
            session.run(
                spec,
                job,
                controllers,
                Path(out),
                lambda text: None,
                pace.look,
                calibrated=False,
                until=pace.is_over,
                rehearsed=times,
            )
        figures = figures_of(pace, name)
        if limited:
            figures["limited"] = float(sum(pace.trains(name) for name in LIMITED))
        yield Sample(name, repetition, figures, is_baseline=name != PLANNED)


def figures_of(pace: RoundPace, name: str) -> dict[str, float]:
    """Raises ``TimeoutError`` where no round was measured."""
    rounds, seconds = pace.measured
    if rounds < FEW_ROUNDS or pace.plan is None or not isinstance(pace.plan.body, SplitBody):
        raise TimeoutError(f"{name}: no round of all weak devices was measured within {MOST_S:g} s")
    split = pace.plan.body.split
    return {
        "round_s": seconds / rounds,
        "predicted_s": split.round_s,
        "measured_of_predicted": split.round_s * rounds / seconds,
        "helped": float(sum(unit.helper is not None for unit in split.units)),
        "rounds": float(rounds),
    }


def spec_of(
    name: str,
    data: str,
    tables: Mapping[str, Any],
    devices: Sequence[Device],
    strategy: str,
    medium: str,
    seed: int,
) -> LabSpec:
    job = {
        "seed": seed,
        "mode": "split",
        **tables,
        "training": {"rounds": 1000, "batch_size": BATCH_SIZE, "learning_rate": 0.01, "schedule": "constant"},
        "split": {"strategy": strategy, "micro_batches": MICRO_BATCHES, "medium": medium},
    }
    return LabSpec(name, data, job, tuple(devices), train_s=MOST_S)


def _case(model: str, **values: Any) -> SimpleNamespace:
    run = partial(compare, model, **values)
    return SimpleNamespace(BASELINE=BASELINE, COLUMNS=COLUMNS, CHOICES=CHOICES, compared=compared, run=run)


NAMED = {
    "mobilenet": _case("mobilenetv2"),
    "alexnet": _case("alexnet"),
    "two-helpers": _case("vgg11", helpers=TWO_HELPERS),
    "shared-medium": _case("vgg11", medium="shared"),
    "memory": _case("vgg11", limited=True),
}


def _row(file: str, words: str) -> Row:
    return Row(
        file,
        f"Split training of {words}, four weak devices: seconds of a round; how many times as fast; measured/predicted",
        "{planned/round_s:.1f} s<; {planned/times_alone:.1f} times all alone><; {planned/times_mid_cut:.1f} times one"
        " mid cut><; {planned/times_common_cut:.2f} times the best common cut>; {planned/measured_of_predicted:.2f}",
        "".join(
            f"<{name}: {{{name}/round_s:.1f}} s, {{{name}/measured_of_predicted:.2f}} of predicted. >"
            for name in CASES
            if name != PLANNED
        ),
    )


FIGURES = Section(
    "Unlike devices",
    "Split training with a helper",
    (
        _row("split", "VGG-11 (width 0.35) with one helper"),
        _row("split-mobilenet", "MobileNetV2 (width 0.5) with one helper"),
        _row("split-alexnet", "AlexNet (width 0.5) with one helper"),
        _row("split-two-helpers", "VGG-11 (width 0.35) with two helpers"),
        _row("split-shared-medium", "VGG-11 (width 0.35) with one helper on one medium"),
        Row(
            "split-memory",
            "Split training of VGG-11 where two of four devices have not the memory to train it alone: how many of the"
            " two train; seconds of a round",
            "{planned/limited:.0f}; {planned/round_s:.1f}",
        ),
    ),
    (
        Remark(
            "split",
            "A plan is predicted from times of blocks that the devices measured themselves: planned rounds did"
            " {planned/measured_of_predicted:.2f} of the predicted speed.",
        ),
    ),
)
