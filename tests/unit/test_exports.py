"""What ``import p2ptrain`` offers is a promise: a change here is a change for everyone who uses it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import p2ptrain

EXPORTS = {
    "Job": "p2ptrain.config",
    "P2PTrainError": "p2ptrain.errors",
    "PeerOptions": "p2ptrain.runtime.node.peer_node",
    "UserError": "p2ptrain.errors",
    "evaluate": "p2ptrain.api",
    "generate": "p2ptrain.api",
    "predict": "p2ptrain.api",
    "find_group": "p2ptrain.api",
    "harvest": "p2ptrain.api",
    "harvest_kept": "p2ptrain.api",
    "load_job": "p2ptrain.modes.jobs",
    "load_model": "p2ptrain.api",
    "run_peer": "p2ptrain.api",
    "save_harvest": "p2ptrain.api",
    "status": "p2ptrain.api",
}


def test_exactly_these_names_are_exported() -> None:
    assert sorted(p2ptrain.__all__) == sorted([*EXPORTS, "__version__"])


@pytest.mark.parametrize("name", EXPORTS)
def test_each_is_the_one_from_its_home(name: str) -> None:
    thing = getattr(p2ptrain, name)
    assert thing is getattr(import_module(EXPORTS[name]), name)
    assert inspect.isclass(thing) or callable(thing)
    assert inspect.getdoc(thing)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        _ = p2ptrain.frobnicate


def test_star_import_gives_all_of_them() -> None:
    code = f"from p2ptrain import *\nfor name in {sorted(EXPORTS)!r}:\n    assert name in globals(), name\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
