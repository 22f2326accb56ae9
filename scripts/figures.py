#!/usr/bin/env python3
"""The README's tables of figures, written from the result files under ``scripts/figures/``.

    scripts/figures.py                                                    # write the tables into README.md
    scripts/figures.py --check                                            # status 1 if they are not what the files say
    scripts/figures.py add NAME results/scale.json                        # a result that counts: NAME.json
    scripts/figures.py add NAME p2ptrain-demo/result.json --command "p2ptrain demo --disjoint"

Every figure in the tables is looked up in a file; a row whose file is not there is left out. ``add`` takes a result of
``scripts/bench.py``, or lab.json of the lab, as it is. One of ``p2ptrain demo`` (``result.json`` in its
``--out`` folder) it puts into a wrapper that also records this machine, the versions and the command that made it: so
add it where it was measured. What rows there are stands in scripts/figure_rows.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from figure_rows import TABLES, FigureError, Record, Table

SCRIPTS = Path(__file__).resolve().parent
FOLDER = SCRIPTS / "figures"
README = SCRIPTS.parent / "README.md"
BEGIN = "<!-- figures: written by scripts/figures.py, don't edit -->"
END = "<!-- end of figures -->"


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
        raise FigureError(f"scripts/figures/{unused}.json: no row is made of it; scripts/figure_rows.py wants one")
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
        raise FigureError(
            f"{path}: neither a result of scripts/bench.py or scripts.lab nor result.json of p2ptrain demo"
        )
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
