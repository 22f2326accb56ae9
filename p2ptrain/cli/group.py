"""``p2ptrain group``: make a join code, take one from another device, or show the one in use.

Invariant: a code that is replaced is shown once more, so that nobody is locked out of a group by mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.options import json_option, print_json

if TYPE_CHECKING:
    from p2ptrain.net.keys import Group

EXAMPLES = """\b
Examples:
  p2ptrain group new            a code for a new group, kept on this device
  p2ptrain group join           asks for the code of a group, and keeps it on this device
  p2ptrain group show           the code in use here, to tell others
"""


def state_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "--state",
        "state_dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="P2PTRAIN_STATE",
        metavar="DIR",
        help="Directory that keeps the code. [default: $P2PTRAIN_STATE, else ~/.local/state/p2ptrain]",
    )(function)


@click.group(epilog=EXAMPLES)
def command() -> None:
    """Make a join code, take one from another device, or show the one in use.

    Whoever holds the code can join the group, train with it and harvest its model: tell it to nobody else.
    """


@command.command(epilog="\b\nExample:\n  p2ptrain group new")
@state_option
@json_option
def new(state_dir: Path | None, as_json: bool) -> None:
    """Make a join code and keep it as this device's group."""
    from p2ptrain.api import default_state_dir
    from p2ptrain.net.keys import load_group, new_group, save_group

    where = state_dir or default_state_dir()
    former, group = load_group(where), new_group()
    save_group(where, group)
    if as_json:
        print_json({"code": str(group), "former": str(former) if former else None})
        return
    click.echo(str(group))
    click.echo(
        "On each device:  p2ptrain group join, which asks for this code, then  p2ptrain peer --data ...", err=True
    )
    _tell_former(former)


@command.command(epilog="\b\nExamples:\n  p2ptrain group join\n  p2ptrain group join < code.txt")
@state_option
@json_option
def join(state_dir: Path | None, as_json: bool) -> None:
    """Ask for a join code and keep it as this device's group.

    So it is in no list of processes and in no shell's history, as it would be after --code. It is read from
    $P2PTRAIN_CODE, from the standard input, or from whoever sits here.
    """
    import os
    import sys

    from p2ptrain.api import default_state_dir
    from p2ptrain.net.keys import load_group, read_code, save_group

    text = os.environ.get("P2PTRAIN_CODE", "")
    if not text and sys.stdin.isatty():
        text = click.prompt("Join code", err=True)
    where, group = state_dir or default_state_dir(), read_code(text or sys.stdin.readline())
    former = load_group(where)
    save_group(where, group)
    if as_json:
        print_json({"former": str(former) if former and former != group else None})
        return
    click.echo("This device is in the group now. Start a peer:  p2ptrain peer --data ...", err=True)
    _tell_former(former if former != group else None)


def _tell_former(former: Group | None) -> None:
    if former is not None:
        click.echo(f"This device was in another group until now: {former}", err=True)


@command.command(epilog="\b\nExample:\n  p2ptrain group show")
@state_option
@json_option
def show(state_dir: Path | None, as_json: bool) -> None:
    """Show the join code that this device uses."""
    from p2ptrain.api import find_group

    group = find_group(None, state_dir=state_dir)
    if as_json:
        print_json({"code": str(group), "open": group.is_open})
    else:
        click.echo(str(group))
