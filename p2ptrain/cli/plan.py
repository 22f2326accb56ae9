"""``p2ptrain plan``: how the devices of some profiles would train one model as a pipeline.

Invariant: computes only; nothing is measured, sent or written but the picture asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.options import check_output, json_option, print_json, progress
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.planning.blocks import ModelProfile
    from p2ptrain.planning.pipeline_cost import PipelinePeer

SHAPES = {"lenet": (1, 28, 28), "dscnn": (1, 40, 61)}
USUAL_SHAPE = (3, 32, 32)
EXAMPLES = """\b
Examples:
  p2ptrain plan --model vgg16 peers/*.toml --rate 100
  p2ptrain plan --model resnet18 raspberry-pi-4 raspberry-pi-4 old-laptop --png timeline.png
  p2ptrain plan --model vgg11_bn --batch-size 128 --micro-batches 16 peers/*.toml --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("profiles", nargs=-1, required=True, metavar="PROFILE...")
@click.option("--model", required=True, metavar="NAME", help="Built-in or package.module:function of your own.")
@click.option("--width", type=click.FloatRange(0.01, 16), default=1.0, help="Factor on all channels. [default: 1]")
@click.option(
    "--input-shape",
    metavar="C,H,W",
    help="Channels, height and width of a sample. [default: 3,32,32; lenet 1,28,28; dscnn 1,40,61]",
)
@click.option("--classes", "num_classes", type=click.IntRange(1), default=10, help="How many. [default: 10]")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Samples a step. [default: 64]")
@click.option(
    "--micro-batches", type=click.IntRange(1), default=8, help="Parts of a batch in the pipeline. [default: 8]"
)
@click.option(
    "--rate",
    "rate_mbit_s",
    type=click.FloatRange(0, min_open=True),
    help="Of every link, in Mbit/s. [default: the slower of the two profiles]",
)
@click.option("--latency", "latency_ms", type=click.FloatRange(0), default=1.0, help="In ms. [default: 1]")
@click.option(
    "--png", type=click.Path(path_type=Path), metavar="FILE", help="Draw the timeline. [default: as text only]"
)
@json_option
def command(
    profiles: tuple[str, ...],
    model: str,
    width: float,
    input_shape: str | None,
    num_classes: int,
    batch_size: int,
    micro_batches: int,
    rate_mbit_s: float | None,
    latency_ms: float,
    png: Path | None,
    as_json: bool,
) -> None:
    """Plan a pipeline: which of these devices train which blocks of the model, and what a batch would take.

    A PROFILE is a file, or the name of one in peers/; name one as often as there are such devices.
    """
    if batch_size % micro_batches:
        raise UserError(
            f"--batch-size {batch_size} is not {micro_batches} equal micro-batches; "
            f"take a multiple of {micro_batches}, or change --micro-batches"
        )
    if png is not None:
        from p2ptrain.ui.pipeline_figure import check_matplotlib

        check_output(png)
        check_matplotlib()
    from p2ptrain.planning.pipeline_baselines import compare
    from p2ptrain.planning.pipeline_cost import PipelineTask
    from p2ptrain.ui import pipeline_view

    peers = read_peers(profiles, rate_mbit_s)
    profile = _profile(model, _shape(input_shape, model), num_classes, width)
    task = PipelineTask(profile, peers, batch_size // micro_batches, micro_batches, latency_ms / 1000)
    comparison = compare(task)
    if as_json:
        print_json(pipeline_view.to_plain(comparison))
    else:
        click.echo(pipeline_view.render(comparison))
        progress("times follow from the profiles' FLOP/s: no block was measured on these devices")
    if png is not None:
        from p2ptrain.ui.pipeline_figure import draw

        draw(comparison, png)
        progress(f"{png} written")


def read_peers(profiles: tuple[str, ...], rate_mbit_s: float | None) -> tuple[PipelinePeer, ...]:
    """A peer for each profile, named by its file; the second of a name is ``name#2``. ``--rate`` is every link's."""
    import dataclasses

    from p2ptrain.planning.pipeline_cost import peer_from_profile
    from p2ptrain.planning.profiles import find_profile, read_profile

    peers: list[PipelinePeer] = []
    counts: dict[str, int] = {}
    for each in profiles:
        path = find_profile(each)
        counts[path.stem] = counts.get(path.stem, 0) + 1
        name = path.stem if counts[path.stem] == 1 else f"{path.stem}#{counts[path.stem]}"
        peer = peer_from_profile(read_profile(path), name)
        if rate_mbit_s is not None:
            peer = dataclasses.replace(peer, link_bytes_per_s=rate_mbit_s * 1e6 / 8)
        peers.append(peer)
    return tuple(peers)


def _shape(text: str | None, model: str) -> tuple[int, int, int]:
    if text is None:
        return SHAPES.get(model, USUAL_SHAPE)
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--input-shape {text}: write channels, height and width, such as 3,32,32")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _profile(model: str, input_shape: tuple[int, int, int], num_classes: int, width: float) -> ModelProfile:
    import torch

    from p2ptrain.learning.block_costs import profile_blocks
    from p2ptrain.learning.blocks import Chain
    from p2ptrain.learning.models import build_model

    with torch.device("meta"):
        network = build_model(model, input_shape=input_shape, num_classes=num_classes, width=width)
    return profile_blocks(Chain(network, input_shape), model)
