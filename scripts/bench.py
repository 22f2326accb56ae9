#!/usr/bin/env python3
"""Benchmarks of p2ptrain on this machine, each beside a baseline measured in the same session.

    scripts/bench.py list
    scripts/bench.py NAME... [--out results/] [--repeat 3] [--more] [--tiny]
    scripts/bench.py NAME [--only CASE ...] [--resume]
    scripts/bench.py NAME... --redraw [--out results/]

Prints a table and writes ``NAME.json``: the machine, versions, every repetition's raw figures, medians and spread; and
``NAME.png``, a picture of them, if matplotlib is there (extra ``bench``). A run that is cut off leaves what it measured
in ``NAME.partial.json``. Of some benchmarks cases can be chosen, and ``--resume`` measures what an earlier run lacks.
Everything runs on the loopback interface of this machine; close other programs for steady figures.
``--tiny`` only shows that a benchmark works: its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.common import Settings, measure, redraw
from benchmarks.plots import HOW_TO

from p2ptrain.errors import P2PTrainError

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def listed() -> dict[str, str]:
    """Every benchmark and named case, with what it measures: ``LISTED`` of the modules.

    They are read, not imported: a benchmark of memory must not find torch loaded by another one.
    """
    found: dict[str, str] = {}
    for path in sorted(FOLDER.glob("*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="LISTED")], value=value):
                    found |= ast.literal_eval(value)
    return found


def find(name: str) -> Any:
    """The module of a benchmark, or, of ``module-case``, one of its named cases."""
    module, _, case = name.partition("-")
    found = importlib.import_module(f"benchmarks.{module}")
    return found.NAMED[case] if case else found


def main(arguments: list[str] | None = None) -> int:
    benchmarks = listed()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=["list", "all", *benchmarks])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for NAME.json and NAME.png")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of baseline and measured thing, in turn")
    parser.add_argument("--more", action="store_true", help="repeat so often again, on top of what NAME.json holds")
    parser.add_argument("--only", action="append", metavar="CASE", default=[], help="this case; may be given again")
    parser.add_argument("--resume", action="store_true", help="measure what NAME.json or a run cut off lacks")
    parser.add_argument("--tiny", action="store_true", help="a setting that only shows that the benchmark works")
    parser.add_argument("--redraw", action="store_true", help="only make NAME.png again, from NAME.json")
    options = parser.parse_args(arguments)
    if "list" in options.names:
        for name, what in benchmarks.items():
            print(f"{name:<23} {what}")
        return 0
    if options.repeat < 1:
        parser.error(f"--repeat {options.repeat}: at least 1")
    if options.resume and options.more:
        parser.error("--resume and --more: one of them")
    status = 0
    for name in benchmarks if "all" in options.names else options.names:
        module = find(name)
        choices = getattr(module, "CHOICES", ())
        if (options.only or options.resume) and not choices:
            parser.error(f"{name}: its cases can't be chosen, nor a run that was cut off be gone on with")
        if unknown := sorted(set(options.only) - set(choices)):
            parser.error(f"{name}: --only {unknown[0]!r}: its cases are {', '.join(choices)}")
        if options.redraw:
            print(redraw(name, module, options.out) or HOW_TO)
            continue
        try:
            settings = Settings(
                options.repeat, options.tiny, options.more, resume=options.resume, only=tuple(options.only)
            )
            result = measure(name, module, settings, options.out)
        except P2PTrainError as error:
            print(f"bench.py: {error}", file=sys.stderr)
            return 2
        status = 1 if result["incomplete"] else status
    return status


if __name__ == "__main__":
    sys.exit(main())
