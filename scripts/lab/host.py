"""Whether this machine can run a lab, and what to do if not."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lab.quota import Controllers, find_controllers
from p2ptrain.errors import UserError

PACKAGE = "iproute2 (Debian and Ubuntu: apt install iproute2)"


def missing() -> list[str]:
    """What keeps this machine from running a lab, each with the way to get it; empty: nothing."""
    lacks = []
    if not sys.platform.startswith("linux"):
        return ["a Linux kernel: network namespaces and cgroups exist nowhere else; a virtual machine will do"]
    if os.geteuid() != 0:
        lacks.append("root: namespaces, traffic shaping and cgroups need it; run it again with sudo")
    lacks += [f"the command {name!r}, from {PACKAGE}" for name in ("ip", "tc") if shutil.which(name) is None]
    try:
        find_controllers()
    except UserError as error:
        lacks.append(str(error))
    return lacks


def environment() -> dict[str, str]:
    """For processes that run a module of the lab."""
    scripts = str(Path(__file__).resolve().parents[1])
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}


def check_host() -> Controllers:
    """Raises ``UserError`` that names everything missing."""
    lacks = missing()
    if lacks:
        raise UserError("the lab can't run here; missing: " + "; ".join(lacks))
    return find_controllers()
