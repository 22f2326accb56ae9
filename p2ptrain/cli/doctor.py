"""``p2ptrain doctor``: why two devices don't meet, and what to do.

Invariant: changes nothing. Exit code 0 if nothing wrong was found, 1 if something was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from p2ptrain.net.keys import Group

EXAMPLES = """\b
Examples:
  p2ptrain doctor
  p2ptrain doctor --peer 192.168.1.20:5710
  p2ptrain doctor --json | jq '.findings[] | select(.level == "problem")'
"""
MARKS = {"fine": "ok  ", "hint": "hint", "problem": "BAD "}


@click.command(epilog=EXAMPLES)
@group_options
@network_options
@click.option(
    "--port",
    type=click.IntRange(0, 65534),
    default=0,
    metavar="N",
    help="TCP port that a peer here would listen on; the next one is used too. [default: two free ones]",
)
@wait_option(5.0)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    code: str | None,
    is_open: bool,
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    port: int,
    wait_s: float,
    as_json: bool,
) -> None:
    """Why two devices don't meet, and what to do.

    Looks at this device's interfaces, multicast, ports, firewall and clock, then for peers of the group. Run it on
    both devices.
    """
    from p2ptrain.api import default_state_dir
    from p2ptrain.runtime.doctor.examine import examine, verdict
    from p2ptrain.words import clean

    group = _group(code, is_open, state_dir)
    network = read_network(peers, interfaces, no_discovery, port)
    findings = run_async(examine(group, network, wait_s, state_dir or default_state_dir()))
    is_fine = all(finding.level != "problem" for finding in findings)
    if as_json:
        print_json(
            {
                "ok": is_fine,
                "verdict": verdict(findings),
                "findings": [dataclasses.asdict(finding) for finding in findings],
            }
        )
    else:
        for finding in findings:
            click.echo(f"{MARKS[finding.level]}  {finding.area:<10}  {clean(finding.text, 400)}")
            if finding.advice:
                click.echo(f"{'':<18}-> {finding.advice}")
        click.echo(verdict(findings))
    ctx.exit(0 if is_fine else 1)


def _group(code: str | None, is_open: bool, state_dir: Path | None) -> Group | None:
    """The group, if there is one: the doctor also sees a device that is in none."""
    from p2ptrain.api import default_state_dir
    from p2ptrain.net.group.kept import load_group

    if code is None and not is_open and load_group(state_dir or default_state_dir()) is None:
        return None
    return read_group(code, is_open, state_dir)
