"""``p2ptrain watch``: the group, live.

Invariant: only looks, for as long as it is left running; with nobody there it says so and goes on looking.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.options import (
    Duration,
    group_options,
    network_options,
    page_lines,
    read_group,
    read_network,
    read_page,
    run_async,
    web_options,
)

if TYPE_CHECKING:
    from p2ptrain.net.keys import Group
    from p2ptrain.runtime.node.node import NetworkConfig

EXAMPLES = """\b
Examples:
  p2ptrain watch
  p2ptrain watch --interval 5s
  p2ptrain watch --web                               a page for a browser on this device
  p2ptrain watch --web --web-listen 0.0.0.0          and for all who have the link, in this device's networks
"""
NOBODY = (
    "nobody of this group is here yet; looking on ... (`p2ptrain doctor` tells what this device sees, "
    "--peer HOST:PORT reaches a peer without multicast)"
)


@click.command(epilog=EXAMPLES)
@group_options
@network_options
@click.option(
    "--interval", "interval_s", type=Duration(), default=1.0, metavar="TIME", help="Seconds between views. [default: 1]"
)
@click.option("--plain", is_flag=True, help="Without colour, even where rich is installed.")
@web_options
def command(
    code: str | None,
    is_open: bool,
    state_dir: Path | None,
    peers: tuple[str, ...],
    interfaces: tuple[str, ...],
    no_discovery: bool,
    interval_s: float,
    plain: bool,
    web: bool,
    web_port: int | None,
    web_listen: str | None,
) -> None:
    """A live view of the group, until Ctrl-C: in this terminal, or as a page for browsers."""
    group = read_group(code, is_open, state_dir)
    network = read_network(peers, interfaces, no_discovery)
    page = read_page(web, web_port, web_listen)
    try:
        if page is not None:
            run_async(_serve(group, network, state_dir, *page))
            return
        run_async(_watch(group, network, state_dir, max(0.1, interval_s), plain))
    except KeyboardInterrupt:
        return


async def _watch(group: Group, network: NetworkConfig, state_dir: Path | None, interval_s: float, plain: bool) -> None:
    import asyncio

    from p2ptrain import api
    from p2ptrain.ui.watch import open_screen

    async with api.observing(group, network, state_dir) as node:
        screen = open_screen(plain=plain)
        try:
            while True:
                found = api.snapshot_status(node)
                screen.show(found if found.records else None, NOBODY)
                await asyncio.sleep(interval_s if found.records else min(interval_s, 0.5))
        finally:
            screen.close()


async def _serve(group: Group, network: NetworkConfig, state_dir: Path | None, listen: str, port: int) -> None:
    from p2ptrain import api
    from p2ptrain.web.view import View

    async with api.observing(group, network, state_dir) as node:

        def look() -> api.Status | None:
            found = api.snapshot_status(node)
            return found if found.records else None

        def failed(error: BaseException) -> None:
            node.failure = node.failure or error
            node.finish()

        async with api.serving_page(View(look), listen, port, failed) as server:
            for line in page_lines(server.links()):
                click.echo(line)
            await node.wait_finished()
        if node.failure is not None:
            raise node.failure
