"""How long the short commands take: ``p2ptrain --help``, and ``p2ptrain status`` in a group that is there.

Of ``status`` three times count: of the whole command; until it has started (its modules are imported, which a peer's
device needs not wait for the network for); and from there on, which is finding the group, asking and leaving. The
group is three peers of this machine that train LeNet on digits, found by the address of one of them.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import Column, Sample, Settings, child_environment
from benchmarks.peers import PeerGroup, wait_for_all
from benchmarks.rows import Row, Section
from benchmarks.startup import digits_job
from p2ptrain.config import Job
from p2ptrain.experiment.processes import LOOPBACK

LISTED = {
    "quick": "seconds that `--help` and `status` take",
}
BASELINE = "a bare interpreter"
COLUMNS = (
    Column("s", "in all, s", 3),
    Column("imported_s", "until it has started, s", 3),
    Column("asking_s", "from then on, s", 3),
)
TIMEOUT_S = 90.0
NUM_PEERS, TIMES, TINY_TIMES = 3, 5, 1
"""Each command is run so often; the median counts."""
COMMAND = (sys.executable, "-m", "p2ptrain.cli.main")
IMPORTS = (sys.executable, "-c", "import p2ptrain.cli.main, p2ptrain.api, p2ptrain.ui.status_table")


def run(settings: Settings) -> Iterator[Sample]:
    times = TINY_TIMES if settings.tiny else TIMES
    _took_s(IMPORTS)  # the first run compiles
    for repetition in settings.repetitions:
        yield Sample("python", repetition, {"s": _median_s((sys.executable, "-c", "pass"), times)}, is_baseline=True)
        yield Sample("help", repetition, {"s": _median_s((*COMMAND, "--help"), times)})
        yield Sample("status", repetition, _status(times))


def _status(times: int) -> dict[str, float]:
    """Of three peers, while they train."""
    with (
        tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder,
        PeerGroup(Path(folder), _job(), "digits") as group,
    ):
        wait_for_all(group.add_many(NUM_PEERS), "note:training", TIMEOUT_S)
        found_by = ("--peer", group.address, "--interface", LOOPBACK, "--no-discovery")
        asked = (*COMMAND, "status", "--code", group.code, *found_by)
        imported_s, s = _median_s(IMPORTS, times), _median_s(asked, times)
    return {"s": s, "imported_s": imported_s, "asking_s": s - imported_s}


def _job() -> Job:
    """That goes on for as long as it is looked at."""
    job = digits_job(NUM_PEERS)
    return dataclasses.replace(job, training=dataclasses.replace(job.training, rounds=10_000, epochs_per_round=1.0))


def _median_s(command: Sequence[str], times: int) -> float:
    return sorted(_took_s(command) for _ in range(times))[times // 2]


def _took_s(command: Sequence[str]) -> float:
    environment = {key: value for key, value in child_environment().items() if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)
    return time.monotonic() - start


FIGURES = Section(
    "What it costs",
    "Commands that only look",
    (
        Row("quick", "`p2ptrain --help`, all of it", "{help/s:.2f} s", "a bare interpreter: {python/s:.2f} s"),
        Row(
            "quick",
            "`p2ptrain status` of three peers that train, found by address: all of it; once its modules are imported",
            "{status/s:.2f} s; {status/asking_s:.2f} s",
        ),
    ),
)
