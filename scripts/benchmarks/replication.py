"""What saving a pipeline's blocks and copying them to two others costs: samples a second with and without, in turn.

Four peers train VGG-11 at half width, each behind a link of its own of 100 Mbit/s (namespaces, which takes Linux and
root; ``--tiny``: on loopback). A round is longer than a case, so without snapshots there is none at all. *As chosen* is
the default: peers choose how often they save by what that costs (``modes/pipeline/stage/interval.py``). *Every 20
batches* is for comparison with what it was before copies had a pace of their own: 8 to 18 % then.

All three cases of a repetition run one after the other, every other time in the other order; what a case lost is
against the one without snapshots beside it. Peers are not held to shares of a core, so on a machine with fewer cores
than peers all work of nodes and disks counts, too, which on four devices would partly be done meanwhile.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Column, Sample, Settings
from benchmarks.peers import PeerProcess, wait_for_all
from benchmarks.recovery import Work, vgg11
from benchmarks.recovery_group import START_S, peers_of, pictures, trainers
from benchmarks.rows import Row, Section
from p2ptrain.errors import UserError
from p2ptrain.experiment.processes import wait_until

LISTED = {"replication": "a pipeline with and without snapshots and copies: what they cost"}
BASELINE = "no snapshots, and so no copies"
COLUMNS = (
    Column("samples_per_s", "samples/s", 1),
    Column("difference", "against without, %", 1),
    Column("saves_every", "batches between snapshots", 0),
    Column("copies", "copies made", 0),
    Column("load", "load", 1),
)
NEVER = 1_000_000
CASES = {"no snapshots": NEVER, "as chosen": 0, "every 20 batches": 20}
WITHOUT = "no snapshots"
RATE_MBIT = 100.0
WARM_UP_S, MEASURED_S = 10.0, 35.0
TINY_S = 4.0
LOOKS = 2
"""A stage tells its step every ten batches or so; a pace is of two of them at least."""


def work() -> Work:
    """A round is thousands of batches."""
    found = vgg11(0.5)
    return dataclasses.replace(found, training=dataclasses.replace(found.training, epochs_per_round=1000.0))


def run(settings: Settings) -> Iterator[Sample]:
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as kept:
        times, data = Path(kept) / "times.json", pictures(Path(kept))
        for repetition in settings.repetitions:
            found = {}
            for name in [*CASES] if repetition % 2 == 0 else [*reversed(CASES)]:
                found[name] = _measured(CASES[name], times, data, settings)
            for name, figures in found.items():
                without = found[WITHOUT]["samples_per_s"]
                figures["difference"] = 100 * (figures["samples_per_s"] / without - 1)
                yield Sample(name, repetition, figures, name == WITHOUT)


def _measured(snapshot_steps: int, times: Path, data: str, settings: Settings) -> dict[str, float]:
    job = dataclasses.replace(work(), snapshot_steps=snapshot_steps).job(data, "light")
    with peers_of(job, 4, 0.0 if settings.tiny else RATE_MBIT, times, data) as peers:
        staffed = trainers(peers)
        if len(staffed) < 2:
            raise UserError("one peer trains alone: there is nothing to copy from stage to stage")
        wait_for_all(staffed, "note:stage", START_S)
        time.sleep(TINY_S if settings.tiny else WARM_UP_S)
        began = time.monotonic()
        time.sleep(TINY_S if settings.tiny else MEASURED_S)
        last = staffed[-1]
        wait_until(lambda: len(_looks(last, began)) >= LOOKS, START_S, "two looks at the last stage")
        looks, load = _looks(last, began), os.getloadavg()[0]
        acked = [e for peer in staffed for e in peer.seen("note:replica-acked") if e.at > began]
        (first_at, first), (last_at, final) = looks[0], looks[-1]
        every = [e.fields["steps"] for peer in staffed for e in peer.seen("note:saves-every")]
        return {
            "samples_per_s": (final - first) * job.training.batch_size / (last_at - first_at),
            "saves_every": float(every[-1]) if every and snapshot_steps != NEVER else 0.0,
            "copies": float(len(acked)),
            "load": load,
        }


def _looks(peer: PeerProcess, since: float) -> list[tuple[float, int]]:
    return [(e.at, int(e.fields["step"])) for e in peer.seen("note:stage") if e.at > since]


def _row(case: str, often: str) -> Row:
    return Row(
        "replication",
        f"VGG-11 at half width, four peers on 100 Mbit/s: samples a second, saved and copied {often}",
        f"{{{case}/samples_per_s:.1f}}, {{{case}/difference:+.1f}} %",
        f"no snapshots: {{{WITHOUT}/samples_per_s:.1f}}",
    )


FIGURES = Section(
    "Pipelines",
    "What copies cost",
    [_row("as chosen", "as often as they choose"), _row("every 20 batches", "every 20 batches")],
)
