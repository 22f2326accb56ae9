"""How a group grows: from 10 to 5,000 peers in virtual time, with the curve that theory expects beside it.

Four simulations, each of one of the project's own state machines over its simulated network (``virtual_*.py`` say
what each leaves out): *membership*, until all know of a crash; *gossip*, until the copies are within 1 % of where they
started from their mean; *records*, what peers know of each other's progress; *links*, how many of them whole peers
keep. The first three take a link from each to each for granted (gossip: to as many as a peer may have), as in groups of
up to 129. Of larger ones the cases named ``neighbours`` show membership as it is there: each peer has links to its
neighbours, 32 at most, and to nobody else. (A message to others is lost there; a real peer dials.)

Expected: membership traffic a peer is constant, and a crash is known after O(log n) (SWIM: Das, Gupta, Motivala, DSN
2002); push-sum needs O(log n) rounds (Kempe, Dobra, Gehrke, FOCS 2003); records take constant bytes, as progress is
said the less often the more say it; links, all n - 1. The curves are fitted to the sizes up to 100 and drawn on.

Seeds differ between repetitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks import plots
from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.rows import Remark, Row, Section
from benchmarks.virtual_gossip import average_centrally, reach_consensus
from benchmarks.virtual_links import SETTLE_S, keep_links
from benchmarks.virtual_membership import detect_death, detect_death_by_heartbeats, lose_many
from benchmarks.virtual_records import keep_records
from p2ptrain.protocol.session.sessions import MAX_PEERS

LISTED = {
    "scale": "10 to 5,000 peers in virtual time: seconds, rounds and bytes, beside heartbeats and a central average",
}
BASELINE = (
    "heartbeats from each to all with SWIM's period, and one averager that all send to and wait for; "
    "records and links have no baseline"
)
COLUMNS = (
    Column("death_known_s", "death known to all, s", 2),
    Column("called_dead_wrongly", "wrongly dead", 0),
    Column("bytes_per_s", "bytes/s a peer", 0),
    Column("rounds", "rounds to 1 %", 1),
    Column("payloads_per_peer", "payloads a peer", 1),
    Column("payloads_busiest", "busiest", 0),
    Column("suspected_per_s", "suspicions/s", 1),
    Column("age_median_s", "record age, s", 2),
    Column("news_known_s", "a change known to all, s", 1),
    Column("links_median", "links", 0),
    Column("links_most", "most", 0),
)
SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
RECORD_SIZES = (10, 20, 50, 100, 200, 500, 1000)
RECORD_WARM_S, RECORD_WINDOW_S = 0.19, 10.0
"""The first of each peer, 40 s at least: before that all have begun to tell their progress at nearly the same time, and
say it the second time in bunches."""
LARGE = (150, 200, 300, 1000, 5000)
LARGE_WARM_S, LARGE_WINDOW_S = 2.0, 8.0
"""Ten seconds before the crash in which nobody should be called dead."""
LOSSY = ((150, 0.1), (150, 0.3), (1000, 0.1), (1000, 0.3))
"""(peers, messages lost): far more than TCP leaves, which repairs what it can in time."""
MANY_LOST, LOST_SHARE = (200, 300, 1000), 0.3
"""Groups of which so large a part crashes at once; more than 128 are left, as in a smaller group everyone probes
everyone, and gets a link to do so."""
LINK_SIZES = (100, 150, 200, 300)
TINY_SIZES = (6, 12, 24)
TINY_LARGE, TINY_LOSSY, TINY_LOST = (24, 36), ((24, 0.1),), (24,)
FIT_UP_TO = 100
FEW_UP_TO = 300
"""Likewise where links are few: in a group of 129 or fewer everyone has a link to everyone."""
CHECKED, ON_PAPER = (100, 1000), 5000
"""Sizes at which what is expected is set beside what was measured, and the one that is told whether measured or not."""
FULL_HEARTBEATS = 50
"""In larger groups only the heartbeats that matter are simulated."""
FEW = "membership, neighbours"
BASELINES = ("heartbeats", "central average")


def _cases(*, tiny: bool = False) -> dict[str, Callable[[int], dict[str, float]]]:
    """What each measures with a seed."""
    cases: dict[str, Callable[[int], dict[str, float]]] = {}
    for number in TINY_SIZES if tiny else SIZES:
        end, everyone_sends = f", {number} peers", number <= FULL_HEARTBEATS
        cases[f"heartbeats{end}"] = partial(detect_death_by_heartbeats, number, everyone_sends=everyone_sends)
        cases[f"membership{end}"] = partial(detect_death, number)
        cases[f"central average{end}"] = partial(average_centrally, number)
        cases[f"gossip{end}"] = partial(reach_consensus, number, num_links=MAX_PEERS)
    for number in TINY_SIZES if tiny else RECORD_SIZES:
        warm_s, window_s = max(40.0, RECORD_WARM_S * number), RECORD_WINDOW_S
        times = {"warm_s": 2.0, "window_s": 4.0} if tiny else {"warm_s": warm_s, "window_s": window_s}
        cases[f"records, {number} peers"] = partial(keep_records, number, **times)
    known: dict[str, Any] = {"is_large": True, "warm_s": LARGE_WARM_S, "window_s": LARGE_WINDOW_S}
    for number in TINY_LARGE if tiny else LARGE:
        cases[f"{FEW}, {number} peers"] = partial(detect_death, number, **known)
    for number, loss in TINY_LOSSY if tiny else LOSSY:
        name = f"{FEW}, {loss:.0%} of messages lost, {number} peers"
        cases[name] = partial(detect_death, number, loss=loss, **known)
    for number in TINY_LOST if tiny else MANY_LOST:
        name = f"{FEW}, {LOST_SHARE:.0%} of peers lost at once, {number} peers"
        cases[name] = partial(lose_many, number, share=LOST_SHARE)
    for number in TINY_SIZES[:1] if tiny else LINK_SIZES:
        cases[f"links, {number} peers"] = partial(keep_links, number, settle_s=5.0 if tiny else SETTLE_S)
    return cases


def run(settings: Settings) -> Iterator[Sample]:
    for case, figures_of in _cases(tiny=settings.tiny).items():
        for repetition in settings.repetitions:
            if settings.wants(case, repetition):
                figures = figures_of(SEED + repetition)
                yield Sample(case, repetition, figures, is_baseline=case.startswith(BASELINES))


CHOICES = tuple(_cases())


# --- growth ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Law:
    """How a figure should grow with the number of peers. ``basis``: the terms, each with a factor of its own."""

    series: str
    figure: str
    what: str
    unit: str
    basis: tuple[Callable[[float], float], ...]
    words: str
    fit_up_to: int = FIT_UP_TO


def _one(n: float) -> float:
    return 1.0


LOGARITHM = (_one, math.log2), "{0:.2f} + {1:.2f} log2 n"
LAWS = (
    Law("membership", "death_known_s", "a death is known to all after", "s", *LOGARITHM),
    Law("membership", "bytes_per_s", "membership sends", "bytes/s a peer", (_one,), "{0:.0f}"),
    Law(
        FEW,
        "death_known_s",
        "in a large room a death is known to all after",
        "s",
        *LOGARITHM,
        FEW_UP_TO,
    ),
    Law(
        FEW,
        "bytes_per_s",
        "in a large room membership sends",
        "bytes/s a peer",
        (_one,),
        "{0:.0f}",
        FEW_UP_TO,
    ),
    Law("heartbeats", "bytes_per_s", "heartbeats take", "bytes/s a peer", (float,), "{0:.0f} n"),
    Law("gossip", "rounds", "gossip is within 1 % after", "rounds", *LOGARITHM),
    Law("central average", "rounds", "one averager is done after", "rounds", (float,), "{0:.3f} n"),
    Law("records", "bytes_per_s", "records take", "bytes/s a peer", (_one,), "{0:.0f}"),
)


def series(cases: Sequence[dict[str, Any]], name: str, figure: str) -> list[tuple[float, dict[str, float]]]:
    """(peers, median with low and high) of the cases ``name, N peers`` that have the figure."""
    return [
        (case["figures"]["peers"]["median"], case["figures"][figure])
        for case in cases
        if case["case"].rpartition(", ")[0] == name and figure in case["figures"]
    ]


def fit(law: Law, points: Sequence[tuple[float, dict[str, float]]]) -> list[float]:
    """Least squares over the small sizes: the factors of the law's terms."""
    small = [(peers, figure["median"]) for peers, figure in points if peers <= law.fit_up_to]
    terms = np.array([[term(peers) for term in law.basis] for peers, _ in small])
    return [float(factor) for factor in np.linalg.lstsq(terms, np.array([value for _, value in small]), rcond=None)[0]]


def expected(law: Law, factors: Sequence[float], peers: float) -> float:
    return math.fsum(factor * term(peers) for factor, term in zip(factors, law.basis, strict=True))


def notes(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Each law, fitted to small groups, beside what groups of ``CHECKED`` peers and the largest did, and what it says
    of ``ON_PAPER`` peers where no group was as large."""
    lines = []
    for law in LAWS:
        points = series(cases, law.series, law.figure)
        if len(points) < 2:
            continue
        factors = fit(law, points)
        smallest, first = points[0]
        last = points[-1][0]
        seen = "; ".join(
            f"{figure['median']:.4g} at {peers:.0f} (expected {expected(law, factors, peers):.4g})"
            for peers, figure in points
            if peers in (*CHECKED, last)
        )
        paper = "" if last >= ON_PAPER else f"; at {ON_PAPER}, on paper, {expected(law, factors, ON_PAPER):.4g}"
        lines.append(
            f"{law.what} {first['median']:.4g} {law.unit} at {smallest:.0f} peers; {seen}{paper}. Expected: "
            f"{law.words.format(*factors)}, fitted up to {law.fit_up_to}"
        )
    return lines


# --- the picture ----------------------------------------------------------------------------------------------------

SERIES = ("membership", "heartbeats", "gossip", "central average", "records")
PLOT_HEIGHT_IN = 8.0
PANELS = (
    ("Until all know of a death", "virtual seconds", "death_known_s", ("membership", "heartbeats")),
    ("What a peer sends", "bytes a second", "bytes_per_s", ("membership", "heartbeats", "records")),
    ("Until all copies agree within 1 %", "rounds of training", "rounds", ("gossip", "central average")),
    ("Age of what a peer knows of another", "virtual seconds (median)", "age_median_s", ("records",)),
)
LINKED_MARKERS = ("x", "+", "*", "1", "2")
LEGEND_ROOM = {"bytes_per_s": 50.0, "rounds": 1.5}
"""Panels with a logarithmic axis, and how much further up it goes than the points."""


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Each figure over the number of peers, with its expected curve drawn on from the small sizes."""
    cases = result["cases"]
    for axes, (title, label, name, group) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for what in group:
            _draw_series(axes, cases, what, name)
        linked = [case["case"].rpartition(", ")[0] for case in cases if case["case"].startswith(FEW)]
        for number, what in enumerate(dict.fromkeys(linked) if name == "bytes_per_s" else ()):
            points = series(cases, what, name)
            values = [figure["median"] for _, figure in points]
            axes.plot(
                [peers for peers, _ in points],
                values,
                LINKED_MARKERS[number % len(LINKED_MARKERS)],
                color="black",
                label=what,
            )
        axes.set(title=title, xlabel="peers", ylabel=label, xscale="log")
        plots.plain_numbers(axes.xaxis)
        if name in LEGEND_ROOM:
            axes.set_yscale("log")
            axes.set_ylim(top=LEGEND_ROOM[name] * axes.get_ylim()[1])
            plots.plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        plots.legend(axes)


def _draw_series(axes: Any, cases: Sequence[dict[str, Any]], what: str, name: str) -> None:
    """Medians with their spread, and the law as a dashed line."""
    points = series(cases, what, name)
    if not points:
        return
    style = SERIES.index(what)
    at = np.array([peers for peers, _ in points])
    middle, low, high = (np.array([figure[key] for _, figure in points]) for key in ("median", "low", "high"))
    spread = (middle - low, high - middle)
    shown = plots.mark(style, is_baseline=what in BASELINES)
    axes.errorbar(at, middle, spread, capsize=3, label=f"{what} (baseline)" if what in BASELINES else what, **shown)
    law = next((law for law in LAWS if (law.series, law.figure) == (what, name)), None)
    if law is not None and len(points) > 1:
        factors, curve = fit(law, points), np.geomspace(at[0], at[-1], 100)
        values, words = [expected(law, factors, peers) for peers in curve], law.words.format(*factors)
        axes.plot(curve, values, "--", color=shown["color"], lw=1, label=f"{what}, expected: {words}")


FIGURES = Section(
    "Many peers",
    "Groups of up to 5,000 peers, in virtual time",
    (
        Row(
            "scale",
            "1,000 and 5,000 peers, virtual time, 1 % loss: a death is known to all after",
            "{membership, 1000 peers/death_known_s:.1f} s; {membership, 5000 peers/death_known_s:.1f} s",
            "heartbeats to all: {heartbeats, 1000 peers/death_known_s:.1f} s;"
            " {heartbeats, 5000 peers/death_known_s:.1f} s",
        ),
        Row(
            "scale",
            "what membership sends for it, kB/s a peer",
            "{membership, 1000 peers/bytes_per_s*0.001:.1f}; {membership, 5000 peers/bytes_per_s*0.001:.1f}",
            "heartbeats to all: {heartbeats, 1000 peers/bytes_per_s*0.001:.0f};"
            " {heartbeats, 5000 peers/bytes_per_s*0.001:.0f}",
        ),
        Row(
            "scale",
            "10, 100, 1,000, 5,000 peers: rounds until all copies are within 1 % of the mean",
            "{gossip, 10 peers/rounds:.1f}; {gossip, 100 peers/rounds:.1f};"
            " {gossip, 1000 peers/rounds:.1f}; {gossip, 5000 peers/rounds:.1f}",
            "one averager's time: {central average, 10 peers/rounds:.1f}; {central average, 100 peers/rounds:.1f};"
            " {central average, 1000 peers/rounds:.1f}; {central average, 5000 peers/rounds:.1f}",
        ),
        Row(
            "scale",
            "10, 100, 500 peers: what their records take, kB/s a peer",
            "{records, 10 peers/bytes_per_s*0.001:.0f}; {records, 100 peers/bytes_per_s*0.001:.0f};"
            " {records, 500 peers/bytes_per_s*0.001:.0f}",
        ),
        Row(
            "scale",
            "100, 200, 300 peers: links to others that a peer gets (fewest), as it dials 128 addresses at most",
            "{sessions, 100 peers/links_median:.0f} ({sessions, 100 peers/links_fewest:.0f});"
            " {sessions, 200 peers/links_median:.0f} ({sessions, 200 peers/links_fewest:.0f});"
            " {sessions, 300 peers/links_median:.0f} ({sessions, 300 peers/links_fewest:.0f})",
            "all: 99; 199; 299",
        ),
        Row(
            "scale",
            "membership where links are missing, kB/s a peer (and who was called dead wrongly in 10 s):"
            " 200 peers with 128 links, 700 with 512",
            "{membership, 128 links, 200 peers/bytes_per_s*0.001:.0f}"
            " ({membership, 128 links, 200 peers/called_dead_wrongly:.0f});"
            " {membership, 512 links, 700 peers/bytes_per_s*0.001:.0f}"
            " ({membership, 512 links, 700 peers/called_dead_wrongly:.0f})",
            "with all links: {membership, 200 peers/bytes_per_s*0.001:.1f}",
        ),
    ),
    (
        Remark("scale", "Above about 130 peers not every pair is linked."),
        Remark(
            "scale",
            "The figures of records, and of membership where links are missing, are of an earlier version, in which"
            " records grew with the group, and whoever had no link to a peer accused it.",
        ),
        Remark(
            "scale",
            "Other work ran beside this benchmark. Its bytes, rounds and virtual seconds don't depend on that.",
        ),
    ),
)
