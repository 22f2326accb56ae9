"""``p2ptrain evaluate``: how good a harvested model is on a data set.

Invariant: uses the test split of a data set that has one, else all of it, and only classes that the model knows.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from p2ptrain.cli.shared.options import (
    DATA_HELP,
    UserPath,
    allow_option,
    classes_option,
    json_option,
    load_allowed,
    progress,
    strict_option,
    warning_of,
)

EXAMPLES = """\b
Examples:
  p2ptrain evaluate global.safetensors --data images:test/
  p2ptrain evaluate global.safetensors --data digits --json | jq .accuracy
"""


@click.command(epilog=EXAMPLES)
@click.argument("model_file", type=UserPath(), metavar="FILE")
@click.option("--data", required=True, metavar="SPEC", help=f"{DATA_HELP} Its test split, if it has one.")
@click.option("--shard", default="", metavar="K/N", help="Only the K-th of N equal shares. [default: all samples]")
@classes_option("Only these classes, such as cat,dog. [default: all]")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65536),
    default=256,
    metavar="N",
    help="Samples at a time; less takes less memory. [default: 256]",
)
@click.option("--confusion", is_flag=True, help="Print the whole confusion matrix too (true class by row).")
@strict_option
@allow_option
@json_option
def command(
    model_file: Path,
    data: str,
    shard: str,
    classes: tuple[str, ...],
    batch_size: int,
    confusion: bool,
    strict: bool,
    allow_model: str,
    as_json: bool,
) -> None:
    """Accuracy of a harvested model, in all and per class, and what each class is most often taken for."""
    from p2ptrain.learning.data import open_source

    open_source(data)  # a wrong path is said before torch is imported
    from p2ptrain import api
    from p2ptrain.words import clean, table

    model, card = load_allowed(model_file, allow_model)
    evaluation = api.evaluate(
        model, card, data, shard=shard, classes=classes, batch_size=batch_size, strict=strict, say=_note
    )
    names = card.data.classes
    if as_json:
        click.echo(json.dumps({**json.loads(evaluation.to_json(names)), "completeness": card.completeness or None}))
        return
    if warning := warning_of(card):
        click.echo(f"{model_file}: {warning}", err=True)
    click.echo(evaluation.to_text(names))
    if confusion:
        short = [clean(name, 10) for name in names]
        rows = [[name, *map(str, row)] for name, row in zip(short, evaluation.confusion, strict=True)]
        click.echo("\n" + "\n".join(table([["", *short], *rows], right=range(1, len(names) + 1))))


def _note(text: str) -> None:
    from p2ptrain.words import clean

    progress(f"note: {clean(text, 400)}")
