#!/usr/bin/env python3
"""Groups of real peers that lose what a pipeline can lose, one group a case; and what has to hold each time.

    scripts/losses.py --list
    scripts/losses.py                       # all cases, a minute or two each
    scripts/losses.py --only "three of six" --only "stall 20 s"

What has to hold: those who stay go on; of what was done at most two intervals between snapshots are lost, or it was
said for whom the group waited in vain; the first batches are never begun again in silence; as many batches are told of
as lost as are (``benchmarks/told.py``); what lies on the disks of those who stay makes a whole model that is no further
back. The last lines name the cases where something did not hold.

Peers are processes on loopback; cases of a cut network have a namespace each, which takes Linux and root.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.peers import PeerProcess, wait_for_all
from benchmarks.recovery_group import LimitedGroup, trainers
from benchmarks.told import untrue
from lab.network import Network

from p2ptrain import api
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import P2PTrainError
from p2ptrain.experiment.processes import wait_until
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import body_of

EVERY = 10
"""Batches from one snapshot to the next."""
PATIENCE_S = 30.0
START_S, GOES_ON_S, END_S = 300.0, 240.0, 300.0
ROUNDS, LONG = 4, 4000
CUT_S = 40.0
FLEETING_S = 2.0
"""A stall of no more than this need not be noticed."""


def job(num_peers: int, rounds: int) -> Job:
    contract = dataclasses.replace(propose_contract(open_source("digits"), None), val=0.0)
    return Job(
        name="losses",
        mode="pipeline",
        model=ModelConfig("lenet"),
        data=contract,
        training=TrainingConfig(rounds=rounds, batch_size=32, schedule="constant"),
        tables=(PipelineConfig(4, strategy="equal", snapshot_steps=EVERY, patience_s=PATIENCE_S),),
        group=GroupConfig(min_peers=num_peers, settle_s=1.0),
    )


@dataclass
class Scene:
    """A group that trains. ``gone``: processes that were killed, or asked to leave."""

    group: LimitedGroup
    folder: Path
    network: Network | None
    gone: list[PeerProcess] = field(default_factory=list)
    at: float = 0.0
    """When it was hit last."""
    problems: list[str] = field(default_factory=list)

    @property
    def peers(self) -> list[PeerProcess]:
        return self.group.peers

    @property
    def everybody(self) -> list[PeerProcess]:
        """Also processes that others have taken the place of."""
        return [*self.gone, *self.stay]

    @property
    def stay(self) -> list[PeerProcess]:
        return [peer for peer in self.peers if not any(peer is each for each in self.gone)]

    @property
    def here(self) -> list[PeerProcess]:
        """Of those who stay, whose process runs: who has trained to the end may have left."""
        return [peer for peer in self.stay if peer.process.poll() is None]

    def staged(self, *places: int) -> list[PeerProcess]:
        """Those with a stage, from the samples to the loss."""
        found = trainers(self.here)
        return [found[place] for place in places]

    def done(self) -> int:
        """Batches that somebody has told of."""
        kinds = ("note:stage", "note:first-batch", "note:goes-on")
        return max((int(e.fields["step"]) for p in self.peers for kind in kinds for e in p.seen(kind)[-1:]), default=0)

    def kill(self, victims: Collection[PeerProcess]) -> None:
        self.at = time.monotonic()
        for victim in victims:
            victim.kill()
        self.gone += victims

    def back(self, victim: PeerProcess) -> PeerProcess:
        """Started again, with the state that it had."""
        number = self.peers.index(victim)
        self.peers[number] = self.group.start(number, f"{number + 1}/{len(self.peers)}")
        return self.peers[number]

    def state(self, peer: PeerProcess) -> Path:
        return self.folder / peer.name

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = GOES_ON_S) -> None:
        try:
            wait_until(ready, seconds, what)
        except TimeoutError as error:
            self.problems.append(str(error))

    def goes_on(self) -> None:
        """A batch was done since it was hit, and no more than an interval lost, unless it was said who was waited for
        in vain."""
        self.wait(lambda: bool(self._later("note:first-batch")), "a batch after the loss")
        back = self._later("note:goes-back")
        for step, batches in {(int(e["step"]), int(e["batches"])) for e in back}:
            if batches > 2 * EVERY and not self._later("note:waits-for-peers"):
                self.problems.append(f"went back to batch {step}: {batches} batches lost")

    def taken_in(self) -> None:
        """Whoever was away is in one plan with the others, which brings some batches."""
        done = self.done()

        def together() -> bool:
            plans = {e[-1].fields["plan"] if (e := p.seen("note:plan-adopted")) else "" for p in self.here}
            return len(plans) == 1 and self.done() > done + EVERY

        self.wait(together, "that all follow one plan and go on")

    def _later(self, kind: str) -> list[dict[str, object]]:
        return [e.fields for peer in self.here for e in peer.seen(kind) if e.at > self.at]

    def check_model(self, least: int, *, is_finished: bool) -> int:
        """What lies on the disks of those who stay; after how many batches. ``is_finished``: it has to be of all."""
        stay = self.stay
        for peer in stay:
            peer.kill()
        try:
            found = asyncio.run(api.harvest_kept([self.state(peer) for peer in stay]))
        except P2PTrainError as error:
            self.problems.append(f"no whole model on disk: {error}")
            return 0
        step = min(part.step for part in found.report)
        least = ROUNDS * body_of(found.plan).steps_per_round if is_finished else least
        if step < least:
            self.problems.append(f"the whole model on disk is of batch {step}, not of {least} or later")
        return step


def stalled(scene: Scene, seconds: float) -> None:
    (victim,) = scene.staged(1)
    processes = victim.everything()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    scene.at = time.monotonic()
    time.sleep(seconds)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.resume()
    if seconds > FLEETING_S:
        scene.goes_on()
    scene.taken_in()


def killed(scene: Scene, *places: int) -> None:
    scene.kill(scene.staged(*places))
    scene.goes_on()


def two_deaths(scene: Scene, gap_s: float) -> None:
    scene.kill(scene.staged(3))
    time.sleep(gap_s)
    scene.kill(scene.staged(2))
    scene.goes_on()


def proposer(scene: Scene) -> None:
    """The one that votes first is the one that proposed."""
    scene.kill(scene.staged(1))
    scene.wait(lambda: bool(scene._later("note:voted")), "a vote")
    votes = [(e.at, peer) for peer in scene.here for e in peer.seen("note:voted") if e.at > scene.at]
    if votes:
        scene.kill([min(votes, key=lambda vote: vote[0])[1]])
        scene.goes_on()


def lowest_and_another(scene: Scene) -> None:
    """One of them comes back."""
    victims = scene.staged(0, 2)
    scene.kill(victims)
    scene.goes_on()
    scene.back(victims[1])
    scene.taken_in()


def three_of_six(scene: Scene) -> None:
    for place in (1, 3, 2):
        scene.kill(scene.staged(place))
        scene.goes_on()
        time.sleep(3)


def three_at_once(scene: Scene) -> None:
    """All copies of some blocks may be gone: then the others are waited for, and come back."""
    victims = scene.staged(1, 2, 3)
    scene.kill(victims)
    time.sleep(5)
    for victim in victims:
        scene.back(victim)
    scene.goes_on()
    scene.taken_in()


def trainer(scene: Scene) -> None:
    (victim,) = scene.staged(1)
    process = victim.trainer
    assert process is not None
    scene.at = time.monotonic()
    process.kill()
    scene.goes_on()


def leave(scene: Scene) -> None:
    (victim,) = scene.staged(1)
    scene.at = time.monotonic()
    victim.ask_to_stop()
    scene.gone.append(victim)
    scene.wait(lambda: victim.process.poll() is not None, "that it leaves")
    scene.goes_on()
    if lost := [e for e in scene._later("note:goes-back") if e["batches"]]:
        scene.problems.append(f"a leave cost {lost[0]['batches']} batches")


def power(scene: Scene, *lost_disks: int) -> None:
    """All come back, those with lost disks with empty ones."""
    victims = list(scene.peers)
    scene.kill(victims)
    for number in lost_disks:
        shutil.rmtree(scene.state(victims[number]))
    for victim in victims:
        scene.back(victim)
    scene.goes_on()
    scene.taken_in()


def damaged(scene: Scene) -> None:
    """A peer comes back with other bytes on its disk than it saved; then another one dies."""
    (victim,) = scene.staged(1)
    scene.kill([victim])
    scene.goes_on()
    for path in scene.state(victim).glob("*/blobs/*"):
        path.write_bytes(b"x" * path.stat().st_size)
    scene.back(victim)
    journal = scene.state(victim) / "journal.jsonl"
    scene.wait(lambda: "storage-damaged" in journal.read_text(encoding="utf-8"), "that damaged files are named")
    scene.taken_in()
    scene.kill(scene.staged(2))
    scene.goes_on()


def last_batch(scene: Scene) -> None:
    """The job is short; one dies when the last round is through at one of them."""
    scene.wait(lambda: any(p.seen("note:round", round=ROUNDS) for p in scene.here), "the last round", END_S)
    victims = trainers(scene.here)[1:2]
    if len(victims) != 1:
        raise TimeoutError("all had left before one could die")
    scene.kill(victims)


def cut(scene: Scene, *sides: tuple[int, ...]) -> None:
    """For 40 s, and until somebody has gone on. Who is further goes on; the others are taken in again."""
    assert scene.network is not None
    scene.at = time.monotonic()
    scene.network.cut([[scene.peers[number].name for number in side] for side in sides])
    time.sleep(CUT_S)
    scene.goes_on()
    scene.network.heal()
    scene.taken_in()


@dataclass(frozen=True)
class Case:
    """``do`` hits a group that trains. ``ends``: the job is short, and done in the end."""

    do: Callable[[Scene], None]
    num_peers: int = 4
    ends: bool = False
    is_cut: bool = False


CASES = {
    "the last": Case(lambda s: killed(s, 3)),
    "two neighbours": Case(lambda s: killed(s, 1, 2)),
    "two that are no neighbours": Case(lambda s: killed(s, 1, 3)),
    "the first and the last": Case(lambda s: killed(s, 0, 3)),
    "the first and another, which comes back": Case(lowest_and_another),
    "the proposer during its proposal": Case(proposer),
    **{f"a second death after {gap:g} s": Case(lambda s, gap=gap: two_deaths(s, gap)) for gap in (0.5, 3.0, 8.0)},
    "three of six": Case(three_of_six, 6),
    "three at once, back after 5 s": Case(three_at_once),
    "a trainer": Case(trainer),
    **{f"stall {seconds:g} s": Case(lambda s, t=seconds: stalled(s, t)) for seconds in (1.0, 5.0, 20.0, 120.0)},
    "a leave": Case(leave),
    "power": Case(power),
    "power, and one disk lost": Case(lambda s: power(s, 2)),
    "a damaged disk": Case(damaged),
    "one at the last batch": Case(last_batch, ends=True),
    "cut 3:1": Case(lambda s: cut(s, (0, 1, 2), (3,)), is_cut=True),
    "cut 2:2": Case(lambda s: cut(s, (0, 1), (2, 3)), is_cut=True),
    "cut 2:1:1": Case(lambda s: cut(s, (0, 1), (2,), (3,)), is_cut=True),
}


@contextlib.contextmanager
def scene_of(case: Case, log: Path | None) -> Iterator[Scene]:
    """A group that has saved some of what it trained everywhere. ``log``: as ``logged``, also where it never begins."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptrain-losses-")))
        network = stack.enter_context(Network()) if case.is_cut else None
        work = job(case.num_peers, ROUNDS if case.ends else LONG)
        group = stack.enter_context(LimitedGroup(folder, work, "digits", network, 0.0))
        peers = group.add_many(case.num_peers)
        scene = Scene(group, folder, network)
        stack.enter_context(logged(scene, log))
        wait_for_all(peers, "note:plan-adopted", START_S)
        # A batch is done by all stages: then who has one is known. Of six one stands by: the model is in five pieces.
        wait_until(lambda: any(peer.seen("note:first-batch") for peer in peers), START_S, "a first batch")
        if not case.ends:
            wait_for_all(trainers(peers), "note:replica-acked", START_S, count=4)
        yield scene


@contextlib.contextmanager
def logged(scene: Scene, file: Path | None) -> Iterator[None]:
    """Whatever comes of it, ``file`` tells what each peer told, by seconds since the group was hit last."""
    try:
        yield
    finally:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            told = sorted((e.at, p.name, e.kind, json.dumps(e.fields)) for p in scene.everybody for e in list(p.events))
            lines = [f"{at - scene.at:9.3f} {' '.join(words)}\n" for at, *words in told]
            file.write_text("".join(lines), encoding="utf-8")


def run(case: Case, log: Path | None = None) -> tuple[list[str], str]:
    """What did not hold, and figures in words. ``log``: the file for what each peer told."""
    with scene_of(case, log) as scene:
        before, began = scene.done(), time.monotonic()
        case.do(scene)
        took_s = time.monotonic() - began
        if case.ends:
            scene.wait(lambda: all(peer.seen("note:done") for peer in scene.stay), "that all are done", END_S)
        scene.problems += untrue({peer.name: list(peer.events) for peer in scene.stay})
        step = scene.check_model(max(0, before - 2 * EVERY), is_finished=case.ends)
        return scene.problems, f"{took_s:.1f} s; before it {before} batches were told of, a model of {step} is saved"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="CASE", default=[], help="this case; may be given again")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--log", type=Path, metavar="FOLDER", help="keep there what each peer told, a file a case")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(CASES)):
        parser.error(f"--only {unknown[0]!r}: the cases are {', '.join(CASES)}")
    if options.list:
        print("\n".join(CASES))
        return 0
    failed = []
    for name in options.only or CASES:
        try:
            problems, words = run(CASES[name], options.log / f"{name}.log" if options.log else None)
        except (TimeoutError, P2PTrainError) as error:
            problems, words = [str(error)], "not begun or cut off"
        print(f"{name}: {'FAILED: ' + '; '.join(problems) if problems else 'holds'} ({words})", flush=True)
        failed += [name] if problems else []
    print(f"{len(failed)} failed" + (f": {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
