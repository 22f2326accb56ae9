"""What the benchmark ``neighbours`` sees of the processes that train: when they go on, how long a round is, memory."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Sequence

import psutil

from benchmarks.common import memory_mb, peak_rss_mb
from benchmarks.neighbours_groups import Group
from benchmarks.peers import PeerProcess
from p2ptrain.experiment.processes import wait_until

GO_ON_S = 90.0
AVERAGINGS = ("note:averaged", "note:gossip")


def wait_to_go_on(peers: Sequence[PeerProcess], kinds: Sequence[str], since: float, dead: str) -> float | None:
    """As ``when_all_went_on``, when that has happened or will not happen any more."""

    def over() -> bool:
        return when_all_went_on(peers, kinds, since, dead) is not None or all(p.seen("note:done") for p in peers)

    with contextlib.suppress(TimeoutError):
        wait_until(over, GO_ON_S, "going on")
    return when_all_went_on(peers, kinds, since, dead)


def when_all_went_on(peers: Sequence[PeerProcess], kinds: Sequence[str], since: float, dead: str) -> float | None:
    """When the last of ``peers`` had each of these events, not counting what it had from the dead one."""
    last = since
    for peer, kind in itertools.product(peers, kinds):
        later = [e.at for e in peer.seen(kind) if e.at > since and e.fields.get("peer") != dead]
        if not later:
            return None
        last = max(last, later[0])
    return last


def rounds(peers: Sequence[PeerProcess]) -> dict[str, float]:
    medians, averagings = [], []
    for peer in peers:
        ends = [event.at for event in peer.seen("note:round")]
        medians.append(statistics.median(b - a for a, b in itertools.pairwise(ends)))
        averagings.append(sum(len(peer.seen(kind)) for kind in AVERAGINGS) / len(ends))
    return {"round_s": statistics.mean(medians), "averagings_a_round": statistics.mean(averagings)}


def memory(group: Group, peers: Sequence[PeerProcess]) -> dict[str, float]:
    """Means over the participants of the sums over their processes; of p2ptrain also node and trainer by themselves."""
    totals: list[dict[str, float]] = []
    for peer in peers:
        total = {"peak_rss_mb": 0.0, "pss_mb": 0.0, "processes": 0.0}
        for process in peer.everything():
            with contextlib.suppress(psutil.NoSuchProcess):
                total["pss_mb"] += memory_mb(process).get("pss_mb", 0.0)
                total["peak_rss_mb"] += _peak(process)
                total["processes"] += 1
        totals.append(total)
    figures = {name: statistics.mean(total[name] for total in totals) for name in totals[0]}
    if not figures["pss_mb"]:
        del figures["pss_mb"]  # this system does not tell
    if group.code:
        trainers = [trainer for peer in peers if (trainer := peer.trainer) is not None]
        figures["node_peak_rss_mb"] = statistics.mean(_peak(peer.node) for peer in peers)
        figures["trainer_peak_rss_mb"] = statistics.mean(_peak(trainer) for trainer in trainers)
    if group.server is not None:
        figures["server_peak_rss_mb"] = _peak(group.server.node)
    return figures


def _peak(process: psutil.Process) -> float:
    return peak_rss_mb(process, process.memory_info().rss / 1e6)
