"""``p2ptrain stop``: end the whole group in good order.

Invariant: asks, and tells what became of it; each peer ends by itself.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from p2ptrain.cli.shared.options import (
    Duration,
    group_options,
    json_option,
    network_options,
    print_json,
    progress,
    read_group,
    read_network,
    run_async,
    wait_option,
)
from p2ptrain.errors import P2PTrainError

EXAMPLES = """\b
Examples:
  p2ptrain stop
  p2ptrain stop --yes --json | jq '.peers[] | {name, how, round}'
"""


@click.command(epilog=EXAMPLES)
@group_options
@network_options
@wait_option(8.0)
@click.option(
    "--until",
    "until_s",
    type=Duration(),
    default="1h",
    metavar="TIME",
    help="Wait so long for all to end: 10m, 2h, forever. They end after that, too. [default: 1h]",
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def command(
    code: str | None,
    is_open: bool,
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    wait_s: float,
    until_s: float,
    yes: bool,
    as_json: bool,
) -> None:
    """End the whole group: all peers end the round under way, hand over, write the model, and leave.

    Any device of the group may ask for it. A peer that was started with --no-remote-stop goes on. Nothing is lost:
    started again by their own commands, the peers go on with the rounds that are left.
    """
    from p2ptrain import api

    group = read_group(code, is_open, state_dir)
    network = read_network(peers, interfaces, no_discovery)
    if not yes and not as_json and sys.stdin.isatty():
        click.confirm("Stop training on all devices of the group?", default=True, abort=True, err=True)
    found = run_async(
        api.stop(group, network=network, wait_s=wait_s, until_s=until_s, say=progress, state_dir=state_dir)
    )
    if as_json:
        print_json({"peers": [dataclasses.asdict(each) for each in found]})
    going_on = [each.name for each in found if each.how not in ("stopped", "gone")]
    if going_on:
        raise P2PTrainError(f"not everybody has stopped: {', '.join(going_on)} (see above; `p2ptrain status`)")
    if not as_json:
        click.echo(
            f"{len(found)} stopped. The model so far: p2ptrain harvest -o global.safetensors   (from what this device "
            "keeps, or with --from DIR); to go on, start the peers again"
        )
