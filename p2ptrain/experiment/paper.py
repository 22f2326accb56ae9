"""The table of class sub-models beside central training: equal data, tuned alike, every device's work counted.

For each row of the table first a search, with a seed of its own: learning rates and augmentation, of central training
and of the group each by itself, judged on validation samples alone. Then, with what won, as many seeds as asked for, at
each number of central passes; only these runs see the test samples, and each of them once.

Invariant: a run's figures are in the file as soon as it has ended, by the settings that they follow from, so a table
that was cut off goes on where it was; what is done is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import UserError
from p2ptrain.experiment import group, measure
from p2ptrain.lasting import in_place_of
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.learning.models import global_model
from p2ptrain.modes.jobs import with_settings

BUDGET = 1 / 11.8
"""Of central training's work, at most, on each device (Chen & Qin, SEC 2020)."""
SEARCH_SEED = 100
"""Of what is chosen by validation samples; the seeds of the table are 0, 1, 2, ..."""
NUM_PEERS = 5
Way = Literal["central", "group"]
Figures = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """``share``: of the training samples one in so many is used. ``epochs``: of central training."""

    name: str
    title: str
    kind: str
    archive: str
    model: str
    batch_size: int
    share: int = 1
    how: str = "same"
    speakers: bool = False
    """Of recordings by SPEAKER_N: a class is a word by one speaker."""
    rates: tuple[float, ...] = (0.05, 0.1)
    augments: tuple[str, ...] = ("none", "light", "all")
    decays: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Weight decays of the last layer's fit. The first is tried with all, the others with what is best by then."""
    epochs: tuple[int, ...] = (10, 30)


ROWS = (
    PaperRow("digits", "spoken digits, DS-CNN", "audio", "spoken-digits.zip", "dscnn", 16),
    PaperRow(
        "speakers", "60 classes: spoken digits by word and speaker, DS-CNN", "audio", "spoken-digits.zip", "dscnn", 16,
        speakers=True,
    ),
    PaperRow("vgg", "CIFAR-10, VGG-11-BN", "images", "cifar10-images.zip", "vgg11_bn", 64, share=5),
    PaperRow("alexnet", "CIFAR-10, AlexNet", "images", "cifar10-images.zip", "alexnet", 64, share=5),
    PaperRow(
        "disjoint", "CIFAR-10, VGG-11-BN, disjoint classes", "images", "cifar10-images.zip", "vgg11_bn", 64, share=5,
        how="disjoint",
    ),
    PaperRow("cifar100", "CIFAR-100, VGG-11-BN", "cifar", "cifar-100-binary", "vgg11_bn", 64),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """``data``: where the archives are; ``out``: where what is made of them may lie."""

    data: Path
    out: Path

    def source(self, row: PaperRow) -> str:
        """What a row is trained on. Raises ``UserError`` naming what is missing."""
        path = self.data / row.archive
        if not path.exists():
            raise UserError(f"{path}: no such file; P2PTRAIN_DATA names the folder with {row.archive}")
        return f"{row.kind}:{self._by_speaker(path) if row.speakers else path}"

    def has(self, row: PaperRow) -> bool:
        return (self.data / row.archive).exists()

    def _by_speaker(self, archive: Path) -> Path:
        """SPLIT/WORD/SPEAKER_N.wav as SPLIT/WORD SPEAKER/SPEAKER_N.wav, packed once."""
        made = self.out / f"{archive.stem}-speakers.zip"
        if made.exists():
            return made
        with in_place_of(made) as draft, zipfile.ZipFile(archive) as given, zipfile.ZipFile(draft, "w") as packed:
            for name in sorted(each for each in given.namelist() if each.endswith(".wav")):
                split, word, file = name.split("/")[-3:]
                packed.writestr(f"{split}/{word} {file.rpartition('_')[0]}/{file}", given.read(name))
        return made


@dataclass(frozen=True, slots=True)
class Run:
    """One training. Its figures follow from this, from the versions and from chance."""

    row: PaperRow
    way: Way
    epochs: int
    rate: float
    augment: str
    seed: int
    decay: float
    """Of the last layer's fit; 0 in central training, which has none."""
    tests: bool
    """Whether the test samples are looked at."""

    @property
    def key(self) -> str:
        """Names it in the file."""
        row = self.row
        way = f"{self.way}, {row.how}, 1/{1 / BUDGET:.4g}" if self.way == "group" else self.way  # which has all samples
        what = [row.archive + (", speakers" if row.speakers else ""), row.model, row.batch_size, row.share, way]
        how = [self.epochs, self.rate, self.augment, self.decay, self.seed, "test" if self.tests else "validation"]
        return json.dumps([*what, *how])


Train = Callable[[Run, Places, Say], Figures]
"""Makes one run."""


class PaperTable:
    """What was found so far is in ``paper.json``, beside what else is made."""

    def __init__(self, places: Places, say: Say = lambda text: None) -> None:
        self._file = places.out / "paper.json"
        self._places = places
        self._say = say
        self._runs: dict[str, Figures] = _read(self._file)

    def search(self, row: PaperRow) -> Iterator[Run]:
        """What has to be run to choose settings: the fewest passes, for both ways alike."""
        for way in ("central", "group"):
            for augment in row.augments:
                for rate in row.rates:
                    decay = row.decays[0] if way == "group" else 0.0
                    yield Run(row, way, min(row.epochs), rate, augment, SEARCH_SEED, decay, tests=False)

    def refinement(self, row: PaperRow) -> list[Run]:
        """What is tried with the group's best of the search."""
        best = self._best([run for run in self.search(row) if run.way == "group"])
        return [dataclasses.replace(best, decay=decay) for decay in row.decays[1:]]

    def _best(self, runs: Sequence[Run]) -> Run:
        """The one that got most validation samples right; of equals that of the lower loss."""
        missing = sum(run.key not in self._runs for run in runs)
        if missing:
            raise UserError(f"{runs[0].row.name}: {missing} runs of the search are missing; run the table again")
        return max(runs, key=lambda run: (self._runs[run.key]["val"], -self._runs[run.key]["val_loss"]))

    def chosen(self, row: PaperRow, way: Way) -> Run:
        """What the search found to be best."""
        runs = [run for run in self.search(row) if run.way == way]
        return self._best([*runs, *self.refinement(row)] if way == "group" else runs)

    def final(self, row: PaperRow, num_seeds: int) -> Iterator[Run]:
        """The runs of the table. The search must have been run."""
        for epochs in row.epochs:
            for seed in range(num_seeds):
                for way in ("central", "group"):
                    best = self.chosen(row, way)
                    yield dataclasses.replace(best, epochs=epochs, seed=seed, tests=True)

    def run(self, rows: Sequence[PaperRow], num_seeds: int, train: Train) -> None:
        """All that is missing."""
        self._places.out.mkdir(parents=True, exist_ok=True)
        for row in rows:
            for run in self.search(row):
                self._once(run, train)
            for run in self.refinement(row):
                self._once(run, train)
            for run in self.final(row, num_seeds):
                self._once(run, train)

    def found(self, run: Run) -> Figures:
        """Of a run that is done."""
        return dict(self._runs[run.key])

    def _once(self, run: Run, train: Train) -> None:
        if run.key in self._runs:
            return
        what = f"{run.row.title}: {run.way}, {run.epochs} epochs, learning rate {run.rate:g}, augment {run.augment}"
        self._say(f"{what}, seed {run.seed}")
        self._runs[run.key] = train(run, self._places, self._say)
        _write(self._file, self._runs)
        found = self._runs[run.key]
        self._say(
            f"  {found['val']:.1f} % of validation samples" + (f", test {found['test']:.1f} %" if run.tests else "")
        )

    def figures(self, rows: Sequence[PaperRow], num_seeds: int) -> list[dict[str, Any]]:
        """A row for each number of passes whose runs are all there."""
        lines = []
        for row in rows:
            if any(run.key not in self._runs for run in self.search(row)):
                continue
            if any(run.key not in self._runs for run in self.refinement(row)):
                continue
            final = list(self.final(row, num_seeds))
            for epochs in row.epochs:
                found: dict[Way, list[Figures]] = {
                    way: [self._runs.get(r.key, {}) for r in final if r.epochs == epochs and r.way == way]
                    for way in ("central", "group")
                }
                if all(each for runs in found.values() for each in runs):
                    lines.append(_line(row, epochs, found, {way: self.chosen(row, way) for way in found}))
        return lines


def _line(
    row: PaperRow, epochs: int, found: Mapping[Way, Sequence[Figures]], chosen: Mapping[Way, Run]
) -> dict[str, Any]:
    def over(way: Way, figure: str) -> dict[str, float]:
        values = [figures[figure] for figures in found[way]]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": statistics.fmean(values), "deviation": spread, "low": min(values), "high": max(values)}

    gaps = [g["test"] - c["test"] for g, c in zip(found["group"], found["central"], strict=True)]
    return {
        "row": row.name,
        "title": row.title,
        "epochs": epochs,
        "seeds": len(gaps),
        "central": over("central", "test"),
        "group": over("group", "test"),
        "difference": statistics.fmean(gaps),
        "times_less": min(1 / figures["share"] for figures in found["group"]),
        "group_times_less": min(1 / figures["group_share"] for figures in found["group"]),
        "chosen": {way: {"rate": r.rate, "augment": r.augment, "decay": r.decay} for way, r in chosen.items()},
    }


def table_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""

    def accuracy(each: Mapping[str, float]) -> str:
        return f"{each['mean']:.1f} ± {each['deviation']:.1f} %"

    rows = [
        "| data, model, 5 peers | central | its epochs | assembled | difference | most of a device | all together |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in lines:
        rows.append(
            f"| {each['title']} | {accuracy(each['central'])} | {each['epochs']} | {accuracy(each['group'])} | "
            f"{each['difference']:+.1f} points | 1/{each['times_less']:.1f} | 1/{each['group_times_less']:.1f} |"
        )
    return "\n".join(rows)


# --- one run ----------------------------------------------------------------------------------------------------------


def train(run: Run, places: Places, say: Say) -> Figures:
    """Central training in this process, or a group of real processes. Accuracies in %."""
    experiment = experiment_of(run, places)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    if run.way == "central":
        model, _ = measure.central_training(experiment, threads)
        return _judged(model, experiment, run.tests)
    with tempfile.TemporaryDirectory(prefix="p2ptrain-paper-") as directory:
        outcome = group.run(experiment, Path(directory), say, lambda seconds, status: None)
    model = global_model(experiment.job, allow_user_code=False)
    model.load_state_dict(outcome.harvest.state)
    central = measure.central_work(experiment)
    works = [record.work_flops for record in outcome.records.values()]
    if not all(works):
        raise UserError("a device does not know what it computed: its model can't be counted")
    return _judged(model, experiment, run.tests) | {"share": max(works) / central, "group_share": sum(works) / central}


def _judged(model: nn.Module, experiment: group.Experiment, tests: bool) -> Figures:
    data, job = open_source(experiment.data), experiment.job
    num_classes = len(job.data.classes)
    val = load(data.fitted(job.data), job.data, "val", None)
    figures = {"val": 100 * measure.accuracy(model, val, num_classes).accuracy, "val_loss": _loss(model, val)}
    if tests:
        test = load(data, job.data, "test")
        figures["test"] = 100 * measure.accuracy(model, test, num_classes).accuracy
    return figures


@torch.no_grad()
def _loss(model: nn.Module, data: Any) -> float:
    model.eval()
    total = 0.0
    for start in range(0, len(data), measure.BATCH_SIZE):
        x, y = data.tensors(slice(start, start + measure.BATCH_SIZE))
        total += float(nn.functional.cross_entropy(model(x), y, reduction="sum"))
    return total / max(1, len(data))


def experiment_of(run: Run, places: Places) -> group.Experiment:
    """The job and who has what. Raises ``UserError`` naming a file that is missing."""
    row = run.row
    spec = places.source(row)
    contract = propose_contract(open_source(spec), augment=run.augment != "none")
    contract = dataclasses.replace(contract, light=run.augment == "light")
    job = Job(
        name=f"paper-{row.name}",
        mode="tasks",
        seed=run.seed,
        model=ModelConfig(row.model),
        data=contract,
        training=TrainingConfig(rounds=run.epochs, batch_size=row.batch_size, learning_rate=run.rate),
        group=GroupConfig(min_peers=NUM_PEERS, settle_s=0.5),
    )
    job = with_settings(job, "tasks", budget=BUDGET, passes=0.0, fit_head="always", head_fit_decay=run.decay)
    how = row.how if run.way == "group" else "same"
    return group.Experiment(job, spec, group.shares(NUM_PEERS, contract.classes, how, f"1/{row.share}"))


# --- the file ---------------------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, Figures]:
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no table of this command's ({error}); move it away, or give another --out") from None
    return {str(key): {str(name): float(value) for name, value in figures.items()} for key, figures in runs.items()}


def _write(file: Path, runs: Mapping[str, Figures]) -> None:
    with in_place_of(file) as draft:
        draft.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
