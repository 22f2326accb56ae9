"""Options that several commands share, and what they become: a group, a network, a state directory.

Invariant: light. Nothing here imports torch, sockets or the API before a command runs.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2ptrain.errors import UserError
from p2ptrain.model_config import is_own_code

if TYPE_CHECKING:
    from p2ptrain.learning.checkpoint import ModelCard
    from p2ptrain.net.keys import Group
    from p2ptrain.runtime.node.node import NetworkConfig

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
DATA_HELP = (
    "The data set: digits, idx:DIR, cifar:DIR, images:DIR_OR_ZIP, audio:DIR_OR_ZIP, npz:FILE, text:FILE, hf:DIR, or "
    "package.module:function."
)


class Duration(click.ParamType[float]):
    """``30s``, ``10m``, ``2h``, ``forever``: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        if value == "forever":
            return math.inf
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value)
        if not match or match[2] not in UNITS_S:
            self.fail(f"{value!r} is no duration; write 30s, 10m, 2h or forever", param, ctx)
        return float(match[1]) * UNITS_S[match[2]]


class Share(click.ParamType[float]):
    """A part of something: 0.085 or 1/11.8."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        above, _, below = str(value).partition("/")
        try:
            share = float(above) / float(below or 1)
        except (ValueError, ZeroDivisionError):
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is no part; expected such as 0.085 or 1/11.8", param, ctx)
        return share


class UserPath(click.Path):
    """A path as a person writes it: ``~`` is their home in ``--state=~/p2p`` too, where shells leave it alone."""

    def __init__(self, **limits: bool) -> None:
        super().__init__(path_type=Path, **limits)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


class Names(click.ParamType[tuple[str, ...]]):
    """``cat,dog``: names between commas; one that has a comma itself stands between double quotes, as in a CSV file."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            rows = list(csv.reader([value], skipinitialspace=True, strict=True))
        except csv.Error:
            rows = []
        names = tuple(name.strip() for name in rows[0]) if len(rows) == 1 else ()
        if not names or not all(names) or len(set(names)) != len(names):
            self.fail(f"{value!r}: write different names with commas between them, {_QUOTED}", param, ctx)
        return names


class DeviceChoice(click.Choice[str]):
    """What can train; the answer to what can't is more than a list."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if str(value).lower() in ("mps", "metal", "rocm", "xpu"):
            self.fail(f"{value} is not supported yet; without --device this device trains on its CPU", param, ctx)
        return super().convert(value, param, ctx)


_QUOTED = """such as cat,dog, and a name with a comma in double quotes: '"Pepper,_bell",cat'"""


class MoreNames(Names):
    """``+ferret``, ``+ferret,otter``: names that are added to others."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        if not str(value).lstrip().startswith("+"):
            self.fail(f"{value!r}: classes can only be added here; write +{value}, or +ferret,otter", param, ctx)
        names = super().convert(str(value).lstrip()[1:], param, ctx)
        return (names[0], *(name.removeprefix("+").strip() or name for name in names[1:]))


def classes_option(text: str, kind: click.ParamType[tuple[str, ...]] | None = None) -> Callable[[F], F]:
    """``--classes``: names between commas, or the option again for each."""

    def flat(context: click.Context, param: click.Parameter, value: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
        names = tuple(name for each in value for name in each)
        if len(set(names)) != len(names):
            raise click.BadParameter(f"{', '.join(names)}: a class is named twice; {_QUOTED}", context, param)
        return names

    return click.option(
        "--classes",
        multiple=True,
        type=kind or Names(),
        callback=flat,
        metavar="NAMES",
        help=f"{text} May be given again.",
    )


def state_option(function: F) -> F:
    return click.option(
        "--state",
        "state_dir",
        type=UserPath(file_okay=False),
        envvar="P2PTRAIN_STATE",
        metavar="DIR",
        help="Directory with this device's key, group and snapshots. "
        "[default: $P2PTRAIN_STATE, else ~/.local/state/p2ptrain]",
    )(function)


def group_options(function: F) -> F:
    """``--code``, ``--open``, ``--state``: which group."""
    for option in (
        state_option,
        click.option("--open", "is_open", is_flag=True, help="Use the group without a code, which anyone may enter."),
        click.option(
            "--code",
            envvar="P2PTRAIN_CODE",
            metavar="CODE",
            help="The group's join code. Others on this device can see it in `ps`: `p2ptrain group join` asks for it "
            "instead. [default: $P2PTRAIN_CODE, else the group used last]",
        ),
    ):
        function = option(function)
    return function


def network_options(function: F) -> F:
    """``--peer``, ``--interface``, ``--no-discovery``: how others are found."""
    for option in (
        click.option("--no-discovery", is_flag=True, help="Neither announce this device by mDNS nor look for others."),
        click.option(
            "--interface",
            "interfaces",
            multiple=True,
            metavar="NAME",
            help="Name or address of an interface to use; may be given again. [default: all but loopback]",
        ),
        click.option(
            "--peer",
            "peers",
            multiple=True,
            metavar="HOST:PORT",
            help="Address of a peer, for networks without multicast; may be given again. [default: none]",
        ),
    ):
        function = option(function)
    return function


def web_options(function: F) -> F:
    """``--web``, and where."""
    for option in (
        click.option(
            "--web-listen",
            metavar="ADDRESS",
            help="Address to serve the page at; 0.0.0.0 is all of them. [default: 127.0.0.1, this device alone]",
        ),
        click.option(
            "--web-port",
            type=click.IntRange(0, 65535),
            metavar="N",
            help="TCP port of the page. [default: a free one]",
        ),
        click.option(
            "--web", is_flag=True, help="Serve a live page of the group, to read only, at a link with a token."
        ),
    ):
        function = option(function)
    return function


def read_page(web: bool, port: int | None, listen: str | None) -> tuple[str, int] | None:
    """Address and port to serve the page at; None: it is not asked for. Raises ``UserError``."""
    if not web and (port is not None or listen is not None):
        raise UserError("--web-port and --web-listen say where the page is served: give --web too")
    return (listen or "127.0.0.1", port or 0) if web else None


def page_lines(links: list[str]) -> list[str]:
    """Where the page is, and who can see it."""
    lines, space = [f"page     {link}" for link in links], " " * 9
    if len(links) == 1 and links[0].startswith(("http://127.0.0.1:", "http://[::1]:")):
        return [*lines, f"{space}for browsers on this device; --web-listen 0.0.0.0 is for others in its networks too"]
    return [
        *lines,
        f"{space}who has this link can look, and change nothing. It is not encrypted: who listens in on this network "
        "can read it too",
    ]


def wait_option(default_s: float) -> Callable[[F], F]:
    return click.option(
        "--wait",
        "wait_s",
        type=Duration(),
        default=default_s,
        metavar="TIME",
        help=f"How long to look for peers at most, in seconds (or 1m). [default: {default_s:g}]",
    )


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def strict_option(function: F) -> F:
    return click.option(
        "--strict",
        is_flag=True,
        help="Stop at the first file that can't be read. [default: such are left out, counted]",
    )(function)


def allow_option(function: F) -> F:
    return click.option(
        "--allow-model",
        default="",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="The one model function of your own that may run on this device. [default: none]",
    )(function)


def read_group(code: str | None, is_open: bool, state_dir: Path | None) -> Group:
    """The group that the options name, or the kept one. Raises ``UserError``."""
    from p2ptrain.api import find_group

    source = click.get_current_context().get_parameter_source("code")
    if is_open and code is not None and source is click.core.ParameterSource.COMMANDLINE:
        raise UserError("--open names the group without a code, and --code another one: give one of them")
    return find_group(code, is_open=is_open, state_dir=state_dir)


def read_network(
    peers: tuple[str, ...], interfaces: tuple[str, ...], no_discovery: bool, port: int = 0
) -> NetworkConfig:
    """Checked at once, so that a wrong address or interface is an error before anything starts."""
    from p2ptrain.net.interfaces import usable_addresses
    from p2ptrain.net.ways.endpoint import parse_endpoint
    from p2ptrain.runtime.node.node import NetworkConfig

    for peer in peers:
        parse_endpoint(peer)
    usable_addresses(interfaces)
    return NetworkConfig(interfaces=interfaces, port=port, peers=peers, discover=not no_discovery)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``; ``--help`` does without its import."""
    import asyncio

    return asyncio.run(main)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def progress(text: str) -> None:
    """A word on what is being done, beside the output proper."""
    click.echo(text, err=True)


def load_allowed(path: Path, allow_model: str) -> tuple[Any, ModelCard]:
    """A harvested model; a function of the user's own only if it is the one allowed. Imports torch."""
    from p2ptrain import api
    from p2ptrain.learning.checkpoint import read_model

    if allow_model:
        _, _, card = read_model(path)
        check_allowed(card.model, allow_model)
    return api.load_model(path, allow_user_code=bool(allow_model))


def warning_of(card: ModelCard) -> str:
    """What whoever uses the model should know of it first."""
    told = {
        "half-way": "a HALF-WAY model, harvested before the group was done; harvest again for the whole one",
        "incomplete": "an INCOMPLETE model: parts of it were missing when it was harvested, and their classes are not "
        "recognised",
    }
    return told.get(card.completeness, "")


def check_allowed(model: str, allow_model: str) -> None:
    """``--allow-model`` names one function and allows no other. Raises ``UserError``."""
    if is_own_code(model) and allow_model and model != allow_model:
        raise UserError(
            f"--allow-model {allow_model}: the model is another function, {model}; look at that one, and if it may run "
            f"here, allow it with --allow-model {model}"
        )
