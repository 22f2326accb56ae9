"""The rows of the README's tables of figures: for each its file, its words, and where its figures are.

Invariant: a figure is named, never written down: a row says which case and which figure of which file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import figure_rows_slices

Record = dict[str, Any]


class FigureError(Exception):
    """One line for the user: what is wrong, where, what to do."""


class Row(Protocol):
    @property
    def file(self) -> str:
        """Name of the result file, without ``.json``."""
        ...

    def cells(self, record: Record) -> list[str]:
        """All but the last, which is the command. Raises ``FigureError`` for what the file does not have."""
        ...


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Of a benchmark's result. ``{case/figure:.1f}`` stands for the median of a figure, and its spread if there is one;
    ``{case/figure*0.001:.1f}`` for a thousandth of it, ``{case/figure:+.1f}`` for a difference, with its sign."""

    file: str
    what: str
    measured: str
    baseline: str = ""
    more: tuple[str, ...] = ()
    """Further columns."""

    def cells(self, record: Record) -> list[str]:
        cases = {case["case"]: case["figures"] for case in record["cases"]}

        def look_up(match: re.Match[str]) -> str:
            case, figure, factor, sign, digits = match.groups()
            found = cases.get(case, {}).get(figure)
            if found is None:
                raise FigureError(
                    f"scripts/figures/{self.file}.json: no figure {figure!r} of {case!r}, which a row names"
                )
            texts = [f"{found[key] * float(factor or 1):{sign},{digits}}" for key in ("median", "low", "high")]
            to = " to " if sign else "-"
            return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}{to}{texts[2]})"

        return [_PLACE.sub(look_up, text) for text in (self.what, self.measured, self.baseline, *self.more)]


_PLACE = re.compile(r"\{([^{}/]+)/(\w+)(?:\*([0-9.e+-]+))?:(\+?)([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """Of a result of ``p2ptrain demo``. ``what`` may name fields of it: ``{num_peers}``, ``{epochs:g}``, ..."""

    file: str
    what: str

    def cells(self, record: Record) -> list[str]:
        try:
            result = record["result"]
            peers, central = result["peers"], result["central_accuracy"]
            return [
                self.what.format(**result, num_peers=len(peers)),
                f"{100 * result['assembled_accuracy']:.1f} %",
                "" if central is None else f"{100 * central:.1f} %",
                _span([100 * peer["flops_share"] for peer in peers], ".1f", "%"),
                _span([peer["bytes_sent"] / 1e6 for peer in peers], ".1f", "MB"),
            ]
        except KeyError as error:
            raise FigureError(
                f"scripts/figures/{self.file}.json: no {error}; is it a result of p2ptrain demo?"
            ) from None


def _span(values: Sequence[float], digits: str, unit: str) -> str:
    low, high = f"{min(values):{digits}}", f"{max(values):{digits}}"
    return f"{low} {unit}" if low == high else f"{low}-{high} {unit}"


@dataclass(frozen=True, slots=True)
class Table:
    header: tuple[str, ...]
    rows: Sequence[Row]


OVERLAP_WORKLOADS = {
    "overlap-own": "pictures, an own CNN",
    "overlap-digits": "spoken digits, DS-CNN",
}
"""By result file."""
NEIGHBOURS = ("p2ptrain tasks", "p2ptrain replicas", "hivemind", "torchft")
NEIGHBOUR_FORMS = (
    ("a third of the samples each: accuracy", "{iid: NAME/accuracy_percent:.1f} %"),
    ("disjoint classes: accuracy", "{disjoint: NAME/accuracy_percent:.1f} %"),
    ("seconds a round of 30 steps, averaging included", "{iid: NAME/round_s:.2f} s"),
    ("memory of a participant (PSS)", "{iid: NAME/pss_mb:.0f} MB"),
    ("sent by a participant, 12 rounds", "{iid: NAME/sent_mb:.1f} MB"),
    ("kill -9 of one: the others go on after", "{iid, one killed: NAME/go_on_s:.2f} s"),
    ("accuracy then, a third of the samples each", "{iid, one killed: NAME/accuracy_percent:.1f} %"),
    (
        "accuracy then, disjoint classes (three classes have no samples any more)",
        "{disjoint, one killed: NAME/accuracy_percent:.1f} %",
    ),
)
"""What is said of each; NAME stands for it."""

TASKS_WORKLOADS = {"tasks": "spoken digits, DS-CNN,", "tasks-cifar": "a tenth of CIFAR-10, VGG-11,"}
"""Of the benchmarks that compare class sub-models."""

TABLES = (
    Table(
        ("what", "assembled", "central, same epochs", "FLOPs per peer", "sent per peer", "command"),
        (
            DemoRow("demo-digits", "digits, {num_peers} peers, a share of the samples each"),
            DemoRow(
                "demo-digits-disjoint", "digits, {num_peers} peers, **disjoint classes**, head re-fitted by the group"
            ),
            DemoRow("demo-digits-disjoint-replicas", "the same split, whole model on every peer, averaged by gossip"),
            DemoRow("demo-spoken-digits", "spoken digits, {model}, {num_peers} peers, {epochs:g} epochs"),
            DemoRow("demo-cifar10", "CIFAR-10, {model}, {num_peers} peers, {epochs:g} epochs"),
        ),
    ),
    Table(
        ("what", "measured", "baseline", "command"),
        (
            *(
                BenchRow(
                    "startup",
                    f"{peers} peers at once, found by mDNS: from process start to the group, the plan, the first step",
                    f"{{{peers} peers by mdns/group_s:.1f}} s; {{{peers} peers by mdns/plan_s:.1f}} s;"
                    f" {{{peers} peers by mdns/first_step_s:.1f}} s",
                    f"`import torch` as often, at once: {{import torch x {peers}/s:.1f}} s",
                )
                for peers in (3, 8)
            ),
            BenchRow(
                "memory",
                "memory (PSS) of a node: idle; training LeNet; training VGG-11",
                "{lenet: node, idle/pss_mb:.0f} MB; {lenet: node, training/pss_mb:.0f} MB;"
                " {vgg11_bn: node, training/pss_mb:.0f} MB",
                "`import torch`: {import torch/pss_mb:.0f} MB",
            ),
            BenchRow(
                "memory",
                "memory (PSS) of a trainer: LeNet; VGG-11",
                "{lenet: trainer, training/pss_mb:.0f} MB; {vgg11_bn: trainer, training/pss_mb:.0f} MB",
                "the same loop in one process: {lenet: one process, training/pss_mb:.0f} MB;"
                " {vgg11_bn: one process, training/pss_mb:.0f} MB",
            ),
            BenchRow(
                "wire",
                "64 MB of tensors between processes, MB/s: frames; frames with CURVE; a whole fetch to memory; to disk",
                "{64 MB: frames, plain/mb_per_s:.0f}; {64 MB: frames, CURVE/mb_per_s:.0f};"
                " {64 MB: fetch to memory/mb_per_s:.0f}; {64 MB: fetch to disk/mb_per_s:.0f}",
                "plain TCP: {64 MB: TCP/mb_per_s:.0f}",
            ),
            BenchRow(
                "wire",
                "the same, CPU seconds a GB, both sides",
                "{64 MB: frames, plain/cpu_s_per_gb:.1f}; {64 MB: frames, CURVE/cpu_s_per_gb:.1f};"
                " {64 MB: fetch to memory/cpu_s_per_gb:.1f}; {64 MB: fetch to disk/cpu_s_per_gb:.1f}",
                "plain TCP: {64 MB: TCP/cpu_s_per_gb:.1f}",
            ),
            *(
                BenchRow(
                    "gossip_round",
                    f"one gossip exchange of {name} (payload made, fetched, merged), ms: whole; fp16; int8; top-k",
                    "; ".join(f"{{{model}, {kind}/exchange_ms:.0f}}" for kind in ("none", "fp16", "int8", "topk")),
                    "as many bytes over plain TCP and an average: "
                    + "; ".join(
                        f"{{{model}, {kind}: TCP/exchange_ms:.0f}}" for kind in ("none", "fp16", "int8", "topk")
                    ),
                )
                for model, name in (("lenet", "LeNet"), ("vgg11_bn", "VGG-11"))
            ),
            *(
                row
                for name, words in TASKS_WORKLOADS.items()
                for row in (
                    BenchRow(
                        name,
                        f"{words} on four unlike devices (0.4 to 0.1 of a core): accuracy after"
                        " {class sub-models/trained_s:.0f} s; when that of the worst of the three was reached",
                        "class sub-models: {class sub-models/accuracy:.1f} %; {class sub-models/reached_s:.0f} s",
                        "whole model by gossip: {whole model by gossip/accuracy:.1f} %;"
                        " {whole model by gossip/reached_s:.0f} s;"
                        " central, on the fastest alone: {central, fastest device/accuracy:.1f} %;"
                        " {central, fastest device/reached_s:.0f} s",
                    ),
                    BenchRow(
                        name,
                        "the same: thousand samples trained, all devices; FLOPs a sample of the full model's, most and"
                        " least; peak memory and MB sent of a device, most",
                        "{class sub-models/samples_trained_k:.0f}; {class sub-models/flops_share_most:.1f} %,"
                        " {class sub-models/flops_share_least:.1f} %; {class sub-models/memory_mb:.0f} MB;"
                        " {class sub-models/sent_mb:.1f} MB",
                        "whole model by gossip: {whole model by gossip/samples_trained_k:.0f}; 100 %;"
                        " {whole model by gossip/memory_mb:.0f} MB; {whole model by gossip/sent_mb:.1f} MB;"
                        " central: {central, fastest device/samples_trained_k:.0f}",
                    ),
                )
            ),
            *(BenchRow(*words) for words in figure_rows_slices.ROWS),
            BenchRow(
                "lab-three-unlike",
                "three devices, the fastest ten times the slowest, digits, 12 rounds: from start to the harvested"
                " model; accuracy; how many different first plans in {three unlike devices/num_runs:.0f} runs",
                "{three unlike devices/harvested_s:.0f} s; {three unlike devices/accuracy:.1f} %;"
                " {three unlike devices/num_first_plans:.0f}",
                "a device's speed, furthest off what its share says: {three unlike devices/worst_deviation:.1f} %",
            ),
            BenchRow(
                "lab-partition",
                "four devices, cut in two for 30 s while they train: plans in force after healing;"
                " devices whose copies are in the model; its accuracy",
                "{partition/plans_in_force:.0f}; {partition/copies_harvested:.0f}; {partition/accuracy:.1f} %",
            ),
            BenchRow(
                "scale",
                "1,000 and 5,000 peers, virtual time, 1 % loss: a death is known to all after",
                "{membership, 1000 peers/death_known_s:.1f} s; {membership, 5000 peers/death_known_s:.1f} s",
                "heartbeats to all: {heartbeats, 1000 peers/death_known_s:.1f} s;"
                " {heartbeats, 5000 peers/death_known_s:.1f} s",
            ),
            BenchRow(
                "scale",
                "what membership sends for it, kB/s a peer",
                "{membership, 1000 peers/bytes_per_s*0.001:.1f}; {membership, 5000 peers/bytes_per_s*0.001:.1f}",
                "heartbeats to all: {heartbeats, 1000 peers/bytes_per_s*0.001:.0f};"
                " {heartbeats, 5000 peers/bytes_per_s*0.001:.0f}",
            ),
            BenchRow(
                "scale",
                "10, 100, 1,000, 5,000 peers: rounds until all copies are within 1 % of the mean",
                "{gossip, 10 peers/rounds:.1f}; {gossip, 100 peers/rounds:.1f};"
                " {gossip, 1000 peers/rounds:.1f}; {gossip, 5000 peers/rounds:.1f}",
                "one averager's time: {central average, 10 peers/rounds:.1f}; {central average, 100 peers/rounds:.1f};"
                " {central average, 1000 peers/rounds:.1f}; {central average, 5000 peers/rounds:.1f}",
            ),
            BenchRow(
                "scale",
                "10, 100, 500 peers: what their records take, kB/s a peer",
                "{records, 10 peers/bytes_per_s*0.001:.0f}; {records, 100 peers/bytes_per_s*0.001:.0f};"
                " {records, 500 peers/bytes_per_s*0.001:.0f}",
            ),
            BenchRow(
                "scale",
                "100, 200, 300 peers: links to others that a peer gets (fewest), as it dials 128 addresses at most",
                "{sessions, 100 peers/links_median:.0f} ({sessions, 100 peers/links_fewest:.0f});"
                " {sessions, 200 peers/links_median:.0f} ({sessions, 200 peers/links_fewest:.0f});"
                " {sessions, 300 peers/links_median:.0f} ({sessions, 300 peers/links_fewest:.0f})",
                "all: 99; 199; 299",
            ),
            BenchRow(
                "scale",
                "membership where links are missing, kB/s a peer (and who was called dead wrongly in 10 s):"
                " 200 peers with 128 links, 700 with 512",
                "{membership, 128 links, 200 peers/bytes_per_s*0.001:.0f}"
                " ({membership, 128 links, 200 peers/called_dead_wrongly:.0f});"
                " {membership, 512 links, 700 peers/bytes_per_s*0.001:.0f}"
                " ({membership, 512 links, 700 peers/called_dead_wrongly:.0f})",
                "with all links: {membership, 200 peers/bytes_per_s*0.001:.1f}",
            ),
            *(
                BenchRow(
                    "gossip",
                    f"digits, LeNet on each of {peers} peers: accuracy, gossip a peer; whole, fp16, int8, top-k",
                    "; ".join(
                        f"{{{peers} peers, {kind}/accuracy:.1f}} %, {{{peers} peers, {kind}/gossip_mb:.2f}} MB"
                        for kind in ("none", "fp16", "int8", "topk")
                    ),
                    "central training: {central/accuracy:.1f} %",
                )
                for peers in (2, 4, 8)
            ),
        ),
    ),
    Table(
        (
            "test accuracy, %, peers with none of their classes in common; a half; all; two of those that one has",
            "auto",
            "best peer alone",
            "central training",
            "replicas",
            "class sub-models, as many passes as equal work allows",
            "command",
        ),
        tuple(
            BenchRow(name, f"{words}, {peers} peers", cells[0], cells[1], tuple(cells[2:]))
            for name, words in OVERLAP_WORKLOADS.items()
            for peers in (2, 3, 5)
            for cells in [
                [
                    "; ".join(
                        f"{{{peers} peers, {overlap}/{way}:.0f}}" for overlap in ("none", "half", "all", "within")
                    )
                    for way in ("auto", "alone", "central", "replicas", "tasks")
                ]
            ]
        ),
    ),
    Table(
        (
            "digits, three processes",
            "p2ptrain, class sub-models",
            "p2ptrain, replicas",
            "hivemind",
            "torchft",
            "command",
        ),
        tuple(
            BenchRow(
                "neighbours",
                words,
                form.replace("NAME", NEIGHBOURS[0]),
                form.replace("NAME", NEIGHBOURS[1]),
                tuple(form.replace("NAME", name) for name in NEIGHBOURS[2:]),
            )
            for words, form in NEIGHBOUR_FORMS
        ),
    ),
)
