"""Which model, cut into which blocks: the options that ``plan`` and ``probe`` share.

Invariant: both name the same blocks for the same options, so that times measured by the one are found by the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.learning.blocks.chain import Chain

F = TypeVar("F", bound=Callable[..., Any])
SHAPES = {"lenet": (1, 28, 28), "dscnn": (1, 40, 61)}
USUAL_SHAPE = (3, 32, 32)


def shape_options(function: F) -> F:
    """``--width``, ``--input-shape``, ``--classes``."""
    for option in (
        click.option("--classes", "num_classes", type=click.IntRange(1), default=10, help="How many. [default: 10]"),
        click.option(
            "--input-shape",
            metavar="C,H,W",
            help="Channels, height and width of a sample. [default: 3,32,32; lenet 1,28,28; dscnn 1,40,61]",
        ),
        click.option(
            "--width", type=click.FloatRange(0.01, 16), default=1.0, help="Factor on all channels. [default: 1]"
        ),
    ):
        function = option(function)
    return function


def chain_of(model: str, input_shape: str | None, num_classes: int, width: float) -> Chain:
    """The model's blocks, without numbers. Raises ``UserError``. Imports torch."""
    from p2ptrain.learning.blocks import chain
    from p2ptrain.learning.models import build_model

    shape = _shape(input_shape, model)
    return chain.chain_of(lambda: build_model(model, input_shape=shape, num_classes=num_classes, width=width), shape)


def _shape(text: str | None, model: str) -> tuple[int, int, int]:
    if text is None:
        return SHAPES.get(model, USUAL_SHAPE)
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--input-shape {text}: write channels, height and width, such as 3,32,32")
    return int(parts[0]), int(parts[1]), int(parts[2])
