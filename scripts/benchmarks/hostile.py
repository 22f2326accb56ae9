"""A group of three that trains digits in replicas, while others do all that they can to it.

The *outsider* has no join code: it floods mDNS with peers that do not exist, opens connections that say nothing, begins
handshakes and never ends them, sends garbage; it begins before the peers do. The *insider* has the code. One process of
it only looks, and lies: versions, incarnations, epochs, masses and sizes at their limits, forged records, peers that
nobody met, plans and jobs of its own, messages that never end, fetches that it never reads, replays, nonsense. Another
one is a whole peer that trains with the group, and claims masses of 1e15. What they do stands in ``attackers/``.

All of them are on this machine, and take up to ``SHARE`` of a core each (the lying member's trainer takes as much as an
honest one's): so rounds get fewer by what they compute, too. *CPU a round* tells what the attack costs the peers
themselves: seconds of all processes of the honest peers by the rounds that they did.

Measured are the nodes of the honest peers, each second: the most memory and open files that any of them had. What is
not measured here: what false updates do to the model; and libzmq's issue 4364, by which a holder of the code can end a
node (said in README).
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from benchmarks import plots
from benchmarks.common import SEED, Column, Sample, Settings, child_environment
from benchmarks.memory import replicas_job
from benchmarks.peers import PeerGroup, PeerProcess
from benchmarks.rows import Remark, Row, Section
from p2ptrain.config import GroupConfig
from p2ptrain.experiment.processes import end, free_port, with_children
from p2ptrain.net.keys import load_or_make_identity, read_code

LISTED = {
    "hostile": "a group that trains while an outsider, then an insider, attacks it: rounds, memory, open files, bans",
    "hostile-short": "the same for five minutes each, in place of ten",
}
BASELINE = "the same group left in peace, for as long"
COLUMNS = (
    Column("rounds", "rounds", 0),
    Column("cpu_s_a_round", "CPU a round, s", 3),
    Column("met_s", "met after, s", 1),
    Column("memory_mb", "most memory, MB", 0),
    Column("grown_mb", "grown in the 2nd half, MB", 1),
    Column("files", "most open files", 0),
    Column("attacks_per_s", "attacks/s", 1),
    Column("banned", "honest banned", 0),
    Column("called_dead", "honest called dead", 0),
    Column("ended", "honest ended", 0),
)
PEACE, OUTSIDER, INSIDER = "in peace", "outsider", "insider"
ROLES = {PEACE: (), OUTSIDER: ("outsider",), INSIDER: ("insider", "member")}
NUM_PEERS = 3
ATTACK_S, SHORT_S, TINY_S = 600.0, 300.0, 30.0
SHARE = 0.3
"""Of a core, for each attacker."""
EARLIER_S = 2.0
"""The attack from outside begins before the peers do."""
MEET_S = 180.0
STOP_S = 60.0
NUM_CURVE = 60
"""Points of a picture's curves."""


@dataclass(slots=True)
class Watched:
    """What was seen of the honest peers' nodes, each time the most of any of them; seconds from the first look on."""

    seconds: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)

    def look(self, peers: Sequence[PeerProcess], seconds: float) -> None:
        memory, files = [0.0], [0.0]
        for peer in peers:
            with contextlib.suppress(psutil.Error):
                memory.append(peer.node.memory_info().rss / 1e6)
                files.append(float(peer.node.num_fds()))
        self.seconds.append(seconds)
        self.memory_mb.append(max(memory))
        self.files.append(max(files))

    def figures(self) -> dict[str, float]:
        half = len(self.memory_mb) // 2
        first, second = self.memory_mb[half // 2 : half], self.memory_mb[half + half // 2 :]
        found = {
            "memory_mb": max(self.memory_mb),
            "grown_mb": max(0.0, _mean(second) - _mean(first)),
            "files": max(self.files),
            "files_at_last": self.files[-1],
        }
        for number in range(NUM_CURVE):
            at = number * (len(self.seconds) - 1) // (NUM_CURVE - 1)
            found |= {f"curve_s_{number}": self.seconds[at], f"curve_mb_{number}": self.memory_mb[at]}
            found[f"curve_files_{number}"] = self.files[at]
        return found


def run(settings: Settings, attack_s: float = ATTACK_S) -> Iterator[Sample]:
    seconds = TINY_S if settings.tiny else attack_s
    for repetition in settings.repetitions:
        for case, roles in ROLES.items():
            with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-", ignore_cleanup_errors=True) as folder:
                figures = run_case(Path(folder), roles, seconds, SEED + repetition)
            yield Sample(case, repetition, figures, is_baseline=not roles)


def run_case(folder: Path, roles: Sequence[str], seconds: float, seed: int) -> dict[str, float]:
    """Raises ``TimeoutError`` where the group never trains."""
    job = replicas_job("lenet", "digits", group=GroupConfig(min_peers=NUM_PEERS, settle_s=0.5))
    ports = [free_port() for _ in range(NUM_PEERS)]
    log = folder / "peers.log"
    with log.open("wb") as said, PeerGroup(folder, job, "digits", by_address=False) as group:
        early = [role for role in roles if role == "outsider"]
        attackers = [Attacker(role, group.code, ports, seconds + EARLIER_S + MEET_S, seed) for role in early]
        try:
            if early:
                time.sleep(EARLIER_S)
            started = time.monotonic()
            peers = [group.add(f"{i + 1}/{NUM_PEERS}", port=port, log=said) for i, port in enumerate(ports)]
            for peer in peers:
                peer.wait_for("note:training", MEET_S)
            met_s = time.monotonic() - started
            attackers += [Attacker(r, group.code, ports, seconds, seed) for r in roles if r not in early]
            figures = {"seconds": seconds, "met_s": met_s, **_watch(peers, seconds)}
        finally:
            told = [attacker.stop() for attacker in attackers]
        figures |= _of_attackers(told) | _verdict(folder, peers)
    text = log.read_bytes()
    figures["ended"] = max(figures["ended"], float(b"Traceback" in text))
    if figures["ended"]:
        print(text.decode(errors="replace")[-4000:], file=sys.stderr)
    return figures


def _watch(peers: Sequence[PeerProcess], seconds: float) -> dict[str, float]:
    """Over so long a time: rounds of all of them, and what their nodes took."""
    watched, rounds, cpu = Watched(), _rounds(peers), _cpu_s(peers)
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        watched.look(peers, now)
        time.sleep(min(1.0, seconds / NUM_CURVE))
    done = _rounds(peers) - rounds
    found = {"rounds": float(done), "rounds_fewest": float(min(len(peer.seen("note:round")) for peer in peers))}
    if done:
        found["cpu_s_a_round"] = max(0.0, _cpu_s(peers) - cpu) / done
    return found | watched.figures()


def _rounds(peers: Sequence[PeerProcess]) -> int:
    return sum(len(peer.seen("note:round")) for peer in peers)


def _cpu_s(peers: Sequence[PeerProcess]) -> float:
    """Of all their processes that run."""
    total = 0.0
    for peer in peers:
        for process in with_children(peer.process.pid):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def _verdict(folder: Path, peers: Sequence[PeerProcess]) -> dict[str, float]:
    """What became of the honest ones: they are asked to leave, and have to end with status 0."""
    ids = {load_or_make_identity(folder / peer.name).peer for peer in peers}
    banned = [e for peer in peers for e in peer.seen("note:banned") if e.fields["peer"] in ids]
    dead = [e for peer in peers for kind in ("note:dead", "note:left") for e in peer.seen(kind)]
    dead = [e for e in dead if e.fields.get("peer") in ids]
    for event in [*banned, *dead]:
        print(f"  {event.kind}: {event.fields}", file=sys.stderr)
    ended = sum(peer.process.poll() is not None for peer in peers)
    for peer in peers:
        peer.ask_to_stop()
    for peer in peers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            peer.process.wait(STOP_S)
    statuses = [peer.process.poll() for peer in peers]
    if any(statuses):
        print(f"  exit statuses of honest peers: {statuses}", file=sys.stderr)
    return {
        "banned": float(len(banned)),
        "called_dead": float(len(dead)),
        "ended": float(max(ended, sum(status != 0 for status in statuses))),
    }


# --- the attackers' side ----------------------------------------------------------------------------------------------


class Attacker:
    """A process that attacks from now on, until ``stop``."""

    def __init__(self, role: str, code: str, ports: Sequence[int], seconds: float, seed: int) -> None:
        self._role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attackers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            start_new_session=True,
        )
        setting: dict[str, Any] = {"role": role, "seconds": seconds, "share": SHARE, "seed": seed, "ports": list(ports)}
        setting |= {"tag": read_code(code).tag} if role == "outsider" else {"code": code, "data": "digits"}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(setting) + "\n")
        self._process.stdin.flush()
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines += self._process.stdout

    def stop(self) -> dict[str, Any]:
        """What it did. Raises ``RuntimeError`` where it failed: then nothing was shown."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        end(self._process)
        self._reader.join()
        if not self._lines:
            raise RuntimeError(f"the {self._role} ended with status {self._process.returncode} and told nothing")
        told: dict[str, Any] = json.loads(self._lines[-1])
        print(f"  {self._role}: {told}", file=sys.stderr)
        return told


def _of_attackers(told: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not told:
        return {}
    return {
        "attacks_per_s": sum(sum(each["told"].values()) / each["took_s"] for each in told),
        "attackers_cpu_s": sum(each["cpu_s"] for each in told),
    }


# --- what is shown ----------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


PLOT_HEIGHT_IN = 6.0


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Memory and open files of the honest nodes by the time, of the first repetition."""
    panels = figure.subplots(2, 1, sharex=True)
    for number, case in enumerate(ROLES):
        runs = [sample["figures"] for sample in result["samples"] if sample["case"] == case]
        if not runs:
            continue
        first, style = runs[0], "--" if case == PEACE else "-"
        seconds = [first[f"curve_s_{i}"] for i in range(NUM_CURVE)]
        for axes, name in zip(panels, ("mb", "files"), strict=True):
            values = [first[f"curve_{name}_{i}"] for i in range(NUM_CURVE)]
            axes.plot(seconds, values, style, color=plots.COLOURS[number], label=case)
    for axes, label in zip(panels, ("memory of a node, MB", "open files of a node"), strict=True):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        plots.legend(axes)
    panels[-1].set_xlabel("seconds of attack")


NAMED = {
    "short": SimpleNamespace(
        BASELINE=BASELINE,
        COLUMNS=COLUMNS,
        PLOT_HEIGHT_IN=PLOT_HEIGHT_IN,
        run=functools.partial(run, attack_s=SHORT_S),
        plot=plot,
    )
}

FIGURES = Section(
    "What it costs",
    "Under attack",
    [
        Row(
            "hostile",
            f"three peers train digits for {{in peace/seconds:.0f}} s beside {words}: rounds; CPU seconds a round; most"
            " memory and open files of a node; honest peers shut out, called dead, ended",
            f"{{{case}/rounds:.0f}}; {{{case}/cpu_s_a_round:.3f}} s; {{{case}/memory_mb:.0f}} MB,"
            f" {{{case}/files:.0f}}; {{{case}/banned:.0f}}, {{{case}/called_dead:.0f}}, {{{case}/ended:.0f}}",
            "left in peace: {in peace/rounds:.0f} rounds; {in peace/cpu_s_a_round:.3f} s; {in peace/memory_mb:.0f} MB,"
            " {in peace/files:.0f}",
        )
        for case, words in ((OUTSIDER, "an outsider at it"), (INSIDER, "an insider at it"))
    ],
    (
        Remark(
            "hostile", "Attackers and peers share this machine's cores, so rounds get fewer by what attackers compute."
        ),
    ),
)
