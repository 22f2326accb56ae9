#!/usr/bin/env python3
"""Writes scripts/figures/README.md, and the small table in README.md, from the result files under scripts/figures/.

    scripts/figures.py                                                    # write both
    scripts/figures.py --check                                            # status 1 if they are not what the files say
    scripts/figures.py add NAME results/scale.json                        # a result that counts: NAME.json
    scripts/figures.py add NAME p2ptrain-demo/result.json --command "p2ptrain demo --disjoint"

Every figure in the tables is looked up in a file; a row whose file is not there is left out. ``add`` takes a result of
``scripts/bench.py``, or lab.json of the lab, as it is. One of ``p2ptrain demo`` (``result.json`` in its
``--out`` folder) it puts into a wrapper that also records this machine, the versions and the command that made it: so
add it where it was measured. What is written of a result stands in FIGURES of the benchmark's own module
(scripts/benchmarks/), or in scripts/lab/report.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.rows import Chapter, FigureError, Record, Row, Section, filled

SCRIPTS = Path(__file__).resolve().parent
FOLDER = SCRIPTS / "figures"
PAGE, README = FOLDER / "README.md", SCRIPTS.parent / "README.md"
BEGIN = "<!-- figures: written by scripts/figures.py, don't edit -->"
END = "<!-- end of figures -->"
IN_README = ("what", "p2ptrain", "beside it")
INTRO = f"""{BEGIN}
# Measured figures

Each table names the command that measured it. A figure is a median. In brackets stand the lowest and the highest, where
there were several repetitions. Where each file was measured stands [at the end](#where-this-was-measured).
`scripts/figures.py` writes this page from the result files beside it, which hold every repetition.
"""
TESTS = """## What the tests show

| what | measured | command |
| --- | --- | --- |
| kill -9 of one of four peers: known to all others after | 1.8-2.0 s (1.8-2.7 s on a machine ten times overloaded) \
| `scripts/test.sh tests/processes` |
| 200 peers, 20 % loss, virtual time: a join, a death known to all; gossip below 1 % | 0.3 s; 4.4-5.2 s; 6.5-7.5 s \
| `scripts/test.sh tests/virtual` |
"""


def sections() -> list[Section]:
    """What all benchmarks and the lab bring, in the order of the page."""
    names = [f"benchmarks.{path.stem}" for path in sorted((SCRIPTS / "benchmarks").glob("[!_]*.py"))]
    modules = [importlib.import_module(name) for name in (*names, "lab.report")]
    found: list[Section] = [module.FIGURES for module in modules if hasattr(module, "FIGURES")]
    return sorted(found, key=lambda section: get_args(Chapter).index(section.chapter))


def records_of(folder: Path) -> dict[str, Record]:
    """The results that count, by name."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def page(records: Mapping[str, Record], wanted: Sequence[Section]) -> str:
    """Every section that has a row, and below them where each file was measured."""
    return "\n".join([INTRO, *_chapters(records, wanted), TESTS, *_places(records)])


def _chapters(records: Mapping[str, Record], wanted: Sequence[Section]) -> Iterator[str]:
    used = {row.file for section in wanted for row in section.rows}
    for unused in sorted(records.keys() - used):
        raise FigureError(f"scripts/figures/{unused}.json: no row is made of it; FIGURES of its benchmark wants one")
    chapter = ""
    for section in wanted:
        rows = [[*cells, f"`{command_of(records[file])}`"] for file, cells in _filled(section.rows, records)]
        if not rows:
            continue
        if section.chapter != chapter:
            chapter = section.chapter
            yield f"## {chapter}\n"
        yield f"### {section.title}\n\n{table(section.header, rows)}"
        remarks = [remark for remark in section.remarks if remark.file in records]
        if remarks:
            yield "".join(_item(filled(remark.text, remark.file, records[remark.file])) for remark in remarks)


def _item(text: str) -> str:
    return (
        textwrap.fill(f"- {text}", 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False) + "\n"
    )


def small_table(records: Mapping[str, Record], wanted: Sequence[Section]) -> str:
    """README's: the rows that the sections bring for it."""
    rows = [cells for section in wanted for _, cells in _filled(section.in_readme, records)]
    return table(IN_README, rows) if rows else ""


def _filled(rows: Sequence[Row], records: Mapping[str, Record]) -> Iterator[tuple[str, list[str]]]:
    return ((row.file, row.cells(records[row.file])) for row in rows if row.file in records)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _places(records: Mapping[str, Record]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for name, record in records.items():
        places.setdefault(place_of(record), []).append(name)
    if places:
        yield "## Where this was measured\n"
        yield "".join(f"- {', '.join(f'`{n}`' for n in names)}: {place}.\n" for place, names in places.items())


def command_of(record: Record) -> str:
    """What to type to measure it again."""
    if "command" in record:
        return str(record["command"])
    return shlex.join(_without_places(record["command_line"]))


def place_of(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    load = f", load {record['load_average_before']:.1f} before" if "load_average_before" in record else ""
    return f"{machine['cpu']}, {machine['cores']} cores{load}; Python {versions['python']}, torch {versions['torch']}"


def add(name: str, path: Path, folder: Path, command: str) -> Path:
    """Put a result that counts among the figures."""
    result = _read(path)
    if "cases" in result:
        if result["tiny"] or result["incomplete"]:
            raise FigureError(
                f"{path}: a tiny, incomplete or uncalibrated run; its figures mean nothing, so measure again"
            )
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
        raise FigureError(f"{path}: neither a result of scripts/bench.py or the lab nor result.json of p2ptrain demo")
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}.json"
    target.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return target


def _without_places(command_line: Sequence[str]) -> list[str]:
    """A benchmark's or the lab's command line, less where its script lay and where its results went."""
    program, *arguments = command_line
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return [f"scripts/{Path(program).name}" if program.endswith(".py") else program, *arguments]


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
        raise FigureError(f"README.md: put the two lines {BEGIN} and {END} where the table shall be")
    middle = f"\n\n{content.strip()}\n\n" if content else "\n"
    return f"{before}{BEGIN}{middle}{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if pages and files differ")
    commands = parser.add_subparsers(dest="what")
    adding = commands.add_parser("add", help="put a result among the figures, then write the pages")
    adding.add_argument("name", metavar="NAME", help="of the file under scripts/figures/, which rows name")
    adding.add_argument("path", type=Path, metavar="RESULT", help="results/*.json or a demo's result.json")
    adding.add_argument("--command", default="", help="the command that made a demo's result")
    options = parser.parse_args(arguments)
    try:
        if options.what == "add":
            print(add(options.name, options.path, FOLDER, options.command))
        records, wanted = records_of(FOLDER), sections()
        readme = rewritten(README.read_text(encoding="utf-8"), small_table(records, wanted))
        pages = {PAGE: page(records, wanted), README: readme}
    except FigureError as error:
        print(error, file=sys.stderr)
        return 2
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if options.check:
            place = path.relative_to(SCRIPTS.parent)
            print(f"{place} and the result files differ; scripts/figures.py writes it again", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
