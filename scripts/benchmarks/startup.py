"""How long from process start to group, plan and first training step.

All peers start at once on one machine and share its cores: with many peers, starting torch that many times is what
takes longest. The plan waits for all peers and then half a second, or what is left of ``settle_s`` (the job's default)
since the last one came.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Column, Sample, Settings, child_environment
from benchmarks.peers import PeerGroup, wait_for_all
from benchmarks.rows import Row, Section
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.learning.data import open_source, propose_contract

LISTED = {
    "startup": "seconds from process start to group, plan and first training step",
}
BASELINE = "bare interpreters; bare interpreters that import torch, as many at once as there are peers"
COLUMNS = (
    Column("imported_s", "node up, s", 2),
    Column("group_s", "group, s", 2),
    Column("plan_s", "plan, s", 2),
    Column("training_s", "training, s", 2),
    Column("first_step_s", "first step, s", 2),
    Column("s", "in all, s", 2),
)
TIMEOUT_S = 90.0


def digits_job(num_peers: int, **group: Any) -> Job:
    """LeNet on digits in replicas; a round is one step, so that the end of the first round shows the first step."""
    return Job(
        name="benchmark",
        mode="replicas",
        model=ModelConfig("lenet"),
        data=propose_contract(open_source("digits")),
        training=TrainingConfig(rounds=1, epochs_per_round=0.001, batch_size=32),
        group=GroupConfig(min_peers=num_peers, **group),
    )


def run(settings: Settings) -> Iterator[Sample]:
    sizes = (2,) if settings.tiny else (3, 8)
    group = {"settle_s": 0.1} if settings.tiny else {}
    for repetition in settings.repetitions:
        yield Sample("python", repetition, {"s": _run_at_once(1, "pass")}, is_baseline=True)
        for size in sizes:
            figures = {"s": _run_at_once(size, "import torch")}
            yield Sample(f"import torch x {size}", repetition, figures, is_baseline=True)
            for how in ("mdns", "address"):
                if settings.tiny and how == "mdns":
                    continue
                figures = start_group(digits_job(size, **group), size, by_address=how == "address")
                yield Sample(f"{size} peers by {how}", repetition, figures)


def start_group(job: Job, num_peers: int, *, by_address: bool) -> dict[str, float]:
    """Seconds from the start of the first process until the last peer has got as far."""
    with (
        tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder,
        PeerGroup(Path(folder), job, "digits", by_address=by_address) as group,
    ):
        peers = group.add_many(num_peers)
        start = min(peer.started_at for peer in peers)
        return {
            "imported_s": wait_for_all(peers, "imported", TIMEOUT_S) - start,
            "listening_s": wait_for_all(peers, "listening", TIMEOUT_S) - start,
            "group_s": wait_for_all(peers, "note:admitted", TIMEOUT_S, num_peers - 1) - start,
            "plan_s": wait_for_all(peers, "note:plan-adopted", TIMEOUT_S) - start,
            "training_s": wait_for_all(peers, "note:training", TIMEOUT_S) - start,
            "first_step_s": wait_for_all(peers, "note:round", TIMEOUT_S) - start,
        }


def _run_at_once(num_processes: int, code: str) -> float:
    start = time.monotonic()
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=child_environment()) for _ in range(num_processes)]
    for process in processes:
        process.wait(TIMEOUT_S)
    return time.monotonic() - start


FIGURES = Section(
    "What it costs",
    "Starting a group",
    [
        Row(
            "startup",
            f"{peers} peers at once, found by mDNS: from process start to the group, the plan, the first step",
            f"{{{peers} peers by mdns/group_s:.1f}} s; {{{peers} peers by mdns/plan_s:.1f}} s;"
            f" {{{peers} peers by mdns/first_step_s:.1f}} s",
            f"`import torch` as often, at once: {{import torch x {peers}/s:.1f}} s",
        )
        for peers in (3, 8)
    ],
)
