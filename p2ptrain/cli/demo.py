"""``p2ptrain demo``: a whole group on this machine, on real data, with central training beside it.

Invariant: what it prints was measured in this very run; every process it started is gone when it ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from p2ptrain.cli.shared.options import Names, Share, UserPath
from p2ptrain.cli.shared.outputs import check_folder
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import P2PTrainError, UserError

EPILOG = """\b
Examples:
  p2ptrain demo                                   digits, three peers, a share of the samples each
  p2ptrain demo --disjoint                        each peer sees only its own classes
  p2ptrain demo --mode split                      two weak peers with samples, and a fast one that helps them
  p2ptrain demo --data images:photos.zip --model vgg11_bn --width 1 --peers 5 --rounds 20
  p2ptrain demo --data images:photos.zip --model vgg11_bn --width 1 --peers 5 --same --budget 1/11.8
  p2ptrain demo --paper                           class sub-models at a twelfth of the work, in hours
"""


PAPER_ROWS = ("digits", "speakers", "vgg", "alexnet", "disjoint", "cifar100")
WEAK = 0.25
"""Of this machine's speed: what a device has that needs help."""


@click.command(epilog=EPILOG)
@click.option("--out", type=UserPath(), default="p2ptrain-demo", show_default=True, help="Folder for the results.")
@click.option(
    "--peers", "num_peers", type=click.IntRange(1, 64), default=3, show_default=True, help="How many peers to start."
)
@click.option(
    "--data", default="digits", show_default=True, help="Data set: digits, images:DIR_OR_ZIP, audio:DIR_OR_ZIP, ..."
)
@click.option("--disjoint", is_flag=True, help="Each peer has only samples of its own classes (class y: peer y mod P).")
@click.option("--same", is_flag=True, help="Every peer has all the samples, in place of a share each.")
@click.option("--subset", default="1/1", show_default=True, help="Use this share of the training samples, such as 1/5.")
@click.option(
    "--mode",
    type=click.Choice(["tasks", "replicas", "split"]),
    default="tasks",
    show_default=True,
    help="Class sub-models; the whole model on every peer; or weak peers of which each trains the front of the model, "
    "and one without samples the rest.",
)
@click.option("--model", default="lenet", show_default=True, help="A built-in model.")
@click.option(
    "--width",
    type=float,
    help="Width of the global model, times the model's own. [default: 2; 4 in mode split]",
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of one epoch each. [default: 12; 6 in mode split]")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples a step.")
@click.option(
    "--lr", type=float, default=0.05, show_default=True, help="Learning rate (SGD with momentum, cosine schedule)."
)
@click.option("--weight-decay", type=float, default=5e-4, show_default=True, help="Weight decay.")
@click.option(
    "--augment/--no-augment", default=False, show_default=True, help="Random crops and flips, or shifts of sound."
)
@click.option(
    "--groups",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Class groups: fewer are wider, and peers share them; 0 = one a peer, as far as that makes sense.",
)
@click.option(
    "--trunk", type=click.IntRange(0), default=0, show_default=True, help="First layers shared by all sub-models."
)
@click.option(
    "--targets",
    type=click.Choice(["auto", "all", "rest", "own"]),
    default="auto",
    show_default=True,
    help="What sub-models learn of other classes.",
)
@click.option(
    "--own-fraction",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of each batch from own classes; 0 = as the data fall.",
)
@click.option(
    "--fit-head",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Re-fit the head as a group.",
)
@click.option(
    "--head-fit-steps", type=click.IntRange(1), default=100, show_default=True, help="Averaged gradient steps."
)
@click.option(
    "--head-fit-decay",
    type=click.FloatRange(0, 10),
    default=0.01,
    show_default=True,
    help="Weight decay of the re-fit.",
)
@click.option(
    "--compression",
    type=click.Choice(["none", "fp16", "int8", "topk"]),
    default="none",
    show_default=True,
    help="Of gossiped parameters.",
)
@click.option(
    "--budget",
    type=Share(),
    default=0.0,
    metavar="PART",
    help="Of the work of central training, what each peer may spend in all, such as 1/11.8: parts are as narrow, and "
    "pass their samples as often, as that pays. [default: one pass for one of central training]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the job.")
@click.option(
    "--central/--no-central", default=True, show_default=True, help="Train the same model centrally for comparison."
)
@click.option(
    "--central-epochs",
    type=click.FloatRange(0, min_open=True),
    help="Passes of central training. [default: as many as the job's]",
)
@click.option(
    "--paper",
    is_flag=True,
    help="In place of one group: class sub-models with a twelfth of the work beside central training, on the data in "
    "P2PTRAIN_DATA. Takes hours; cut off, it goes on where it was.",
)
@click.option(
    "--paper-rows",
    type=Names(),
    default=(),
    metavar="NAMES",
    help=f"Some of {', '.join(PAPER_ROWS)}. [default: those with data]",
)
@click.option("--paper-epochs", type=Names(), default=(), metavar="N,N", help="Of central training. [default: 10,30]")
@click.option("--paper-seeds", type=click.IntRange(1, 50), default=3, show_default=True, help="Runs of each.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json instead of the table.")
def command(
    *,
    paper: bool,
    paper_rows: tuple[str, ...],
    paper_epochs: tuple[str, ...],
    paper_seeds: int,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Start peers on this machine that find each other, train class sub-models, and assemble one model."""
    check_folder(out)
    if paper:
        run_paper(out, paper_rows, paper_epochs, paper_seeds, as_json)
    else:
        run_demo(out=out, as_json=as_json, **options)


def run_paper(out: Path, names: tuple[str, ...], epochs: tuple[str, ...], num_seeds: int, as_json: bool) -> None:
    """Class sub-models beside central training, row by row."""
    if unknown := sorted(set(names) - set(PAPER_ROWS)):
        raise UserError(f"--paper-rows {', '.join(unknown)}: expected some of {', '.join(PAPER_ROWS)}")
    if wrong := [text for text in epochs if not (text.isdigit() and 0 < int(text) <= 10_000)]:
        raise UserError(f"--paper-epochs {', '.join(wrong)}: expected numbers of passes, such as 10,30")
    from p2ptrain.experiment import paper

    rows = [row for row in paper.ROWS if row.name in (names or PAPER_ROWS)]
    if epochs:
        rows = [dataclasses.replace(row, epochs=tuple(sorted({int(text) for text in epochs}))) for row in rows]
    places = paper.Places(Path(os.environ.get("P2PTRAIN_DATA", ".")), out)
    if not names:
        lacking = [row.archive for row in rows if not places.has(row)]
        rows = [row for row in rows if places.has(row)]
        if not rows:
            raise UserError(f"none of {', '.join(dict.fromkeys(lacking))} is in {places.data}; set P2PTRAIN_DATA")
        if lacking:
            click.echo(f"not in {places.data}, and left out: {', '.join(dict.fromkeys(lacking))}", err=True)
    table = paper.PaperTable(places, lambda text: click.echo(text, err=True))
    table.run(rows, num_seeds, paper.train)
    lines = table.figures(rows, num_seeds)
    text = json.dumps(lines, indent=1)
    (out / "table.json").write_text(text + "\n", encoding="utf-8")
    (out / "table.md").write_text(paper.table_text(lines) + "\n", encoding="utf-8")
    click.echo(text if as_json else paper.table_text(lines))


def run_demo(
    *,
    out: Path,
    num_peers: int,
    data: str,
    disjoint: bool,
    same: bool,
    subset: str,
    central: bool,
    central_epochs: float | None,
    as_json: bool,
    **job: Any,
) -> None:
    from p2ptrain.experiment import group
    from p2ptrain.learning.data import open_source

    if disjoint and same:
        raise UserError("--disjoint and --same exclude each other: choose one")
    source = open_source(data)
    if not source.num_samples("test"):
        raise UserError(f"{data} has no test samples to measure with; put them into a folder named test")
    description = make_job(source, num_peers, **job)
    how = "disjoint" if disjoint else "same" if same else "iid"
    helped = _is_helped(description.mode)
    if helped and num_peers < 2:
        raise UserError(f"--peers {num_peers}: one helps in mode {description.mode}, so there must be two at least")
    shares = group.shares(num_peers - helped, description.data.classes, how, subset)
    shares = group.with_helper(shares, WEAK) if helped else shares
    experiment = group.Experiment(description, data, shares, central_epochs=central_epochs or 0.0)
    (out / "job.toml").write_text(description.to_toml(), encoding="utf-8")
    line = ProgressLine(quiet=as_json, rounds=description.training.rounds)
    line.say(f"{num_peers} peers, {data}, {description.model.name}; results in {out}/")
    if helped:
        line.say(f"those with samples run at {WEAK:.0%} of this machine's speed, as weak devices do; the last has none")
    with tempfile.TemporaryDirectory(prefix="p2ptrain-demo-") as directory:
        try:
            outcome = group.run(experiment, Path(directory), line.say, line.group)
        except P2PTrainError:
            keep_logs(Path(directory), out)
            raise
    line.say(f"harvested after {outcome.trained_s:.0f} s; evaluating")
    finish(experiment, outcome, out, central, as_json, line)


def _is_helped(mode: str) -> bool:
    """Whether one peer has no samples, and trains with the others."""
    from p2ptrain.modes.registry import MODES

    return not MODES[mode].needs_data


def finish(experiment: Any, outcome: Any, out: Path, central: bool, as_json: bool, line: ProgressLine) -> None:
    """Save the model, train centrally, evaluate, print."""
    from p2ptrain.api import save_harvest
    from p2ptrain.experiment import measure
    from p2ptrain.ui.demo_table import demo_table

    save_harvest(out / "global.safetensors", outcome.harvest)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    baseline = measure.central_training(experiment, threads, line.central) if central else None
    result = measure.measure(experiment, outcome, baseline, threads)
    text = json.dumps(result.to_plain(), indent=1)
    (out / "result.json").write_text(text + "\n", encoding="utf-8")
    line.clear()
    click.echo(text if as_json else demo_table(result, out))


def make_job(
    source: Any, num_peers: int, *, mode: Any, model: str, width: float | None, rounds: int | None, batch_size: int,
    lr: float, weight_decay: float, augment: bool, groups: int, trunk: int, targets: Any, own_fraction: float,
    fit_head: Any, head_fit_steps: int, head_fit_decay: float, compression: Any, budget: float, seed: int,
) -> Job:  # fmt: skip
    """The job of the demo, checked. Help pays where there is more to compute."""
    width, rounds = width or (4.0 if _is_helped(mode) else 2.0), rounds or (6 if _is_helped(mode) else 12)
    from p2ptrain.learning.data import propose_contract
    from p2ptrain.modes.jobs import check_job, with_settings

    job = Job(
        name="demo",
        mode=mode,
        seed=seed,
        model=ModelConfig(name=model, width=width),
        # Test samples tell how good it is, and nothing is chosen here: everybody trains on all others.
        data=dataclasses.replace(propose_contract(source, augment=augment), val=0.0),
        training=TrainingConfig(rounds=rounds, batch_size=batch_size, learning_rate=lr, weight_decay=weight_decay),
        group=GroupConfig(min_peers=num_peers, settle_s=0.5, compression=compression),
    )
    job = with_settings(
        job,
        "tasks",
        num_groups=groups,
        trunk=trunk,
        targets=targets,
        own_fraction=own_fraction,
        fit_head=fit_head,
        head_fit_steps=head_fit_steps,
        head_fit_decay=head_fit_decay,
        budget=budget,
        passes=0.0 if budget else 1.0,
    )
    if _is_helped(mode):  # to be seen, whether it pays on this machine or not
        job = with_settings(job, mode, strategy="common-cut")
    check_job(job, "demo")
    return job


def keep_logs(directory: Path, out: Path) -> None:
    """What the peers printed, for whoever wants to know what went wrong."""
    for log in directory.glob("*.log"):
        (out / log.name).write_bytes(log.read_bytes())
    click.echo(f"the peers' logs are in {out}/", err=True)


class ProgressLine:
    """One line that is painted over on a terminal; elsewhere a line now and then."""

    def __init__(self, quiet: bool, rounds: int) -> None:
        self._quiet = quiet
        self._rounds = rounds
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._said_at = 0.0
        self._plan = ""
        """The hash of the one that was told last."""

    def say(self, text: str) -> None:
        self.clear()
        if not self._quiet:
            click.echo(text, err=True)

    def group(self, seconds: float, status: Any) -> None:
        """How far the peers are; and once who trains what, where the mode has words for it."""
        self._tell_plan(status)
        peers = []
        for record in sorted(status.records, key=lambda r: r.name):
            loss = f" loss {record.loss:.2f}" if record.samples else ""
            peers.append(f"{record.name} {record.phase} {record.round}/{self._rounds}{loss}")
        self._paint(f"{seconds:5.0f} s  " + ("; ".join(peers) or "the peers are starting"))

    def _tell_plan(self, status: Any) -> None:
        from p2ptrain.modes.registry import mode_of
        from p2ptrain.ui.status_table import with_names

        plan, known = status.plan, {record.peer for record in status.records}
        if plan is None or status.job is None or plan.hash == self._plan or not known.issuperset(plan.trainers()):
            return
        self._plan = plan.hash
        for line in mode_of(status.job).words.plan_lines(plan, status.job):
            self.say(f"  {with_names(status, line)}")

    def central(self, epoch: int, loss: float) -> None:
        self._paint(f"central training: epoch {epoch}, loss {loss:.3f}")

    def clear(self) -> None:
        if self._terminal and self._last:
            click.echo("\r\x1b[K", nl=False, err=True)
        self._last = ""

    def _paint(self, text: str) -> None:
        if self._quiet:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns
            click.echo(f"\r\x1b[K{text[: width - 1]}", nl=False, err=True)
        elif text != self._last and time.monotonic() - self._said_at > 5:
            self._said_at = time.monotonic()
            click.echo(text, err=True)
        self._last = text
