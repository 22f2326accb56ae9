"""Memory of a peer's node and trainer, waiting for the group and training, for a small and a large model.

The first peer waits alone (data loaded, torch warm) until its trainer rests: *idle*. Then a second one joins and
both train in replicas with gossip: *training*, sampled for some seconds. Measured is the first peer. RSS counts what
is shared (torch's libraries) in full: that is what a device with one peer needs. PSS divides it between the processes
that share it; USS leaves it out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from benchmarks.common import SEED, Column, Sample, Settings, child_environment, memory_mb, peak_rss_mb
from benchmarks.peers import PeerGroup
from benchmarks.rows import Row, Section
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.learning.data import open_source, propose_contract

LISTED = {
    "memory": "memory of a peer's two processes, idle and training, beside plain torch",
}
BASELINE = "bare python, bare python with import torch, and one process that trains the same model on the same data"
COLUMNS = (
    Column("rss_mb", "RSS, MB", 0),
    Column("pss_mb", "PSS, MB", 0),
    Column("uss_mb", "USS, MB", 0),
    Column("peak_rss_mb", "peak RSS, MB", 0),
)
SHAPES = {"lenet": (1, 8, 8), "vgg11_bn": (3, 32, 32)}
NUM_SAMPLES = 512
NUM_CLASSES = 10
TIMEOUT_S = 90.0
REST_S = 0.6


def run(settings: Settings) -> Iterator[Sample]:
    sampled_s = 0.5 if settings.tiny else 5.0
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        for repetition in settings.repetitions:
            for case, code in (("python", ""), ("import torch", "import torch")):
                yield Sample(case, repetition, _of_code(f"{code}\ninput()", "", 0.5), is_baseline=True)
            for model in ("lenet",) if settings.tiny else SHAPES:
                data = random_data(Path(folder), SHAPES[model])
                job = replicas_job(model, data)
                setting = json.dumps({"job": job.to_json(), "data": data})
                figures = _of_code("from benchmarks.memory import train_alone; train_alone()", setting, sampled_s)
                yield Sample(f"{model}: one process, training", repetition, figures, is_baseline=True)
                with tempfile.TemporaryDirectory(dir=folder) as state:
                    for what, figures in _of_peer(Path(state), job, data, sampled_s).items():
                        yield Sample(f"{model}: {what}", repetition, figures)


def random_data(folder: Path, shape: tuple[int, int, int], num_samples: int = NUM_SAMPLES) -> str:
    """The spec of a data set of random pictures of this shape."""
    path = folder / f"random-{'x'.join(map(str, shape))}-{num_samples}.npz"
    if not path.exists():
        rng = np.random.default_rng(SEED)
        x = rng.integers(0, 256, (num_samples, *shape), np.uint8)
        y = np.arange(num_samples) % NUM_CLASSES
        np.savez(path, x_train=x, y_train=y, x_test=x[:NUM_CLASSES], y_test=y[:NUM_CLASSES])
    return f"npz:{path}"


def replicas_job(
    model: str, data: str, *, rounds: int = 100_000, batch_size: int = 32, group: GroupConfig | None = None
) -> Job:
    return Job(
        name="benchmark",
        mode="replicas",
        seed=SEED,
        model=ModelConfig(model),
        data=propose_contract(open_source(data)),
        training=TrainingConfig(rounds=rounds, batch_size=batch_size, learning_rate=1e-3),
        group=group or GroupConfig(settle_s=0.2),
    )


def _of_peer(folder: Path, job: Job, data: str, sampled_s: float) -> dict[str, dict[str, float]]:
    with PeerGroup(folder, job, data) as group:
        peer = group.add("1/2")
        peer.wait_for("listening", TIMEOUT_S)
        trainer = _resting_trainer(peer)
        figures = {"node, idle": _now(peer.node), "trainer, idle": _now(trainer)}
        group.add("2/2")
        peer.wait_for("note:training", TIMEOUT_S)
        peer.wait_for("note:gossip", TIMEOUT_S)
        node, training = _sample_both(peer.node, trainer, sampled_s)
        return figures | {"node, training": node, "trainer, training": training}


def _resting_trainer(peer: object) -> psutil.Process:
    """The trainer process once it has loaded everything: used some CPU, and none for a while."""
    deadline, used, since = time.monotonic() + TIMEOUT_S, -1.0, time.monotonic()
    while time.monotonic() < deadline:
        trainer: psutil.Process | None = peer.trainer  # type: ignore[attr-defined]
        times = trainer.cpu_times() if trainer else None
        now_used = times.user + times.system if times else 0.0
        if now_used > used:
            used, since = now_used, time.monotonic()
        elif trainer and now_used > 1.0 and trainer.status() == "sleeping" and time.monotonic() - since > REST_S:
            return trainer
        time.sleep(0.05)
    raise TimeoutError("the trainer did not come to rest")


def _now(process: psutil.Process) -> dict[str, float]:
    figures = memory_mb(process)
    return figures | {"peak_rss_mb": peak_rss_mb(process, figures["rss_mb"])}


def _sample_both(
    node: psutil.Process, trainer: psutil.Process, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians over some seconds."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append((_now(node), _now(trainer)))
        time.sleep(0.1)
    return _medians([s[0] for s in samples]), _medians([s[1] for s in samples])


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    figures = {name: float(np.median([s[name] for s in samples])) for name in samples[0]}
    return figures | {"peak_rss_mb": max(s["peak_rss_mb"] for s in samples)}


def _of_code(code: str, line: str, seconds: float) -> dict[str, float]:
    """Of an interpreter that runs ``code`` until its standard input closes, once it has read ``line`` or waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=child_environment(),
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        if line:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "training\n":
                raise TimeoutError("the training process ended too early")
        watched = psutil.Process(process.pid)
        if not line:
            _wait_for_rest(watched)
        return _sample_both(watched, watched, seconds)[0]
    finally:
        process.kill()
        process.communicate()


def _wait_for_rest(process: psutil.Process) -> None:
    used, since, deadline = -1.0, time.monotonic(), time.monotonic() + TIMEOUT_S
    while time.monotonic() - since < REST_S and time.monotonic() < deadline:
        times = process.cpu_times()
        if times.user + times.system > used or process.status() != "sleeping":
            used, since = times.user + times.system, time.monotonic()
        time.sleep(0.05)


def train_alone() -> None:
    """The baseline: a plain training loop in one process, with the same data and steps as a peer. Ends when killed."""
    setting = json.loads(sys.stdin.readline())
    import torch

    from p2ptrain.learning.data import load
    from p2ptrain.learning.models import build_model
    from p2ptrain.modes.jobs import job_from_json

    torch.set_num_threads(1)
    job = job_from_json(setting["job"], "benchmark")
    data = load(open_source(setting["data"]), job.data, "train")
    model = build_model(
        job.model.name, input_shape=tuple(job.data.input_shape), num_classes=len(job.data.classes), seed=job.seed
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.training.learning_rate, momentum=job.training.momentum)
    rng = np.random.default_rng(SEED)
    for step in range(10**9):
        if step == 3:
            print("training", flush=True)
        if step % 8 == 0:
            batches = data.batches(rng, job.training.batch_size)
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y.long()).backward()
        optimizer.step()


FIGURES = Section(
    "What it costs",
    "Memory of a peer",
    (
        Row(
            "memory",
            "memory (PSS) of a node: idle; training LeNet; training VGG-11",
            "{lenet: node, idle/pss_mb:.0f} MB; {lenet: node, training/pss_mb:.0f} MB;"
            " {vgg11_bn: node, training/pss_mb:.0f} MB",
            "`import torch`: {import torch/pss_mb:.0f} MB",
        ),
        Row(
            "memory",
            "memory (PSS) of a trainer: LeNet; VGG-11",
            "{lenet: trainer, training/pss_mb:.0f} MB; {vgg11_bn: trainer, training/pss_mb:.0f} MB",
            "the same loop in one process: {lenet: one process, training/pss_mb:.0f} MB;"
            " {vgg11_bn: one process, training/pss_mb:.0f} MB",
        ),
    ),
)
