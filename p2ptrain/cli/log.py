"""``p2ptrain log``: what this device's peer did, from its journal.

Invariant: only reads, so it may be asked while the peer runs; sentences are those that the peer tells.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click

from p2ptrain.cli.shared.options import Duration, json_option, state_option
from p2ptrain.errors import UserError
from p2ptrain.runtime.node import journal
from p2ptrain.runtime.node.journal import Line

LOOK_S = 0.5
EXAMPLES = """\b
Examples:
  p2ptrain log                     # the last 40 things worth a sentence
  p2ptrain log --since 8h --all    # every line of the night
  p2ptrain log --kind round --json | jq .loss
"""


@click.command(epilog=EXAMPLES)
@state_option
@click.option(
    "-n",
    "--lines",
    "num_lines",
    type=click.IntRange(1, 1_000_000),
    default=40,
    metavar="N",
    help="So many of the newest. [default: 40]",
)
@click.option("--since", "since_s", type=Duration(), metavar="TIME", help="Only what is no older. [default: any age]")
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="Only lines of this kind; may be given again. [default: all]"
)
@click.option("--all", "everything", is_flag=True, help="Every line as it stands there, not sentences alone.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@json_option
def command(
    state_dir: Path | None,
    num_lines: int,
    since_s: float | None,
    kinds: tuple[str, ...],
    everything: bool,
    follow: bool,
    as_json: bool,
) -> None:
    """What this device's peer did, in past runs too. --kind and --json show lines as they stand in the journal."""
    from p2ptrain.api import default_state_dir

    path = (state_dir or default_state_dir()) / "journal.jsonl"
    if not path.exists() and not journal.old_path(path).exists():
        raise UserError(f"{path}: no journal; name the folder that a peer had as --state, or start a peer")
    for part in (path, journal.old_path(path)):
        if part.exists() and not os.access(part, os.R_OK):
            raise UserError(f"{part}: can't be read by this user: ask as the one that its peer runs as")
    oldest = 0.0 if since_s is None else time.time() - since_s
    is_raw = everything or as_json or bool(kinds)

    def shown(line: Line) -> str | None:
        if line.time < oldest or (kinds and line.kind not in kinds):
            return None
        if as_json:
            return journal.encode(line).decode().rstrip("\n")
        return f"{journal.day(line)} {journal.render(line)}" if is_raw else _sentence(line)

    lines = (text for line in journal.read(path) if (text := shown(line)) is not None)
    for text in deque(lines, maxlen=num_lines):
        click.echo(text)
    if follow:
        try:
            for line in _coming(path):
                if (text := shown(line)) is not None:
                    click.echo(text)
        except KeyboardInterrupt:
            return


def _sentence(line: Line) -> str | None:
    from p2ptrain.ui import messages_for_people

    told = messages_for_people.tell(line)
    if told is None and line.kind == "round":
        told = messages_for_people.round_sentence(line.fields, 0, 0.0)
    return None if told is None else f"{journal.day(line)} {journal.clock(line)}  {told}"


def _coming(path: Path) -> Iterator[Line]:
    """Lines that are written from now on, in the file's successors too."""
    file, where = None, None
    rest = b""
    try:
        while True:
            try:
                found = path.stat()
            except OSError:
                found = None
            if found is not None and (found.st_dev, found.st_ino) != where:
                is_first = where is None
                if file is not None:
                    yield from _whole(rest + file.read())[0]
                    file.close()
                file, where, rest = path.open("rb"), (found.st_dev, found.st_ino), b""
                if is_first:
                    file.seek(0, 2)
            data = file.read() if file is not None else b""
            lines, rest = _whole(rest + data)
            yield from lines
            if not data:
                time.sleep(LOOK_S)
    finally:
        if file is not None:
            file.close()


def _whole(data: bytes) -> tuple[list[Line], bytes]:
    """The whole lines in ``data``, and what is left of a line that is still being written."""
    *whole, rest = data.split(b"\n")
    return [line for each in whole if (line := journal.decode(each)) is not None], rest
