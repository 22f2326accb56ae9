"""What a command loads before it does anything: help is told at once, and a node loads nothing of a trainer."""

from __future__ import annotations

import subprocess
import sys

from p2ptrain.modes.registry import MODES
from p2ptrain.modes.tables import NAMES, TABLES

HEAVY = ("torch", "numpy", "zmq", "zeroconf", "nacl", "msgpack", "psutil", "PIL", "safetensors", "asyncio", "sklearn")
HELP = """
import io, sys
from contextlib import redirect_stdout
import click
from p2ptrain.cli.main import cli

def ask(command, words):
    with redirect_stdout(io.StringIO()) as told:
        cli.main(args=[*words, "--help"], prog_name="p2ptrain", standalone_mode=False)
    assert told.getvalue().startswith("Usage: p2ptrain"), words
    for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
        ask(command.get_command(click.Context(command), name), [*words, name])

ask(cli, [])
print(",".join(name for name in sys.argv[1:] if name in sys.modules))
"""
NODE = """
import sys
import p2ptrain.cli.shared.peer_session, p2ptrain.runtime.node.observer_node
print(",".join(name for name in sys.argv[1:] if name in sys.modules))
"""


def loaded(code: str, *names: str) -> str:
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_help_of_every_command_loads_nothing_heavy() -> None:
    assert loaded(HELP, *HEAVY) == ""


def test_a_node_loads_nothing_of_the_trainers() -> None:
    assert loaded(NODE, "torch", "PIL", "sklearn", "matplotlib", "safetensors.torch") == ""


def test_the_light_list_of_modes_is_the_registrys() -> None:
    assert list(MODES) == list(NAMES)
    assert {mode.config.TABLE: mode.config for mode in MODES.values()} == TABLES
