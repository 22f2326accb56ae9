"""``p2ptrain service``: a peer that the system starts, and starts again, by itself.

Invariant: nothing is written unless that is asked for, and a join code is never put into a file of the system's.
"""

from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

import click

from p2ptrain.errors import UserError
from p2ptrain.words import word

NAME = "p2ptrain"
LABEL = "org.p2ptrain.peer"
STOP_S = 90
"""So long a peer may take to hand over and say goodbye."""
AGAIN_S = 10
MENDED_BY_PEOPLE = 2
"""The exit code of what a new start would not mend."""
EXAMPLES = """\b
Examples:
  p2ptrain service install -- --data images:photos/ --linger forever
  p2ptrain service install --write -- --data images:photos/ --linger forever
  p2ptrain service install --kind launchd -- --linger forever
"""


@click.group(epilog="\b\nExample:\n  p2ptrain service install -- --data images:photos/ --linger forever")
def command() -> None:
    """Let the system run a peer on this device, from its start on."""


@command.command(epilog=EXAMPLES)
@click.option(
    "--kind",
    type=click.Choice(["systemd", "launchd"]),
    help="For which system. [default: launchd on macOS, else systemd]",
)
@click.option("--write", is_flag=True, help="Write the file where the system looks for this user's. [default: print]")
@click.option("--force", is_flag=True, help="Overwrite the file if there is another one.")
@click.argument("peer_options", nargs=-1, type=click.UNPROCESSED, metavar="[--] PEER_OPTIONS...")
def install(kind: str | None, write: bool, force: bool, peer_options: tuple[str, ...]) -> None:
    """Print a systemd unit or a launchd plist that runs a peer with these options, as this user, in this directory.

    Join the group first, with `p2ptrain group join`: the code stays in the state directory. The service is started
    again if it fails, but not for what a person has to mend.
    """
    kind = kind or ("launchd" if sys.platform == "darwin" else "systemd")
    _check(peer_options)
    arguments = [sys.executable, "-m", "p2ptrain.cli.main", "peer", *peer_options]
    folder, state = Path.cwd(), os.environ.get("P2PTRAIN_STATE", "")
    text = plist(arguments, folder, state) if kind == "launchd" else unit(arguments, folder, state)
    path = where(kind)
    if not write:
        click.echo(text, nl=False)
        click.echo(f"# to write this to {path}, and be told how it is started: --write", err=True)
        return
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text and not force:
        raise UserError(f"{path}: there is another one already; look at it, and overwrite it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error}); print it without --write") from None
    click.echo(f"written: {path}")
    for line in next_steps(kind, path):
        click.echo(line)


def where(kind: str) -> Path:
    """Where the system looks for this user's."""
    if kind == "launchd":
        return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user" / f"{NAME}.service"


def next_steps(kind: str, path: Path) -> list[str]:
    if kind == "launchd":
        return [f"start it: launchctl load -w {word(path)}", f"end it:   launchctl unload -w {word(path)}"]
    return [
        f"start it: systemctl --user daemon-reload && systemctl --user enable --now {NAME}",
        "without anybody logged in, too: loginctl enable-linger",
        f"see it:   journalctl --user -u {NAME} -f, or p2ptrain log -f",
        f"end it:   systemctl --user disable --now {NAME}",
    ]


def _check(peer_options: tuple[str, ...]) -> None:
    """Raises what `p2ptrain peer` itself would raise for options that it does not know."""
    from p2ptrain.cli import peer

    context = peer.command.make_context("p2ptrain peer", list(peer_options), resilient_parsing=False)
    if context.params.get("code") and "--code" in " ".join(peer_options):
        raise UserError(
            "--code: the file would show the join code to whoever may read it; run `p2ptrain group join` first, and "
            "leave it out"
        )


def unit(arguments: list[str], folder: Path, state: str) -> str:
    """A systemd unit, as of systemd.service(5)."""
    environment = f"Environment={_quoted(f'P2PTRAIN_STATE={state}', dollars=False)}\n" if state else ""
    return f"""[Unit]
Description=p2ptrain peer
Wants=network-online.target
After=network-online.target

[Service]
WorkingDirectory={str(folder).replace("%", "%%")}
{environment}ExecStart={" ".join(_quoted(each) for each in arguments)}
Restart=on-failure
RestartSec={AGAIN_S}
RestartPreventExitStatus={MENDED_BY_PEOPLE}
TimeoutStopSec={STOP_S}
Nice=10

[Install]
WantedBy=default.target
"""


def _quoted(text: str, *, dollars: bool = True) -> str:
    """As systemd reads it back: no specifiers, no variables, one word."""
    if any(not c.isprintable() for c in text):
        raise UserError(f"{text!r}: has a character that a unit file can't hold")
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    text = text.replace("$", "$$") if dollars else text
    return f'"{text}"'


def plist(arguments: list[str], folder: Path, state: str) -> str:
    """A launchd agent, as of launchd.plist(5)."""
    log = str(Path.home() / "Library" / "Logs" / f"{NAME}.log")
    plain: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": arguments,
        "WorkingDirectory": str(folder),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": AGAIN_S,
        "ExitTimeOut": STOP_S,
        "Nice": 10,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if state:
        plain["EnvironmentVariables"] = {"P2PTRAIN_STATE": state}
    return plistlib.dumps(plain).decode()
