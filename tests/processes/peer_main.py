"""One peer as a process of its own, told by JSON what to do: ``python peer_main.py '{"state": ..., "code": ...}'``.

SIGTERM and Ctrl-C make it leave; what the person at the device can mend ends it with 2, everything else is a bug.
It does not outlive the tests that started it, however they end.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

from p2ptrain.api import run_peer
from p2ptrain.errors import UserError
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.net.keys import read_code
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.store import store
from p2ptrain.runtime.trainer import watch


async def main(spec: dict[str, Any]) -> None:
    if spec["quota_bytes"]:
        quota = store.StoreConfig(quota_bytes=spec["quota_bytes"])
        open_store = store.Store.__init__
        store.Store.__init__ = lambda self, path, config, disk: open_store(self, path, config or quota, disk)  # type: ignore[method-assign]
    if spec["trainer_still_s"]:
        watch.STILL_S = spec["trainer_still_s"]
    until = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, until.set)
    options = PeerOptions(
        data=spec["data"],
        name=spec["name"],
        job=job_from_json(spec["job"]) if spec["job"] else None,
        shard=spec["shard"],
        classes=tuple(spec["classes"]),
        flops_per_s=0.0,
        num_threads=1,
        device="cpu",
        linger_s=spec["linger_s"],
        keep_model=spec["keep_model"],
        init=Path(spec["init"]) if spec["init"] else None,
    )
    network = NetworkConfig(("127.0.0.1",), spec["port"], tuple(spec["peers"]), discover=False)
    await run_peer(read_code(spec["code"]), options, network=network, state_dir=Path(spec["state"]), until=until)


def die_with_tests() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    die_with_tests()
    try:
        asyncio.run(main(json.loads(sys.argv[1])))
    except UserError as error:
        print(f"p2ptrain: {error}", file=sys.stderr)
        sys.exit(2)
