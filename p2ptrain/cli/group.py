"""``p2ptrain group``: make a join code, or show the one in use.

Invariant: a code that is replaced is shown once more, so that nobody is locked out of a group by mistake.
"""

from __future__ import annotations

from pathlib import Path

import click

from p2ptrain.cli.shared.options import json_option, print_json

EXAMPLES = """\b
Examples:
  p2ptrain group new            a code for a new group, kept on this device
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
    """Make a join code, or show the one in use.

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
    click.echo("Start a peer on each device:  p2ptrain peer --code CODE --data ...", err=True)
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
