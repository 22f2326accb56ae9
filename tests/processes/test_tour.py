"""README's tour, "Five minutes, two laptops", done as it is written there, with real pictures.

The commands are read out of README, so a changed README changes this test, and one that it can't run fails it. What is
changed, and why:

- CODE is what ``group new`` printed; the two laptops are two folders with a state directory each (``P2PTRAIN_STATE``).
- All commands that meet others stay on loopback (``--interface``); where no multicast works there, they are told the
  first peer's address. Peers get a name each, as both run on one host, and one thread; ``status`` and ``harvest`` look
  for longer, as the machine may be busy.
- ``job new`` gets small pictures and few rounds, so that it takes seconds.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
from pictures import ROOT, unpack

from p2ptrain import api
from p2ptrain.experiment.processes import free_port, start, stop
from p2ptrain.learning.models import build_model
from p2ptrain.net.multicast import multicast_works

pytestmark = pytest.mark.slow
SECTION = "## Five minutes, two laptops"
CLASSES = ("airplane", "automobile", "dog", "frog")
SHORTER = ["--input-shape", "3,16,16", "--rounds", "3"]
DEADLINE_S = 400.0
"""Of each command, and until the group is done: a minute in all on a calm machine."""


def section() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(f"{SECTION}\n") == 1
    return text.partition(f"{SECTION}\n")[2].partition("\n## ")[0]


def commands() -> list[str]:
    """Every line of the section's code blocks, without what is said behind it."""
    blocks = re.findall(r"^```\n(.*?)^```$", section(), re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


class Tour:
    """Two laptops, and what was typed on them so far."""

    def __init__(self, home: Path) -> None:
        self.first, self.second = home / "first", home / "second"
        self.code = ""
        self.peers: list[subprocess.Popen[bytes]] = []
        self.told: list[str] = []
        """First words of every command that was run."""
        where = ["--interface", "127.0.0.1"]
        self._meet, self._listen = where, where
        if not multicast_works("127.0.0.1"):
            port = str(free_port())
            self._meet = [*where, "--no-discovery", "--peer", f"127.0.0.1:{port}"]
            self._listen = [*where, "--no-discovery", "--port", port]

    def run(self, line: str) -> None:
        """One line of README."""
        words = shlex.split(line)
        known: dict[str, Callable[[list[str]], None]] = {
            "group new": self._group_new,
            "group join": self._group_join,
            "job new": self._job_new,
            "peer": self._peer,
            "status": self._status,
            "watch": self._watch,
            "harvest": self._harvest,
            "evaluate": self._evaluate,
            "predict": self._predict,
            "export": self._export,
            "report": self._report,
        }
        for name, do in known.items():
            if words[: 1 + len(name.split())] == ["p2ptrain", *name.split()]:
                do(words[1:])
                self.told.append(name)
                return
        pytest.fail(f"README's tour has a command that this test doesn't know: {line}", pytrace=False)

    # --- each command ---

    def _group_new(self, words: list[str]) -> None:
        self.code = self._output(words).strip()
        assert re.fullmatch(r"[0-9A-Z]{4}(-[0-9A-Z]+)+", self.code)

    def _group_join(self, words: list[str]) -> None:
        """On the second laptop, by whom the code was read to."""
        command, environment = self._typed(words, self.second)
        joined = subprocess.run(
            command, env=environment, cwd=self.second, input=f"{self.code}\n".encode(), timeout=DEADLINE_S
        )
        assert joined.returncode == 0

    def _job_new(self, words: list[str]) -> None:
        said = self._output([*words, *SHORTER])
        assert f"{len(CLASSES)} classes" in said and "mode auto" in said

    def _peer(self, words: list[str]) -> None:
        """The first one on the first laptop, the next on the second."""
        number = len(self.peers)
        assert number < 2, "there are two laptops"
        folder, net = ((self.first, self._listen), (self.second, self._meet))[number]
        words = [*words, *net, "--name", f"laptop-{number + 1}", "--threads", "1"]
        self.peers.append(self._start(words, folder, folder / "said"))
        self.until("listens at", number)

    def _status(self, words: list[str]) -> None:
        self.until("plan of epoch", 0)
        self.until("plan of epoch", 1)
        said = self._output([*words, *self._meet, "--wait", "60"])
        assert "laptop-1" in said and "laptop-2" in said

    def _watch(self, words: list[str]) -> None:
        """Until Ctrl-C."""
        watch = self._start([*words, *self._meet], self.first, self.first / "watched")
        try:
            self._until_written(self.first / "watched", "laptop-2", watch)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(DEADLINE_S) == 0
        finally:
            stop([watch])
        assert "laptop-1" in (self.first / "watched").read_text()

    def _harvest(self, words: list[str]) -> None:
        for number in range(2):
            self.until("done. Next", number)
        said = self._output([*words, *self._meet, "--wait", "60"])
        assert "complete model in global.safetensors" in said and "HALF-WAY" not in said
        assert re.search(r"on \d+ validation samples of all devices: [\d.]+ % right", said)
        assert "laptop-1" in said and "laptop-2" in said

    def _evaluate(self, words: list[str]) -> None:
        said = self._output(words)
        assert all(name in said for name in CLASSES)
        total = re.search(r"^all +\d+ +([\d.]+) %", said, re.MULTILINE)
        assert total and float(total[1]) > 120 / len(CLASSES), "better than chance, after seconds of training"

    def _predict(self, words: list[str]) -> None:
        some = next(path for path in sorted((self.first / "test").rglob("*")) if path.is_file())
        shutil.copy(some, self.first / words[-1])
        said = self._output(words)
        assert said.startswith(f"{words[-1]}: ") and any(name in said for name in CLASSES)

    def _export(self, words: list[str]) -> None:
        self._output(words)
        assert (self.first / words[-1]).stat().st_size > 10_000

    def _report(self, words: list[str]) -> None:
        said = self._output(words)
        page = (self.first / said.partition(":")[0]).read_text(encoding="utf-8")
        assert page.startswith("<!doctype html>") and "laptop-1" in page and "laptop-2" in page

    # --- how they are run ---

    @staticmethod
    def _typed(words: list[str], folder: Path) -> tuple[list[str], dict[str, str]]:
        """The command line, and the environment of a laptop."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {"P2PTRAIN_STATE": str(folder / "state"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PTRAIN_")}
        return [sys.executable, "-m", "p2ptrain.cli.main", *words], kept | own

    def _start(self, words: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
        command, environment = self._typed(words, folder)
        return start(command, log, environment, folder=folder)

    def _output(self, words: list[str]) -> str:
        """What a command prints, on the first laptop. It must end well."""
        command, environment = self._typed(words, self.first)
        process = subprocess.Popen(
            command,
            cwd=self.first,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            stop([process])
        print(f"$ p2ptrain {shlex.join(words)}\n{out.decode()}")
        assert process.returncode == 0, f"{words}: {errors.decode()}\n{self.said(0)}"
        return out.decode()

    def said(self, number: int) -> str:
        return ((self.first, self.second)[number] / "said").read_text(encoding="utf-8") if self.peers else ""

    def until(self, words: str, number: int) -> None:
        """This laptop's peer has said so."""
        self._until_written((self.first, self.second)[number] / "said", words, self.peers[number])

    @staticmethod
    def _until_written(path: Path, words: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while words not in path.read_text(encoding="utf-8"):
            said = path.read_text(encoding="utf-8")
            assert process.poll() is None, f"ended with {process.returncode}\n{said}"
            assert time.monotonic() < deadline, f"{words!r} was not said\n{said}"
            time.sleep(0.1)

    def end(self) -> None:
        stop(self.peers)


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    made = Tour(tmp_path)
    unpack(made.first / "photos", CLASSES, 80, split="train")
    unpack(made.second / "photos", ("dog", "frog"), 80, split="train", skip=80)
    unpack(made.first / "test", CLASSES, 30, split="test")
    yield made
    made.end()


def test_the_tour_as_it_is_written(tour: Tour) -> None:
    for line in commands():
        tour.run(line)
    expected = [
        "group new",
        "group join",
        "job new",
        "peer",
        "peer",
        "status",
        "watch",
        "harvest",
        "evaluate",
        "predict",
        "export",
        "report",
    ]
    assert sorted(set(tour.told)) == sorted(set(expected)) and tour.told.count("peer") == 2

    for number in range(2):
        said = tour.said(number)
        print(said)
        for promised in (
            r"mode (tasks|replicas) \(.+\): ",
            r"plan of epoch 1.*: this peer trains",
            r"of own validation samples right",
            r"; about .+ left",
            r"on \d+ validation samples of all devices: [\d.]+ % right",
        ):
            assert re.search(promised, said), f"{promised}\n{said}"

    (loading,) = re.findall(r"`(model\.load_state_dict\([^`]*\))`", section())
    _, card = api.load_model(tour.first / "global.safetensors")
    model = build_model(card.model, input_shape=card.data.input_shape, num_classes=len(card.data.classes))  # type: ignore[arg-type]
    before = os.getcwd()
    os.chdir(tour.first)
    try:
        loaded = eval(loading, {"model": model, "safetensors": safetensors})
    finally:
        os.chdir(before)
    assert not loaded.missing_keys and not loaded.unexpected_keys

    for number, peer in enumerate(tour.peers):  # Ctrl-C
        peer.send_signal(signal.SIGINT)
        assert peer.wait(DEADLINE_S) == 0, tour.said(number)
        assert "saying goodbye" in tour.said(number)
