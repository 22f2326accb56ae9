"""The ``p2ptrain`` command: finds the commands, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done; 1 a bug or an outside failure; 2 something the person can mend (one line, no traceback); 130 Ctrl-C.
Every command lives in a module of its own that is imported when it is called, so that ``p2ptrain status`` starts
without torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

import click

from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.imports import uncollected
from p2ptrain.words import clean

COMMANDS = {
    "demo": "Three peers on this machine train one model on real data.",
    "group": "Make a join code, take one, or show the one in use.",
    "job": "Write a job file from a data set, check one, or go on from one.",
    "peer": "Run a peer on this device.",
    "status": "Who is here, and what each peer does and waits for.",
    "watch": "A live view of the group.",
    "stop": "End the whole group in good order.",
    "harvest": "Collect the parts and assemble the global model.",
    "evaluate": "Accuracy of a harvested model on a data set.",
    "predict": "What a harvested model takes pictures, recordings or texts for.",
    "generate": "A harvested language model writes on from a prompt.",
    "export": "Turn a harvested model into pt2 or onnx.",
    "attribute": "Score a model's channels by class, for a job that starts from it.",
    "probe": "Measure this device and write its profile.",
    "plan": "How devices would train one model as a pipeline, and what it gains.",
    "report": "What a group did, as one HTML page and as CSV.",
    "log": "What this device's peer did, in past runs too.",
    "service": "Let the system run a peer on this device.",
    "doctor": "Why two devices don't meet, and what to do.",
}
MAX_SHOWN = 4000
"""Characters of a line."""
FOLDERS = {
    "model": ("evaluate", "predict", "generate", "export", "attribute"),
    "runs": ("report", "service"),
}
"""Commands that live in a folder of their own."""


OUTSIDE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)
"""What disks and their owners refuse: no bug, and no traceback."""


OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")
"""What torch says, of a CPU and of a GPU."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command is called; the list of commands needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        folder = next((f"{folder}." for folder, commands in FOLDERS.items() if cmd_name in commands), "")
        with uncollected():
            module = importlib.import_module(f"p2ptrain.cli.{folder}{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2ptrain")
def cli() -> None:
    """Turns the unlike devices in a room into one trainer, with no server."""


def open_streams() -> None:
    """Those that were closed when this process began lead nowhere: else the next file or socket took their place."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    from p2ptrain.net.limits import raise_open_files

    open_streams()
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, unless a command makes more of it
    raise_open_files()  # here: every process that a command starts inherits it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names that the terminal has no letters for
    try:
        status = cli.main(args=argv, prog_name="p2ptrain", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        click.echo(f"p2ptrain: {error.format_message().rstrip('.')}{where}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"p2ptrain: {error.format_message()}", err=True)
        sys.exit(2)
    except UserError as error:
        click.echo(f"p2ptrain: {_shown(error)}", err=True)
        sys.exit(2)
    except P2PTrainError as error:
        click.echo(f"p2ptrain: {_shown(error)}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):  # before RuntimeError, which an Abort is one of
        click.echo("stopped", err=True)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        click.echo(f"p2ptrain: this device has too little memory free for that ({str(error)[:200]})", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        where = f"{error.filename}: " if error.filename else "a file can't be written or read: "
        with contextlib.suppress(OSError):
            click.echo(f"p2ptrain: {where}{error.strerror}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _shown(error: Exception) -> str:
    """Without what names in somebody's archive could do to a terminal."""
    return "\n".join(clean(line, MAX_SHOWN) for line in str(error).split("\n"))


if __name__ == "__main__":
    main()
