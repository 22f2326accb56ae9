"""p2ptrain turns the unlike devices in a room into one trainer, with no server.

The Python API, which the command line itself uses. Nothing of torch is imported until something needs it.

    import asyncio, p2ptrain

    job = p2ptrain.load_job("job.toml")
    group = p2ptrain.find_group("K7QF-…")
    me = p2ptrain.PeerOptions(data="images:photos/", job=job)
    asyncio.run(p2ptrain.run_peer(group, me))  # until the job is done

    harvest = asyncio.run(p2ptrain.harvest(group))  # from the others, or what this device wrote
    p2ptrain.save_harvest("global.safetensors", harvest)
    model, card = p2ptrain.load_model("global.safetensors")  # a plain nn.Module, in eval mode
    print(p2ptrain.evaluate(model, card, "images:test/").accuracy)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from p2ptrain.version import __version__

_HOMES = {
    "Job": "p2ptrain.config",
    "load_job": "p2ptrain.modes.jobs",
    "P2PTrainError": "p2ptrain.errors",
    "UserError": "p2ptrain.errors",
    "PeerOptions": "p2ptrain.runtime.node.peer_options",
    "find_group": "p2ptrain.api",
    "run_peer": "p2ptrain.api",
    "harvest": "p2ptrain.api",
    "harvest_kept": "p2ptrain.api",
    "status": "p2ptrain.api",
    "load_model": "p2ptrain.api",
    "save_harvest": "p2ptrain.api",
    "evaluate": "p2ptrain.api",
    "predict": "p2ptrain.api",
    "generate": "p2ptrain.api",
}

__all__ = [
    "Job",
    "P2PTrainError",
    "PeerOptions",
    "UserError",
    "__version__",
    "evaluate",
    "find_group",
    "generate",
    "harvest",
    "harvest_kept",
    "load_job",
    "load_model",
    "predict",
    "run_peer",
    "save_harvest",
    "status",
]

if TYPE_CHECKING:
    from p2ptrain.api import (
        evaluate,
        find_group,
        generate,
        harvest,
        harvest_kept,
        load_model,
        predict,
        run_peer,
        save_harvest,
        status,
    )
    from p2ptrain.config import Job
    from p2ptrain.errors import P2PTrainError, UserError
    from p2ptrain.modes.jobs import load_job
    from p2ptrain.runtime.node.peer_options import PeerOptions


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'p2ptrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
