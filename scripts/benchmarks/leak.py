"""What 20 deaths in 2,000 batches and more leave behind: memory, disk and open files of a pipeline's peers.

Four peers train a small model on loopback, a piece each. One of two of them is killed and started again, no sooner than
100 batches after the one before, and when that one is back; the other two live all the time. A figure is a slope, by
least squares over what was looked at every 25 batches after the first quarter, of 1,000 batches more: of the peer where
it is the steepest. Memory and open files are of the two that live, their nodes and trainers by themselves; disk is of
all four state directories. Flat is within what the same group shows without deaths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.common import Column, Sample, Settings
from benchmarks.peers import PeerGroup, PeerProcess, wait_for_all
from benchmarks.rows import Row, Section
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.modes.pipeline.config import PipelineConfig

LISTED = {"leak": "2,000 batches and more of a pipeline with 20 deaths: memory, disk and open files"}
BASELINE = "the same group without deaths"
COLUMNS = (
    Column("node_mb", "node, MB/1,000 batches", 2),
    Column("trainer_mb", "trainer, MB/1,000", 2),
    Column("open_files", "open files/1,000", 2),
    Column("disk_mb", "disk, MB/1,000", 2),
    Column("batches", "batches", 0),
    Column("deaths", "deaths", 0),
    Column("node_end_mb", "node at the end, MB", 0),
    Column("open_files_end", "open files", 0),
    Column("disk_end_mb", "disk, MB", 1),
)
NUM_PEERS, MORTAL = 4, (2, 3)
NUM_BATCHES, DEATH_EVERY, LOOK_EVERY = 2000, 100, 25
TINY_BATCHES, TINY_DEATH_EVERY = 120, 40
MOST_S = 900.0
"""Of a case: a slow machine does fewer batches and has fewer deaths, and their numbers are told."""
START_S = 300.0
POLL_S = 0.2


@dataclass
class Looks:
    """What was seen of each peer, by what: (batches done, amount)."""

    seen: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, what: str, number: int, step: int, amount: float) -> None:
        self.seen[what].setdefault(number, []).append((step, amount))

    def steepest(self, what: str, since: int) -> float:
        """By least squares, of 1,000 batches, from batch ``since`` on."""
        slopes = []
        for points in self.seen[what].values():
            late = [point for point in points if point[0] >= since]
            if len(late) > 2:
                steps, amounts = zip(*late, strict=True)
                slopes.append(1000 * float(np.polyfit(steps, amounts, 1)[0]))
        return max(slopes, default=0.0)

    def last(self, what: str) -> float:
        return max(points[-1][1] for points in self.seen[what].values())


def job() -> Job:
    contract = dataclasses.replace(propose_contract(open_source("digits"), None), val=0.0)
    return Job(
        name="leak",
        mode="pipeline",
        model=ModelConfig("lenet"),
        data=contract,
        training=TrainingConfig(rounds=10_000, batch_size=32, schedule="constant"),
        tables=(PipelineConfig(4, strategy="equal", snapshot_steps=10),),
        group=GroupConfig(min_peers=NUM_PEERS, settle_s=1.0),
    )


def run(settings: Settings) -> Iterator[Sample]:
    for repetition in settings.repetitions:
        for name, has_deaths in (("20 deaths", True), ("no deaths", False)):
            yield Sample(name, repetition, _measured(has_deaths, settings.tiny), not has_deaths)


def _measured(has_deaths: bool, tiny: bool) -> dict[str, float]:
    total, every = (TINY_BATCHES, TINY_DEATH_EVERY) if tiny else (NUM_BATCHES, DEATH_EVERY)
    looks, num_deaths = Looks(), 0
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as kept, PeerGroup(Path(kept), job(), "digits") as group:
        peers = group.add_many(NUM_PEERS)
        wait_for_all(peers, "note:plan-adopted", START_S)
        began, step, next_look, next_death = time.monotonic(), 0, 0, every
        due = total // every if has_deaths else 0
        while (step < total or num_deaths < due) and time.monotonic() - began < MOST_S:
            time.sleep(POLL_S)
            step = max(step, _newest(peers))
            if step >= next_look:
                next_look = step + LOOK_EVERY
                _look(looks, peers, Path(kept), step)
            if has_deaths and step >= next_death and all(peer.seen("note:plan-adopted") for peer in peers):
                victim = MORTAL[num_deaths % len(MORTAL)]
                peers[victim].kill()
                group.peers[victim] = peers[victim] = group.start(victim, f"{victim + 1}/{NUM_PEERS}")
                num_deaths, next_death = num_deaths + 1, step + every
        if step < every:
            raise TimeoutError(f"{step} batches in {MOST_S:.0f} s")
    since = step // 4
    return {
        **{what: looks.steepest(what, since) for what in ("node_mb", "trainer_mb", "open_files", "disk_mb")},
        "batches": float(step),
        "deaths": float(num_deaths),
        "node_end_mb": looks.last("node_mb"),
        "trainer_end_mb": looks.last("trainer_mb"),
        "open_files_end": looks.last("open_files"),
        "disk_end_mb": looks.last("disk_mb"),
        "load": os.getloadavg()[0],
    }


def _newest(peers: Sequence[PeerProcess]) -> int:
    told = ("note:stage", "note:first-batch")
    return max((int(found[-1].fields["step"]) for p in peers for kind in told if (found := p.seen(kind))), default=0)


def _look(looks: Looks, peers: Sequence[PeerProcess], folder: Path, step: int) -> None:
    for number, peer in enumerate(peers):
        looks.add("disk_mb", number, step, _bytes(folder / f"peer{number}") / 1e6)
        if number in MORTAL:
            continue
        trainer = peer.trainer
        looks.add("node_mb", number, step, peer.node.memory_info().rss / 1e6)
        looks.add("open_files", 2 * number, step, peer.node.num_fds())
        if trainer is not None:
            with contextlib.suppress(psutil.Error):
                looks.add("trainer_mb", number, step, trainer.memory_info().rss / 1e6)
                looks.add("open_files", 2 * number + 1, step, trainer.num_fds())


def _bytes(folder: Path) -> int:
    """Of all files, some of which go away meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _row(what: str, unit: str) -> Row:
    deaths = "20 deaths"
    return Row(
        "leak",
        f"A pipeline of four, a small model, {{{deaths}/deaths:.0f}} deaths in {{{deaths}/batches:.0f}} batches: "
        f"{unit} more in 1,000 batches, of the peer that grows fastest",
        f"{{{deaths}/{what}:+.2f}}",
        f"without deaths: {{no deaths/{what}:+.2f}}",
    )


FIGURES = Section(
    "Pipelines",
    "What deaths leave behind",
    [
        _row("node_mb", "MB of memory, the node,"),
        _row("trainer_mb", "MB of memory, the trainer,"),
        _row("open_files", "open files"),
        _row("disk_mb", "MB of disk"),
    ],
)
