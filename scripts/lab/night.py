"""A night in an hour: three devices train while links break, addresses change, disks fill, laptops sleep, terminals
close and trainers die or hang.

    sudo .venv/bin/python -m scripts.lab.night [--minutes 60] [--out results/night] [--tiny]

Each device has a network namespace of its own, and one a disk of 48 MB. The same hardships come again and again, in
the same order, evenly over the time. At the end nothing that was trained may be lost, every hardship must have its
line in a journal, and from one turn of hardships to the next no node may grow (``growth.py``). ``--tiny``: each of them
once, in about four minutes. ``--out`` gets their journals and logs, and ``night.json``, of which
``scripts/figures.py add`` makes a figure. Needs what the lab needs (``python -m scripts.lab check``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Sample, describe_machine, describe_versions, summarise

from lab import host
from lab.growth import Growth, Use
from lab.hardships import DATA, LATE_S, NAMES, PATIENCE_S, Hardship, Night
from lab.network import OWN_ADDRESS, Network
from p2ptrain.api import Status, evaluate, load_model, observing, save_harvest, snapshot_status
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment.group import harvest_with
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.net.keys import new_group
from p2ptrain.runtime.node.node import NetworkConfig

DISK_MB = 48
ROUNDS = 1_000_000
START_S = 600.0
RESULT_VERSION = 2


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A disk of its own for a state directory."""
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def make_job() -> Job:
    return Job(
        name="night",
        mode="replicas",
        data=propose_contract(open_source(DATA)),
        model=ModelConfig("lenet"),
        training=TrainingConfig(rounds=ROUNDS, epochs_per_round=2.0, batch_size=32),
        group=GroupConfig(min_peers=len(NAMES), settle_s=1.0),
    )


class Watch:
    """What the group says of itself, looked at all night: no device's rounds may go back."""

    def __init__(self) -> None:
        self.rounds: dict[str, int] = {}
        self.lost: list[str] = []

    def look(self, status: Status) -> set[str]:
        """Who trains."""
        training = set()
        for record in status.records:
            if status.states.get(record.peer) not in ("alive", "suspect") or record.phase != "training":
                continue
            training.add(record.name)
            known = self.rounds.get(record.name, 0)
            if record.round < known - 1:  # the round under way when it died was not saved
                self.lost.append(f"{record.name} went from round {known} to {record.round}")
            self.rounds[record.name] = max(known, record.round)
        return training


def use_of(night: Night) -> dict[str, Use]:
    """Of each device's node."""
    nodes = {name: psutil.Process(process.pid) for name, process in night.processes.items()}
    return {name: Use(node.num_fds(), node.memory_info().rss / 1e6) for name, node in nodes.items()}


async def spend(night: Night, minutes: float, say: Callable[[str], None], wrong: list[str]) -> dict[str, float]:
    """The whole night: its figures. ``wrong`` is told what was."""
    watch, begun = Watch(), time.time()
    for name in NAMES:
        night.start(name)
    async with observing(night.code, NetworkConfig(interfaces=(OWN_ADDRESS,))) as node:

        async def until_all_train(timeout_s: float, what: str, *, further: bool) -> None:
            before, give_up = dict(watch.rounds), time.monotonic() + timeout_s
            while True:
                await asyncio.sleep(0.5)
                training = watch.look(snapshot_status(node))
                moved = all(watch.rounds.get(name, 0) > before.get(name, 0) for name in NAMES)
                if training >= set(NAMES) and (moved or not further):
                    return
                if time.monotonic() > give_up:
                    raise P2PTrainError(
                        f"{what}: after {timeout_s:.0f} s only {sorted(training)} train, {watch.rounds}"
                    )

        async def until_told(hardship: Hardship, at: float, timeout_s: float) -> bool:
            give_up = time.monotonic() + timeout_s
            while not (has_line := told(night, hardship, at)) and time.monotonic() < give_up:
                await asyncio.sleep(0.5)
                watch.look(snapshot_status(node))
            return has_line

        await until_all_train(START_S, "at the start", further=True)
        say(f"all train {time.time() - begun:.0f} s after the start")
        hardships = night.hardships()
        growth, untold = Growth(len(hardships)), 0
        number, end_at = 0, time.monotonic() + 60 * minutes
        pause_s = max(2.0, min(60.0, 10 * minutes / len(hardships)))
        try:
            while number < len(hardships) or time.monotonic() < end_at:
                hardship = hardships[number % len(hardships)]
                at = time.time()
                say(f"{hardship.name} ({watch.rounds})")
                hardship.begin()
                await until_told(hardship, at, PATIENCE_S)
                hardship.end()
                await until_all_train(PATIENCE_S, f"after {hardship.name!r}", further=True)
                if not await until_told(hardship, at, LATE_S):
                    untold += 1
                    wrong.append(f"{hardship.name}: no line about it on {' and '.join(hardship.by)}")
                await asyncio.sleep(pause_s)
                number += 1
                growth.look(use_of(night))
        finally:  # what was seen is told, however the night ends
            for line in growth.lines():
                say(line)
            wrong += [*growth.wrong(), *watch.lost]
        harvest, _ = await harvest_with(node)
    path = night.folder / "global.safetensors"
    save_harvest(path, harvest)
    model, card = load_model(path)
    accuracy = evaluate(model, card, DATA).accuracy
    rounds = max(part.round for part in harvest.report)
    say(f"{number} hardships; harvested after {rounds} rounds: {100 * accuracy:.1f} % of the test samples are right")
    if rounds < max(watch.rounds.values()) - 1 or accuracy < 0.9:
        wrong.append(f"harvested: round {rounds} of {watch.rounds}, {100 * accuracy:.1f} %")
    return {
        "minutes": (time.time() - begun) / 60,
        "hardships": float(number),
        "untold": float(untold),
        "lost": float(len(watch.lost)),
        "rounds": float(rounds),
        "accuracy": 100 * accuracy,
        **growth.figures(),
    }


def told(night: Night, hardship: Hardship, since: float) -> bool:
    """Whether any of those who must notice has its line."""
    return any(
        line.get("kind") in hardship.told and line.get("time", 0.0) >= since - 1
        for name in hardship.by
        for line in night.journal(name)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="at least; each hardship comes once [default: 60]")
    parser.add_argument("--tiny", action="store_true", help="each hardship once, one right after the other")
    parser.add_argument("--out", type=Path, help="folder for the devices' logs and journals [default: none are kept]")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    host.check_host()
    began, load_before = time.monotonic(), os.getloadavg()[0]
    wrong, figures = list[str](), dict[str, float]()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptrain-night-")))
        (folder / "job.toml").write_text(make_job().to_toml(), encoding="utf-8")
        stack.enter_context(small_disk(folder / "laptop"))
        network = stack.enter_context(Network())
        for name in NAMES:
            network.add(name)
        night = Night(folder, network, new_group())
        stack.callback(keep, night, options.out)
        stack.callback(night.stop)
        try:
            figures = asyncio.run(spend(night, 0.0 if options.tiny else options.minutes, say, wrong))
        except (P2PTrainError, psutil.NoSuchProcess) as error:
            wrong.append(str(error))
        for each in wrong:
            say(f"WRONG: {each}")
        say("nothing was lost" if not wrong else f"{len(wrong)} things were wrong")
    if options.out is not None:
        text = json.dumps(result(figures, wrong, load_before, tiny=options.tiny), indent=1)
        (options.out / "night.json").write_text(text + "\n", encoding="utf-8")
    return 1 if wrong else 0


def result(figures: dict[str, float], wrong: Sequence[str], load_before: float, *, tiny: bool) -> dict[str, Any]:
    """What ``scripts/figures.py`` takes, as of a benchmark."""
    return {
        "version": RESULT_VERSION,
        "tiny": tiny,
        "incomplete": ""
        if "files_now" in figures
        else "it did not come to its end, or was too short to tell of growth",
        "command_line": ["python", "-m", "scripts.lab.night", *sys.argv[1:]],
        "load_average_before": load_before,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "cases": summarise([Sample("night", 0, figures)]),
        "wrong": list(wrong),
    }


def keep(night: Night, out: Path | None) -> None:
    """The papers of the night."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (out / f"{name}.journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in night.journal(name)))
        (out / f"{name}.log").write_bytes((night.folder / f"{name}.log").read_bytes())


if __name__ == "__main__":
    sys.exit(main())
