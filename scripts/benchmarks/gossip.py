"""Replicas averaged by gossip: bytes, accuracy and consensus by group size and compression, on scikit-learn's digits.

Real peers, as processes on loopback, each train the whole model (LeNet) on their share of the samples and exchange
parameters with a random other after every round; the harvested model is the mean of their last snapshots. The *gossip*
bytes are the payloads that a peer merged, from its journal (every payload merged here was sent there); *sent* is all
that it sent: gossip, records, membership, and what the harvest fetched. There are no replica holders, which would send
snapshots too. *Distance*: sqrt(mean ||x_i - mean||^2) / ||mean|| over the peers' snapshots at the end of their rounds,
read from their state directories while they train; rounds of which not every peer's snapshot was seen are left out
(a peer keeps two, and short rounds go by fast), the last is always there.

Peers share this machine's cores: seconds grow with their number, and say little beyond this machine. On a busy one the
peers start and train further apart, which shows in the distance.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plots
from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.rows import Row, Section
from p2ptrain.config import Compression, DataConfig, GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment import group, measure
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.runtime.node import journal

LISTED = {
    "gossip": "replicas of 2 to 8 real peers: bytes, accuracy and consensus by compression, beside central training",
}
BASELINE = "the same model trained centrally on all the samples, for as many epochs, in this process"
COLUMNS = (
    Column("accuracy", "accuracy, %", 1),
    Column("gossip_mb", "gossip, MB a peer", 2),
    Column("sent_mb", "sent, MB a peer", 2),
    Column("exchanges", "merges a peer", 1),
    Column("distance", "distance at the end, %", 2),
    Column("training_s", "training, s", 1),
    Column("formed_s", "formed after, s", 1),
)
NUM_PEERS = (2, 4, 8)
COMPRESSIONS: tuple[Compression, ...] = ("none", "fp16", "int8", "topk")
ROUNDS = 12
EPOCHS_PER_ROUND = 8.0
"""Digits are few. Peers on few cores start some seconds apart, and with short rounds the first has done all of them
alone before the last begins."""
TINY_ROUNDS, TINY_EPOCHS = 3, 1.0
TIMEOUT_S = 240.0
"""For a group to train; it takes a tenth of that on two idle cores."""
POLL_S = 0.03
CENTRAL = "central"


def run(settings: Settings) -> Iterator[Sample]:
    rounds, epochs = (TINY_ROUNDS, TINY_EPOCHS) if settings.tiny else (ROUNDS, EPOCHS_PER_ROUND)
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        data, contract = digits_file(Path(folder))
        for repetition in settings.repetitions:
            job = Job(
                name="benchmark",
                mode="replicas",
                seed=SEED + repetition,
                model=ModelConfig("lenet"),
                data=contract,
                training=TrainingConfig(rounds=rounds, epochs_per_round=epochs, batch_size=32),
            )
            yield Sample(CENTRAL, repetition, _centrally(job, data), is_baseline=True)
            for num_peers in NUM_PEERS[:1] if settings.tiny else NUM_PEERS:
                for compression in COMPRESSIONS[-1:] if settings.tiny else COMPRESSIONS:
                    with tempfile.TemporaryDirectory(dir=folder) as state:
                        figures = _of_group(job, data, num_peers, compression, Path(state))
                    yield Sample(f"{num_peers} peers, {compression}", repetition, figures)


def digits_file(folder: Path) -> tuple[str, DataConfig]:
    """The digits in a file, from which a trainer starts sooner than with scikit-learn; and their contract."""
    source = open_source("digits")
    contract = dataclasses.replace(propose_contract(source), val=0.0)
    samples = {split: load(source, contract, split) for split in ("train", "test")}  # type: ignore[arg-type]
    arrays = {f"{name}_{split}": getattr(each, name) for split, each in samples.items() for name in ("x", "y")}
    path = folder / "digits.npz"
    np.savez(path, **arrays)
    return f"npz:{path}", dataclasses.replace(propose_contract(open_source(f"npz:{path}")), val=0.0)


def _centrally(job: Job, data: str) -> dict[str, float]:
    experiment = group.Experiment(job, data, group.shares(1, job.data.classes, "same"))
    model, seconds = measure.central_training(experiment, threads=1)
    source = open_source(data)
    accuracy = measure.accuracy(model, load(source, job.data, "test"), len(job.data.classes)).accuracy
    return {"accuracy": 100 * accuracy, "training_s": seconds}


def _of_group(job: Job, data: str, num_peers: int, compression: Compression, folder: Path) -> dict[str, float]:
    settings = GroupConfig(min_peers=num_peers, settle_s=0.5, compression=compression, replicas=0)
    job = dataclasses.replace(job, group=settings)
    shares = group.shares(num_peers, job.data.classes, "iid")
    experiment = group.Experiment(job, data, shares, timeout_s=TIMEOUT_S)
    states = [folder / share.name / job.id for share in shares]
    with Watcher(states) as watcher:
        try:
            outcome = group.run(experiment, folder, lambda text: None, lambda seconds, status: None)
        except P2PTrainError as error:  # what was measured until now is worth keeping
            raise TimeoutError(f"{num_peers} peers, {compression}: {error}") from error
    result = measure.measure(experiment, outcome, None, threads=1)
    merged = [_merged_bytes(folder / share.name / "journal.jsonl") for share in shares]
    distances = watcher.distances()
    return {
        "accuracy": 100 * result.assembled_accuracy,
        "gossip_mb": statistics.fmean(map(sum, merged)) / 1e6,
        "sent_mb": statistics.fmean(peer.bytes_sent for peer in result.peers) / 1e6,
        "exchanges": statistics.fmean(map(len, merged)),
        "distance": 100 * distances[max(distances)],
        "rounds_seen": len(distances),
        "training_s": outcome.trained_s - outcome.formed_s,
        "formed_s": outcome.formed_s,
    } | {f"distance_{number:02}": 100 * distance for number, distance in sorted(distances.items())}


def _merged_bytes(path: Path) -> list[float]:
    """Of each payload that a peer merged."""
    return [float(line.fields["bytes"] or 0) for line in journal.read(path) if line.kind == "gossip"]


class Watcher:
    """Reads every new snapshot from the peers' stores, in a thread of its own, until the context ends."""

    def __init__(self, states: list[Path]) -> None:
        self._states = states
        self._seen: dict[int, dict[Path, dict[str, Any]]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="snapshots", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def distances(self) -> dict[int, float]:
        """By round, of those of which every peer's snapshot was seen."""
        from p2ptrain.learning.averaging import consensus_distance

        whole = {number: states for number, states in self._seen.items() if len(states) == len(self._states)}
        return {number: consensus_distance(states.values(), relative=True) for number, states in whole.items()}

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        from safetensors.torch import load as load_tensors

        from p2ptrain.learning.snapshots import model_state

        for state in self._states:
            try:
                snapshots = json.loads((state / "manifest.json").read_bytes())["snapshots"]
            except FileNotFoundError:
                continue
            for holding in snapshots:
                seen = self._seen.setdefault(holding["round"], {})
                if state in seen:
                    continue
                try:
                    seen[state] = model_state(load_tensors((state / "blobs" / holding["blob"]).read_bytes()))
                except FileNotFoundError:
                    continue  # replaced by the next one between two looks


# --- the picture ----------------------------------------------------------------------------------------------------


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Left: accuracy over bytes. Right: how far apart the copies of the largest group are, round by round."""
    left, right = figure.subplots(1, 2)
    groups = [case for case in result["cases"] if not case["is_baseline"]]
    largest = max(int(case["case"].partition(" ")[0]) for case in groups) if groups else 0
    for case in groups:
        size, _, compression = case["case"].partition(" peers, ")
        shown = plots.mark(COMPRESSIONS.index(compression))
        x, y = (case["figures"][name] for name in ("gossip_mb", "accuracy"))
        spread = [[[each["median"] - each["low"]], [each["high"] - each["median"]]] for each in (y, x)]
        label = compression if int(size) == largest else None
        left.errorbar(x["median"], y["median"], *spread, capsize=3, label=label, **shown)
        at = (x["median"], y["median"])
        left.annotate(size, at, (5, 4), textcoords="offset points", fontsize="small", color=shown["color"])
        curve = {k.removeprefix("distance_"): f["median"] for k, f in case["figures"].items() if k[-1].isdigit()}
        if int(size) == largest:
            shown["marker"] = shown.pop("fmt")
            right.plot([int(number) for number in curve], list(curve.values()), label=compression, **shown)
    for case in result["cases"]:
        if case["is_baseline"]:
            accuracy = case["figures"]["accuracy"]["median"]
            left.axhline(accuracy, color="black", ls="--", lw=1, label="central training (baseline)")
    if all(case["figures"]["gossip_mb"]["low"] > 0 for case in groups):
        left.set_xscale("log")
        plots.plain_numbers(left.xaxis)
    left.set(title="Accuracy of the harvested model (number: peers)")
    left.set(xlabel="gossip payloads a peer, MB", ylabel="accuracy on the test samples, %")
    right.set(title=f"How far apart the copies of {largest} peers are", yscale="log")
    right.set(xlabel="round", ylabel="distance from their mean, % of its norm")
    plots.plain_numbers(right.yaxis)
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        plots.legend(axes)


FIGURES = Section(
    "What comes out",
    "The whole model on every peer, by compression",
    [
        Row(
            "gossip",
            f"digits, LeNet on each of {peers} peers: accuracy, gossip a peer; whole, fp16, int8, top-k",
            "; ".join(
                f"{{{peers} peers, {kind}/accuracy:.1f}} %, {{{peers} peers, {kind}/gossip_mb:.2f}} MB"
                for kind in COMPRESSIONS
            ),
            "central training: {central/accuracy:.1f} %",
        )
        for peers in NUM_PEERS
    ],
)
