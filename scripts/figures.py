#!/usr/bin/env python3
"""The README's tables of figures, written from the result files under ``scripts/figures/``.

    scripts/figures.py                                                    # write the tables into README.md
    scripts/figures.py --check                                            # status 1 if they are not what the files say
    scripts/figures.py add NAME results/scale.json                        # a result that counts: NAME.json
    scripts/figures.py add NAME p2ptrain-demo/result.json --command "p2ptrain demo --disjoint"

Every figure in the tables is looked up in a file; a row whose file is not there is left out. ``add`` takes a result of
``scripts/bench.py`` as it is. One of ``p2ptrain demo`` (``result.json`` in its ``--out`` folder) it puts into a wrapper
that also records this machine, the versions and the command that made it: so add it where it was measured.

A row is described in one place, below: its file, its words, and where its figures are.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

FOLDER = SCRIPTS / "figures"
README = SCRIPTS.parent / "README.md"
BEGIN = "<!-- figures: written by scripts/figures.py, don't edit -->"
END = "<!-- end of figures -->"
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
    ``{case/figure*0.001:.1f}`` for a thousandth of it."""

    file: str
    what: str
    measured: str
    baseline: str = ""
    more: tuple[str, ...] = ()
    """Further columns."""

    def cells(self, record: Record) -> list[str]:
        cases = {case["case"]: case["figures"] for case in record["cases"]}

        def look_up(match: re.Match[str]) -> str:
            case, figure, factor, digits = match.groups()
            found = cases.get(case, {}).get(figure)
            if found is None:
                raise FigureError(
                    f"scripts/figures/{self.file}.json: no figure {figure!r} of {case!r}, which a row names"
                )
            texts = [f"{found[key] * float(factor or 1):,{digits}}" for key in ("median", "low", "high")]
            return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}-{texts[2]})"

        return [_PLACE.sub(look_up, text) for text in (self.what, self.measured, self.baseline, *self.more)]


_PLACE = re.compile(r"\{([^{}/]+)/(\w+)(?:\*([0-9.e+-]+))?:([^{}]+)\}")


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


@dataclass(frozen=True, slots=True)
class Table:
    header: tuple[str, ...]
    rows: Sequence[Row]


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
            BenchRow(
                "tasks",
                "spoken digits, DS-CNN, four unlike devices (0.8 to 0.2 of a core): accuracy; seconds; MB sent, most",
                "class sub-models: {class sub-models/accuracy:.1f} %; {class sub-models/trained_s:.0f} s;"
                " {class sub-models/sent_mb:.1f} MB",
                "whole model by gossip: {whole model by gossip/accuracy:.1f} %;"
                " {whole model by gossip/trained_s:.0f} s; {whole model by gossip/sent_mb:.1f} MB;"
                " central, on the fastest alone: {central, fastest device/accuracy:.1f} %;"
                " {central, fastest device/trained_s:.0f} s",
            ),
            BenchRow(
                "tasks",
                "the same: FLOPs a sample of the full model's, most and least of a device; peak memory of a device",
                "{class sub-models/flops_share_most:.1f} %, {class sub-models/flops_share_least:.1f} %;"
                " {class sub-models/memory_mb:.0f} MB",
                "100 %; {whole model by gossip/memory_mb:.0f} MB",
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


def _span(values: Sequence[float], digits: str, unit: str) -> str:
    low, high = f"{min(values):{digits}}", f"{max(values):{digits}}"
    return f"{low} {unit}" if low == high else f"{low}-{high} {unit}"


def tables(folder: Path, wanted: Sequence[Table] = TABLES) -> str:
    """All tables that have a row, as Markdown, and below them where each file was measured."""
    records = {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}
    blocks = []
    for table in wanted:
        rows = [
            [*row.cells(records[row.file]), f"`{command_of(records[row.file])}`"]
            for row in table.rows
            if row.file in records
        ]
        if rows:
            lines = [table.header, ["---"] * len(table.header), *rows]
            blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    used = {row.file for table in wanted for row in table.rows} & records.keys()
    for unused in sorted(records.keys() - used):
        raise FigureError(f"scripts/figures/{unused}.json: no row is made of it; describe one in scripts/figures.py")
    places: dict[str, list[str]] = {}
    for name in sorted(used):
        places.setdefault(place_of(records[name]), []).append(name)
    if places:
        blocks.append("\n".join(f"{', '.join(f'`{n}`' for n in names)}: {place}." for place, names in places.items()))
    return "\n\n".join(blocks)


def command_of(record: Record) -> str:
    """What to type to measure it again."""
    if "command" in record:
        return str(record["command"])
    script, *arguments = record["command_line"]
    return shlex.join([f"scripts/{Path(script).name}", *arguments])


def place_of(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    load = f", load {record['load_average_before']:.1f} before" if "load_average_before" in record else ""
    return f"{machine['cpu']}, {machine['cores']} cores{load}; Python {versions['python']}, torch {versions['torch']}"


def add(name: str, path: Path, folder: Path, command: str) -> Path:
    """Put a result that counts among the figures."""
    result = _read(path)
    if "cases" in result:
        if result["tiny"] or result["incomplete"]:
            raise FigureError(f"{path}: a tiny or incomplete run; its figures mean nothing, so measure again")
        record = result | {"command_line": _without_places(result["command_line"])}
    elif "assembled_accuracy" in result:
        if not command:
            raise FigureError(f'{path}: how was it made? Say so with --command "p2ptrain demo ..."')
        from benchmarks.common import describe_machine, describe_versions

        measured_at = path.stat().st_mtime
        record = {
            "command": command,
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(measured_at)),
            "machine": describe_machine(),
            "versions": describe_versions(),
            "result": result,
        }
    else:
        raise FigureError(f"{path}: neither a result of scripts/bench.py nor result.json of p2ptrain demo")
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}.json"
    target.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return target


def _without_places(command_line: Sequence[str]) -> list[str]:
    """A benchmark's command line, less where its script lay and where its results went."""
    script, *arguments = command_line
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return [f"scripts/{Path(script).name}", *arguments]


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FigureError(f"{path}: not a readable result ({error})") from None
    if not isinstance(record, dict):
        raise FigureError(f"{path}: not a result")
    return record


def rewritten(text: str, content: str) -> str:
    """``text`` with ``content`` between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FigureError(f"README.md: put the two lines {BEGIN} and {END} where the tables shall be")
    middle = f"\n\n{content}\n\n" if content else "\n"
    return f"{before}{BEGIN}{middle}{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if README.md and files differ")
    commands = parser.add_subparsers(dest="what")
    adding = commands.add_parser("add", help="put a result among the figures, then write the tables")
    adding.add_argument("name", metavar="NAME", help="of the file under scripts/figures/, which rows name")
    adding.add_argument("path", type=Path, metavar="RESULT", help="results/*.json or a demo's result.json")
    adding.add_argument("--command", default="", help="the command that made a demo's result")
    options = parser.parse_args(arguments)
    try:
        if options.what == "add":
            print(add(options.name, options.path, FOLDER, options.command))
        text = README.read_text(encoding="utf-8")
        new = rewritten(text, tables(FOLDER))
    except FigureError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        if new != text:
            print("README.md and scripts/figures/ differ; scripts/figures.py writes the tables again", file=sys.stderr)
        return int(new != text)
    if new != text:
        README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
