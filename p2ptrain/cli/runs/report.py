"""``p2ptrain report``: what a group did, as one HTML page and as CSV, from what devices wrote down.

Invariant: only reads state directories, so it may be asked while peers run.
"""

from __future__ import annotations

from pathlib import Path

import click

from p2ptrain.cli.shared.options import UserPath
from p2ptrain.cli.shared.outputs import check_apart, check_gives_way, is_pipe, write_text

EXAMPLES = """\b
Examples:
  p2ptrain report                                  # of this device's last job, into report.html
  p2ptrain report laptop-state/ board-state/       # of several devices' state directories
  p2ptrain report -o night.html --csv night.csv    # and every figure as a table
"""


@click.command(epilog=EXAMPLES)
@click.argument("state_dirs", nargs=-1, metavar="DIR...", type=UserPath(file_okay=False, exists=True))
@click.option(
    "-o",
    "--output",
    type=UserPath(dir_okay=False),
    default=Path("report.html"),
    metavar="FILE",
    help="The page. [default: report.html]",
)
@click.option(
    "--csv",
    "csv_file",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="The figures as a table, too. [default: none]",
)
@click.option("--job", default="", metavar="ID", help="Of this job. [default: the one trained last]")
@click.option("--force", is_flag=True, help="Overwrite files that no report has written.")
def command(state_dirs: tuple[Path, ...], output: Path, csv_file: Path | None, job: str, force: bool) -> None:
    """What a group did: loss, accuracy, speed and events of every peer, on a page that needs nothing else.

    One device's state directory tells of all peers that it heard of; more directories tell more exactly. Without any,
    it is that of this device.
    """
    from p2ptrain.api import default_state_dir
    from p2ptrain.ui.report.gathering import gather
    from p2ptrain.ui.report.page import MARK, page, to_csv
    from p2ptrain.words import counted

    check_gives_way(output, MARK, "report", force=force)
    if csv_file is not None:
        check_apart(csv_file, "--csv", output, "-o")
        check_gives_way(csv_file, "time,", "report", force=force, option="--csv")
    found = gather(state_dirs or (default_state_dir(),), job)
    write_text(output, page(found))
    if csv_file is not None:
        write_text(csv_file, to_csv(found))
    numbers = {"peer": len(found.peers), "figure": len(found.lines), "event": len(found.events)}
    also = f" and {csv_file}" if csv_file else ""
    told = ", ".join(counted(number, thing) for thing, number in numbers.items())
    click.echo(f"{output}{also}: {told}", err=is_pipe(output) or (csv_file is not None and is_pipe(csv_file)))
    for note in found.notes:
        click.echo(note, err=True)
