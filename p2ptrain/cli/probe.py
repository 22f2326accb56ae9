"""``p2ptrain probe``: measure this device and write its profile.

Invariant: prints a profile that ``p2ptrain peer --profile`` takes, with the source of every number.
"""

from __future__ import annotations

from pathlib import Path

import click

from p2ptrain.cli.options import check_output, device_name, progress, write_text

KINDS = ("board", "phone", "laptop", "desktop", "server")
EXAMPLES = """\b
Examples:
  p2ptrain probe
  p2ptrain probe -o peers/mine.toml --name "Kitchen laptop" --kind laptop
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the profile. [default: print it]"
)
@click.option("--name", default="", metavar="TEXT", help="What to call the device. [default: its host name]")
@click.option("--kind", type=click.Choice(KINDS), help="What sort of device it is. [default: a guess]")
@click.option("--force", is_flag=True, help="Overwrite the file if there is one.")
def command(output: Path | None, name: str, kind: str | None, force: bool) -> None:
    """Measure this device, in about ten seconds: speed of training, memory, cores, disk and link."""
    if output is not None:
        check_output(output, force)
    progress("measuring for some seconds; leave the device alone meanwhile")
    from p2ptrain.runtime.probe import default_kind, probe, profile_of

    result = probe(output.absolute().parent if output else None)
    text = profile_of(result, name or device_name(), kind or default_kind()).to_toml()  # type: ignore[arg-type]
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"{output} written; use it with: p2ptrain peer --profile {output} ...")
