"""A peer without a job or trainer, as a process: it meets others and says what its journal and its record say.

``python lone_peer.py STATE CODE '{"port": ..., "peers": [...], "interfaces": [...], "discover": true}'``: a line of
JSON for each line of the journal, and one of kind "waiting" whenever it waits for something else. All that is slow is
quick.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from p2ptrain import api
from p2ptrain.errors import UserError
from p2ptrain.net import asking
from p2ptrain.net.keys import read_code
from p2ptrain.runtime.node import node
from p2ptrain.runtime.node.journal import Line
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions


def say(kind: str, **fields: Any) -> None:
    print(json.dumps({"kind": kind, **fields}), flush=True)


async def main(state: str, code: str, options: dict[str, Any]) -> None:
    node.ADDRESS_CHECK_S = 0.2
    node.ASK_CHECK_S = 0.1
    asking.MISSING_S, asking.PAUSE_S = (1.0, 2.0), 0.5
    running: list[PeerNode] = []

    async def tell_waits() -> None:
        words = ""
        while True:
            await asyncio.sleep(0.1)
            core = running[0].core if running else None
            if core is not None and (now := core.records.own.waiting_for) != words:  # type: ignore[attr-defined]
                words = now
                say("waiting", words=words)

    watching = asyncio.ensure_future(tell_waits())

    def heard(line: Line) -> None:
        say(line.kind, **line.fields)

    network = NetworkConfig(
        interfaces=tuple(options.get("interfaces", ())),
        port=options.get("port", 0),
        peers=tuple(options.get("peers", ())),
        discover=options.get("discover", True),
    )
    try:
        await api.run_peer(
            read_code(code),
            PeerOptions(name=Path(state).name, flops_per_s=1e9, num_threads=1, device="cpu"),  # nothing is measured
            network=network,
            state_dir=Path(state),
            on_start=running.append,
            on_line=heard,
        )
    except UserError as error:
        say("refused-to-run", why=str(error))
    watching.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
