"""``p2ptrain group``: make a join code, take one from another device, show the one in use, or give the group another.

Invariant: a code that is replaced is shown once more, so that nobody is locked out of a group by mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.options import (
    json_option,
    network_options,
    print_json,
    progress,
    read_network,
    run_async,
    state_option,
    wait_option,
)
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.ids import PeerId
    from p2ptrain.net.keys import Group
    from p2ptrain.runtime.new_code import Rotation
    from p2ptrain.runtime.node.node import NetworkConfig
    from p2ptrain.runtime.store.members import Member

EXAMPLES = """\b
Examples:
  p2ptrain group new            a code for a new group, kept on this device
  p2ptrain group join           asks for the code of a group, and keeps it on this device
  p2ptrain group show           the code in use here, to tell others
  p2ptrain group rotate         a new code, which travels to the members that stay
  p2ptrain group remove NAME    the same, without that member
  p2ptrain group approve NAME   let a device into a group of `group new --approve`
"""


@click.group(epilog=EXAMPLES)
def command() -> None:
    """Make a join code, take one from another device, show the one in use, or give the group another.

    Whoever holds the code can join the group, train with it and harvest its model: tell it to nobody else. The device
    that made the code can change it, and remove members so.
    """


@command.command(epilog="\b\nExample:\n  p2ptrain group new")
@state_option
@click.option("--approve", is_flag=True, help="The code alone lets nobody in: `group approve` does.")
@json_option
def new(state_dir: Path | None, approve: bool, as_json: bool) -> None:
    """Make a join code and keep it as this device's group."""
    from p2ptrain.api import default_state_dir
    from p2ptrain.net.group.admission import admit
    from p2ptrain.net.group.founding import found
    from p2ptrain.net.group.kept import KeptGroup, enter_group, load_group
    from p2ptrain.net.keys import load_or_make_identity

    where = state_dir or default_state_dir()
    former, identity = load_group(where), load_or_make_identity(where)
    founding = found(identity.public)
    group = founding.group(approves=approve)
    enter_group(where, KeptGroup(group, founding, admit(identity, group, identity.public) if approve else b""))
    if as_json:
        print_json({"code": str(group), "former": str(former) if former else None})
        return
    click.echo(str(group))
    click.echo(
        "On each device:  p2ptrain group join, which asks for this code, then  p2ptrain peer --data ...", err=True
    )
    _tell_former(former)


@command.command(
    epilog="\b\nExamples:\n  p2ptrain group join\n  p2ptrain group join < code.txt",
    context_settings={"allow_extra_args": True},
)
@state_option
@json_option
@click.pass_context
def join(context: click.Context, state_dir: Path | None, as_json: bool) -> None:
    """Ask for a join code and keep it as this device's group.

    So it is in no list of processes and in no shell's history, as it would be after --code. It is read from
    $P2PTRAIN_CODE, from the standard input, or from whoever sits here.
    """
    import os

    from p2ptrain.api import default_state_dir
    from p2ptrain.net.group.kept import join_group, load_group
    from p2ptrain.net.keys import read_code

    if context.args:
        raise UserError(
            "the code does not stand in the command: `p2ptrain group join` asks for it, so that nobody reads it"
        )
    text = os.environ.get("P2PTRAIN_CODE", "")
    where, group = state_dir or default_state_dir(), read_code(text or _asked())
    former = load_group(where)
    joined = join_group(where, group)
    if as_json:
        print_json({"former": str(former) if former and former != joined else None})
        return
    if joined != group:
        click.echo("That is an old code of this group; this device goes on with the newer one that it has.", err=True)
    click.echo("This device is in the group now. Start a peer:  p2ptrain peer --data ...", err=True)
    _tell_former(former if former != joined else None)


def _asked() -> str:
    """By whoever sits here; else the first line of the standard input that has something in it, in any encoding."""
    import sys

    if sys.stdin.isatty():
        return str(click.prompt("Join code", err=True))
    lines = (line.decode("utf-8", "ignore").replace("\0", "") for line in sys.stdin.buffer)
    return next((line for line in lines if line.strip("\ufeff \t\r\n")), "")


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


def rotation_options(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        json_option,
        click.option("--yes", is_flag=True, help="Don't ask."),
        wait_option(60.0),
        network_options,
        state_option,
    ):
        function = option(function)
    return function


@command.command(epilog="\b\nExamples:\n  p2ptrain group approve\n  p2ptrain group approve kitchen-pi")
@click.argument("names", nargs=-1, metavar="NAME...")
@state_option
@json_option
def approve(names: tuple[str, ...], state_dir: Path | None, as_json: bool) -> None:
    """Let devices into a group of `group new --approve`, by name or peer id; without a name, list who asks.

    Only the device that made the code can, and its peer has to run; where that peer has a terminal, it asks there
    itself. A name is what a device says of itself: compare its id with what the device itself shows when it waits.
    """
    from p2ptrain.api import default_state_dir
    from p2ptrain.runtime import new_code

    where = state_dir or default_state_dir()
    asking = new_code.asking(where)
    chosen = new_code.approve(where, names)
    if as_json:
        print_json({"asking": {peer: m.name for peer, m in asking.items()}, "approved": sorted(chosen)})
    elif names:
        click.echo(f"let in: {_listed(chosen)}. They are in as soon as they meet this device's peer")
    else:
        click.echo(f"asking: {_listed(asking)}" if asking else "nobody asks to be let in")


@command.command(epilog="\b\nExamples:\n  p2ptrain group rotate\n  p2ptrain group rotate --approve")
@rotation_options
@click.option("--approve", is_flag=True, help="From now on the code alone lets nobody in (see `group approve`).")
def rotate(
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    wait_s: float,
    yes: bool,
    as_json: bool,
    approve: bool,
) -> None:
    """Give the group a new join code, which travels to all its members.

    Only the device that made the code can. Members that run follow at once and go on with their training; one that is
    off follows when it starts beside any other member in the same network. Who only had the old code is a stranger.
    """
    network = read_network(peers, interfaces, no_discovery)
    _rotate(state_dir, (), network, wait_s, yes=yes, as_json=as_json, approve=approve)


@command.command(
    epilog="\b\nExamples:\n  p2ptrain group remove kitchen-pi\n  p2ptrain group remove pi 7ytd3kq5vbz2mnp4"
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@rotation_options
def remove(
    names: tuple[str, ...],
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    wait_s: float,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove members, by name or peer id: the others get a new join code, as by `group rotate`.

    A removed device can then do no more than a stranger. It keeps what it has learnt. Look at the list of those that
    stay: whoever had the code may be in the group under more than one name.
    """
    _rotate(state_dir, names, read_network(peers, interfaces, no_discovery), wait_s, yes=yes, as_json=as_json)


def _rotate(
    state_dir: Path | None,
    names: tuple[str, ...],
    network: NetworkConfig,
    wait_s: float,
    *,
    yes: bool,
    as_json: bool,
    approve: bool = False,
) -> None:
    import sys

    from p2ptrain.api import default_state_dir
    from p2ptrain.runtime import new_code
    from p2ptrain.words import clean

    where = state_dir or default_state_dir()
    new_code.founders_group(where)
    progress("looking who is here")
    look_s = min(wait_s, new_code.LOOK_S)
    rotation = run_async(new_code.plan_rotation(where, names, network, approve=approve, wait_s=look_s))
    for line in _who(rotation):
        progress(line)
    if not yes and not as_json and sys.stdin.isatty():
        click.confirm("Make the new code?", default=True, abort=True, err=True)
    kept, notice = new_code.keep_rotation(where, rotation)
    if not as_json:
        click.echo(str(kept.group))

    def arrived(peer: PeerId) -> None:
        progress(f"{clean(rotation.stay[peer].name, 40)} ({peer}) is in under the new code")

    seen = run_async(new_code.spread(rotation, kept, notice, network, wait_s=wait_s, say=arrived))
    away = {peer: each for peer, each in rotation.stay.items() if peer not in seen}
    if as_json:
        print_json(
            {
                "code": str(kept.group),
                "former": str(rotation.kept.group),
                "removed": sorted(rotation.removed),
                "arrived": sorted(seen),
                "awaited": sorted(away),
            }
        )
    elif away:
        progress(
            f"not seen under the new code yet: {_listed(away)}. They follow when they run in one network with any "
            "member that has it; if one does not, enter the code there with `p2ptrain group join`"
        )


def _who(rotation: Rotation) -> list[str]:
    lines = [f"goes     {_listed(rotation.removed)}"] if rotation.removed else []
    return [*lines, f"stays    this device{', ' if rotation.stay else ' alone'}{_listed(rotation.stay)}"]


def _listed(members: dict[PeerId, Member]) -> str:
    from p2ptrain.words import clean

    return ", ".join(f"{clean(m.name, 40)} ({peer})" for peer, m in sorted(members.items(), key=lambda e: e[1].name))
