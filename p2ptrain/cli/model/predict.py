"""``p2ptrain predict``: what a harvested model takes single files for.

Invariant: every file named gets a line, an answer or what is wrong with it; exit code 2 if any was wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from p2ptrain.cli.shared.options import UserPath, allow_option, json_option, load_allowed, print_json, warning_of

EXAMPLES = """\b
Examples:
  p2ptrain predict global.safetensors photo.jpg
  p2ptrain predict global.safetensors new-photos/ --top 1
  p2ptrain predict global.safetensors clip.wav --json | jq .top[0].class
"""


@click.command(epilog=EXAMPLES)
@click.argument("model_file", type=UserPath(), metavar="MODEL")
@click.argument("files", type=UserPath(), nargs=-1, required=True, metavar="FILE_OR_FOLDER...")
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    default=3,
    metavar="N",
    help="So many of the likeliest classes of each. [default: 3]",
)
@allow_option
@json_option
def command(model_file: Path, files: tuple[Path, ...], top: int, allow_model: str, as_json: bool) -> None:
    """What a harvested model takes pictures, recordings or texts for, and how sure it is.

    With --json a line for each.
    """
    from p2ptrain import api
    from p2ptrain.errors import DataError
    from p2ptrain.words import clean

    model, card = load_allowed(model_file, allow_model)
    if warning := warning_of(card):
        click.echo(f"{model_file}: {warning}", err=True)
    wrong = 0
    for found in api.predict(model, card, files, top=top):
        if isinstance(found, DataError):
            wrong += 1
            click.echo(f"p2ptrain: {found}", err=True)
        elif as_json:
            ranked = [{"class": name, "probability": round(share, 6)} for name, share in found.top]
            print_json({"file": str(found.file), "top": ranked})
        else:
            ranked_words = ", ".join(f"{clean(name, 60)} {share:.1%}" for name, share in found.top)
            click.echo(f"{clean(str(found.file), 300)}: {ranked_words}")
    if wrong:
        sys.exit(2)
