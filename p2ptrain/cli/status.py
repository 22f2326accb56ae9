"""``p2ptrain status``: one look at the group.

Invariant: only looks; the group does not plan with the one who does.
"""

from __future__ import annotations

from pathlib import Path

import click

from p2ptrain.cli.shared.options import (
    group_options,
    json_option,
    network_options,
    print_json,
    read_group,
    read_network,
    run_async,
    wait_option,
)

EXAMPLES = """\b
Examples:
  p2ptrain status
  p2ptrain status --json | jq '.peers[] | {name, round, loss}'
  p2ptrain status --peer 192.168.1.20:5710        without multicast
"""


@click.command(epilog=EXAMPLES)
@group_options
@network_options
@wait_option(8.0)
@json_option
def command(
    code: str | None,
    is_open: bool,
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Who is here: device, part, classes, step, loss, speed, and what each peer waits for."""
    from p2ptrain import api
    from p2ptrain.ui import status_table

    group = read_group(code, is_open, state_dir)
    network = read_network(peers, interfaces, no_discovery)
    found = run_async(api.status(group, network=network, wait_s=wait_s, state_dir=state_dir))
    if as_json:
        print_json(status_table.to_plain(found))
    else:
        click.echo(status_table.render(found))
