"""``p2ptrain export``: a harvested model for use elsewhere.

Invariant: what is exported computes what the harvested model computes, for any batch size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from p2ptrain.cli.shared.options import UserPath, allow_option, load_allowed
from p2ptrain.cli.shared.outputs import check_apart, check_output

EXAMPLES = """\b
Examples:
  p2ptrain export global.safetensors --format onnx -o model.onnx
  p2ptrain export global.safetensors --format pt2 -o model.pt2
"""


@click.command(epilog=EXAMPLES)
@click.argument("model_file", type=UserPath(), metavar="FILE")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["pt2", "onnx"]),
    required=True,
    help="pt2: PyTorch's own (torch.export.load). onnx: for other runtimes; needs the onnx extra.",
)
@click.option("-o", "--output", type=UserPath(), required=True, metavar="FILE", help="Where it goes.")
@allow_option
def command(model_file: Path, kind: Literal["pt2", "onnx"], output: Path, allow_model: str) -> None:
    """Turn a harvested model into pt2 or onnx. Inputs are [batch, channels, height, width], normalised.

    Class names, mean and standard deviation ride along: in onnx as metadata properties, in pt2 as the extra file
    p2ptrain.json.
    """
    check_apart(check_output(output), "-o", model_file, "FILE")
    if not model_file.is_file():
        load_allowed(model_file, allow_model)  # says what is wrong
    import logging
    import warnings

    from p2ptrain.learning.use.export import about, export_model

    logging.disable(logging.WARNING)  # the exporter has much to say to its own authors
    warnings.simplefilter("ignore")
    model, card = load_allowed(model_file, allow_model)
    export_model(model, card.data.input_shape, output, kind, about(card))
    mean, std = list(card.data.mean), list(card.data.std)
    click.echo(
        f"{output}: inputs [batch, {', '.join(map(str, card.data.input_shape))}], less mean {mean}, over std {std}"
    )
