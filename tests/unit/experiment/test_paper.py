"""The table beside central training: chosen by validation samples, resumed where it was cut off, and what it says."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest

from p2ptrain.cli.demo import PAPER_ROWS
from p2ptrain.errors import UserError
from p2ptrain.experiment.paper import (
    BUDGET,
    ROWS,
    SEARCH_SEED,
    Figures,
    PaperRow,
    PaperTable,
    Places,
    Run,
    Say,
    experiment_of,
    table_text,
)
from p2ptrain.modes.jobs import table_of

ROW = PaperRow(
    "digits",
    "spoken digits, DS-CNN",
    "audio",
    "a.zip",
    "dscnn",
    16,
    rates=(0.05, 0.1),
    augments=("none", "all"),
    decays=(0.001, 0.01),
)


class Trainer:
    """Makes up figures: most right with augmentation centrally, without it in the group."""

    def __init__(self, fails_at: int = 1000) -> None:
        self.runs: list[Run] = []
        self._fails_at = fails_at

    def __call__(self, run: Run, places: Places, say: Say) -> Figures:
        if len(self.runs) == self._fails_at:
            raise KeyboardInterrupt
        self.runs.append(run)
        suits = run.augment == ("all" if run.way == "central" else "none")
        figures = {"val": 90.0 + suits, "val_loss": (1.0 if run.rate == 0.1 else 2.0) - run.decay}
        if run.way == "group":
            figures |= {"share": 0.08 + 0.001 * run.seed, "group_share": 0.4}
        return figures | ({"test": 80.0 + run.seed - (run.way == "group")} if run.tests else {})


def test_settings_are_chosen_for_each_way_by_validation_samples_and_then_tested(tmp_path: Path) -> None:
    trained = Trainer()
    table = PaperTable(Places(tmp_path, tmp_path))
    table.run([ROW], 3, trained)
    search, final = trained.runs[:9], trained.runs[9:]
    assert not any(run.tests for run in search) and {run.seed for run in search} == {SEARCH_SEED}
    assert {run.epochs for run in search} == {10}
    assert [(run.way, run.rate, run.augment) for run in search if run.decay == 0.01] == [("group", 0.1, "none")]
    assert len(final) == 2 * 2 * 3 and all(run.tests for run in final) and {run.seed for run in final} == {0, 1, 2}
    for run in final:
        assert (run.augment, run.rate, run.decay) == (
            ("all", 0.1, 0.0) if run.way == "central" else ("none", 0.1, 0.01)
        )


def test_what_was_cut_off_goes_on_and_nothing_is_done_twice(tmp_path: Path) -> None:
    first, second, third = Trainer(fails_at=12), Trainer(), Trainer()
    with pytest.raises(KeyboardInterrupt):
        PaperTable(Places(tmp_path, tmp_path)).run([ROW], 3, first)
    PaperTable(Places(tmp_path, tmp_path)).run([ROW], 3, second)
    keys = [run.key for run in first.runs + second.runs]
    assert len(keys) == len(set(keys)) == 9 + 12
    PaperTable(Places(tmp_path, tmp_path)).run([ROW], 4, third)
    assert {run.seed for run in third.runs} == {3}


def test_rows_that_share_central_training_train_once(tmp_path: Path) -> None:
    trained = Trainer()
    rows = [ROW, dataclasses.replace(ROW, name="disjoint", how="disjoint")]
    PaperTable(Places(tmp_path, tmp_path)).run(rows, 1, trained)
    assert [run.way for run in trained.runs].count("central") == 4 + 2
    assert [run.way for run in trained.runs].count("group") == 2 * (5 + 2)


def test_the_table_says_means_spreads_and_work(tmp_path: Path) -> None:
    table = PaperTable(Places(tmp_path, tmp_path))
    table.run([ROW], 3, Trainer())
    lines = table.figures([ROW, dataclasses.replace(ROW, model="not run")], 3)
    assert [line["epochs"] for line in lines] == [10, 30]
    assert lines[0]["central"] == {"mean": 81.0, "deviation": 1.0, "low": 80.0, "high": 82.0}
    central, group = ({"rate": 0.1, "augment": how, "decay": d} for how, d in (("all", 0.0), ("none", 0.01)))
    assert lines[0]["chosen"] == {"central": central, "group": group}
    text = table_text(lines)
    assert "| spoken digits, DS-CNN | 81.0 ± 1.0 % | 10 | 80.0 ± 1.0 % | -1.0 points | 1/12.2 | 1/2.5 |" in text


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paper.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match=r"paper\.json: no table of this command's"):
        PaperTable(Places(tmp_path, tmp_path))
    assert json.loads((tmp_path / "paper.json").read_text()) == {"accuracy": 1}


def test_rows_are_as_the_command_says() -> None:
    assert tuple(row.name for row in ROWS) == PAPER_ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_missing_file_is_named(tmp_path: Path, row: PaperRow) -> None:
    with pytest.raises(UserError, match=f"{row.archive}: no such file; P2PTRAIN_DATA names the folder"):
        experiment_of(Run(row, "group", 10, 0.1, "none", 0, 0.001, True), Places(tmp_path, tmp_path))


def test_a_group_has_a_budget_and_central_training_everybodys_samples(tmp_path: Path) -> None:
    rows = (0, 1) * 20
    for split in ("train", "test"):
        for number, label in enumerate(rows):
            file = tmp_path / "x" / split / f"class{label}" / f"{number}.ppm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"P6 32 32 255 " + bytes([100 * label]) * (3 * 32 * 32))
    row = PaperRow("x", "x", "images", "x", "lenet", 8, how="disjoint", epochs=(4,))
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "x").rglob("*.ppm")):
            archive.write(file, file.relative_to(tmp_path / "x"))
    row = dataclasses.replace(row, archive="x.zip")
    apart, central = (
        experiment_of(Run(row, way, 4, 0.1, "light", 3, 0.001, True), Places(tmp_path, tmp_path))
        for way in ("group", "central")
    )
    tasks = table_of(apart.job, "tasks")
    assert (tasks.budget, tasks.passes, tasks.fit_head) == (BUDGET, 0.0, "always")
    assert apart.job.data.augment and apart.job.data.light and apart.job.training.rounds == 4
    assert {share.classes for share in apart.shares} == {("class0",), ("class1",), ()}
    assert {share.classes for share in central.shares} == {()}


def test_a_word_by_a_speaker_is_a_class(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for split in ("train", "test"):
            for word, speaker in (("one", "ann"), ("one", "bob_x"), ("two", "ann")):
                archive.writestr(f"{split}/{word}/{speaker}_3.wav", f"{split} {word} {speaker}")
    row, places = dataclasses.replace(ROW, speakers=True), Places(tmp_path, tmp_path)
    spec = places.source(row)
    with zipfile.ZipFile(spec.partition(":")[2]) as made:
        assert sorted({name.split("/")[1] for name in made.namelist()}) == ["one ann", "one bob_x", "two ann"]
        assert made.read("test/one bob_x/bob_x_3.wav") == b"test one bob_x"
    (tmp_path / "a.zip").write_bytes(b"")
    assert places.source(row) == spec  # packed once
    assert (
        Run(row, "group", 1, 0.1, "none", 0, 0.001, True).key != Run(ROW, "group", 1, 0.1, "none", 0, 0.001, True).key
    )
