"""``p2ptrain plan``: how the devices of some profiles would train one model as a pipeline, or split.

Invariant: computes only; nothing is measured, sent or written but the picture asked for.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from p2ptrain.cli.shared.chain import chain_of, shape_options
from p2ptrain.cli.shared.options import UserPath, json_option, print_json, progress
from p2ptrain.cli.shared.outputs import check_output
from p2ptrain.config import CODINGS, Coding, Optimizer, Schedule
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.planning.devices.profiles import DeviceProfile
    from p2ptrain.planning.pipeline.task import PairRate, PipelinePeer
    from p2ptrain.planning.split.units import Labels, Medium, Tails

EXAMPLES = """\b
Examples:
  p2ptrain plan --model vgg16 peers/*.toml --rate 100
  p2ptrain plan --model resnet18 raspberry-pi-4 raspberry-pi-4 old-laptop --png timeline.png
  p2ptrain plan --model vgg16 raspberry-pi-4 raspberry-pi-5 old-laptop --link raspberry-pi-5:old-laptop=20
  p2ptrain plan --model vgg11 raspberry-pi-5 old-laptop --schedule async --activations int8 --gradients int8
  p2ptrain plan --model vgg11_bn --batch-size 128 --micro-batches 16 peers/*.toml --json
  p2ptrain plan --mode split --model vgg16 peers/*.toml --rate 100 --helper desktop-gpu
  p2ptrain plan --mode split --model vgg16 peers/*.toml --rate 40 --medium shared --samples 500 --samples old-laptop=0
"""
ONLY_PIPELINE: tuple[str, ...] = ("schedule", "activations", "gradients")
ONLY_SPLIT: tuple[str, ...] = ("helpers", "samples", "medium", "tails", "labels")
"""Options that the other mode has no use for."""


@click.command(epilog=EXAMPLES)
@click.argument("profiles", nargs=-1, required=True, metavar="PROFILE...")
@click.option("--model", required=True, metavar="NAME", help="Built-in or package.module:function of your own.")
@click.option(
    "--mode",
    type=click.Choice(("pipeline", "split")),
    default="pipeline",
    help="split: every peer trains the front on its own samples, a helper the rest. [default: pipeline]",
)
@shape_options
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Samples a step. [default: 64]")
@click.option(
    "--micro-batches", type=click.IntRange(1), default=8, help="Parts of a batch in the pipeline, at most. [default: 8]"
)
@click.option(
    "--schedule",
    type=click.Choice(get_args(Schedule)),
    default="sync",
    help="async: without a flush between batches. [default: sync]",
)
@click.option(
    "--optimizer",
    type=click.Choice(get_args(Optimizer)),
    default="sgd",
    help="adamw: takes more memory. [default: sgd]",
)
@click.option(
    "--activations", type=click.Choice(CODINGS), default="none", help="How they travel between stages. [default: none]"
)
@click.option("--gradients", type=click.Choice(CODINGS), default="none", help="Likewise theirs. [default: none]")
@click.option(
    "--rate",
    "rate_mbit_s",
    type=click.FloatRange(0, min_open=True),
    help="Of every link, in Mbit/s. [default: the slower of the two profiles]",
)
@click.option(
    "--link",
    "links",
    multiple=True,
    metavar="PEER:PEER=MBIT",
    help="One link's rate, where it is slower than its ends; may be given again. [default: the slower end's]",
)
@click.option("--latency", "latency_ms", type=click.FloatRange(0), default=1.0, help="In ms. [default: 1]")
@click.option("--png", type=UserPath(), metavar="FILE", help="Draw the timeline. [default: as text only]")
@click.option(
    "--helper",
    "helpers",
    multiple=True,
    metavar="PEER",
    help="split: who may help; brings no samples unless --samples says so; may be given again. [default: all may]",
)
@click.option(
    "--samples",
    multiple=True,
    metavar="[PEER=]NUMBER",
    help="split: of everybody but the helpers, or of one peer; may be given again. [default: 1000]",
)
@click.option(
    "--medium",
    type=click.Choice(("switched", "shared")),
    default="switched",
    help="split: shared = all devices together have --rate, as on one Wi-Fi. [default: switched]",
)
@click.option(
    "--tails",
    type=click.Choice(("replica", "shared")),
    default="replica",
    help="split: shared = a helper trains one tail for all its units, step by step. [default: replica]",
)
@click.option(
    "--labels",
    type=click.Choice(("send", "stay")),
    default="send",
    help="split: stay = an owner trains the last block and the loss itself. [default: send]",
)
@json_option
def command(
    profiles: tuple[str, ...],
    model: str,
    mode: str,
    width: float,
    input_shape: str | None,
    num_classes: int,
    batch_size: int,
    micro_batches: int,
    schedule: Schedule,
    optimizer: Optimizer,
    activations: Coding,
    gradients: Coding,
    rate_mbit_s: float | None,
    links: tuple[str, ...],
    latency_ms: float,
    png: Path | None,
    helpers: tuple[str, ...],
    samples: tuple[str, ...],
    medium: Medium,
    tails: Tails,
    labels: Labels,
    as_json: bool,
) -> None:
    """Plan a pipeline: which of these devices train which blocks of the model, and what a batch would take.

    With --mode split: who helps whom from which block on, with what share of the link, and what a round would take.

    A PROFILE is a file, or the name of one in peers/; name one as often as there are such devices.
    """
    _check_options(mode)
    if mode == "pipeline" and batch_size % micro_batches:
        raise UserError(
            f"--batch-size {batch_size} is not {micro_batches} equal micro-batches; "
            f"take a multiple of {micro_batches}, or change --micro-batches"
        )
    if png is not None:
        from p2ptrain.ui.pipeline_figure import check_matplotlib

        check_output(png, option="--png")
        check_matplotlib()
    from p2ptrain.cli.shared import split_room
    from p2ptrain.learning.blocks.costs import profile_blocks
    from p2ptrain.planning.devices.profile_codec import chain_hash
    from p2ptrain.planning.pipeline.comparison import compare
    from p2ptrain.planning.pipeline.fleet import Fleet
    from p2ptrain.planning.pipeline.task import WIRE, PipelineTask, held_copies
    from p2ptrain.planning.split import comparison as split_comparison
    from p2ptrain.ui import pipeline_figure, pipeline_view, split_figure, split_view

    read = read_profiles(profiles)  # errors in files before torch is imported
    names = [name for name, _ in read]
    split_room.check_helpers(helpers, names)
    counts = split_room.samples_of(samples, names, helpers)
    profile = profile_blocks(chain_of(model, input_shape, num_classes, width), model)
    peers = peers_of(read, rate_mbit_s, chain_hash(profile), (activations, gradients))
    if mode == "split":
        room = split_room.split_task(
            profile,
            read,
            peers,
            chain_hash(profile),
            batch_size=batch_size,
            micro_batches=micro_batches,
            samples=counts,
            helpers=helpers,
            medium=medium,
            tails=tails,
            labels=labels,
            rate_mbit_s=rate_mbit_s,
            latency_s=latency_ms / 1000,
            pair_rates=pair_rates_of(links),
            optimizer_copies=held_copies(optimizer, "sync"),
        )
        found = split_comparison.compare(room)
        _show(split_view.to_plain(found) if as_json else split_view.render(found), peers, model)
        if png is not None:
            split_figure.draw(found, png)
            progress(f"{png} written")
        return
    task = PipelineTask(
        profile,
        peers,
        batch_size // micro_batches,
        micro_batches,
        latency_ms / 1000,
        pair_rates=pair_rates_of(links),
        optimizer_copies=held_copies(optimizer, schedule),
        forward_wire=WIRE[activations],
        backward_wire=WIRE[gradients],
    )
    comparison = compare(Fleet(task, math.inf if schedule == "async" else 1))
    _show(pipeline_view.to_plain(comparison) if as_json else pipeline_view.render(comparison), peers, model)
    if png is not None:
        pipeline_figure.draw(comparison, png)
        progress(f"{png} written")


def _check_options(mode: str) -> None:
    """Raises ``UserError`` for one that was given, but that the mode has no use for."""
    context = click.get_current_context()
    useless, why = ONLY_PIPELINE, "split training chooses the coding of each unit, and has no schedule; leave it out"
    if mode == "pipeline":
        useless, why = ONLY_SPLIT, "a pipeline has no use for it; leave it out, or add --mode split"
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name in useless:
            raise UserError(f"{parameter.opts[0]}: {why}")


def _show(found: str | dict[str, Any], peers: tuple[PipelinePeer, ...], model: str) -> None:
    """As text, or for programs."""
    if not isinstance(found, str):
        print_json(found)
        return
    click.echo(found)
    if any(peer.times is None for peer in peers):
        progress(f"times from FLOP/s are rough: measure on the device with `p2ptrain probe --model {model}`")


def read_profiles(names: tuple[str, ...]) -> list[tuple[str, DeviceProfile]]:
    """Each profile under its file's name; the second of a name is ``name#2``."""
    from p2ptrain.planning.devices.profiles import find_profile, read_profile

    found: list[tuple[str, DeviceProfile]] = []
    counts: dict[str, int] = {}
    for each in names:
        path = find_profile(each)
        counts[path.stem] = counts.get(path.stem, 0) + 1
        name = path.stem if counts[path.stem] == 1 else f"{path.stem}#{counts[path.stem]}"
        found.append((name, read_profile(path)))
    return found


def pair_rates_of(links: tuple[str, ...]) -> tuple[PairRate, ...]:
    """Of ``--link one:other=20``, in Mbit/s. Raises ``UserError``."""
    from p2ptrain.planning.pipeline.task import PairRate

    found = []
    for link in links:
        match = re.fullmatch(r"([^:=]+):([^:=]+)=([0-9.]+)", link)
        try:
            mbit_s = float(match[3]) if match else 0.0
        except ValueError:
            mbit_s = 0.0
        if match is None or not mbit_s > 0:
            raise UserError(f"--link {link}: write two peers and Mbit/s, such as old-laptop:raspberry-pi-4=20")
        found.append(PairRate(match[1].strip(), match[2].strip(), mbit_s * 1e6 / 8))
    return tuple(found)


def peers_of(
    profiles: list[tuple[str, DeviceProfile]],
    rate_mbit_s: float | None,
    chain: str,
    codings: tuple[Coding, Coding],
) -> tuple[PipelinePeer, ...]:
    """With the times that were measured for the chain of blocks, or as they grow for the others with the batch.

    ``rate_mbit_s`` is every link's, if given; ``codings``: of activations and of gradients.
    """
    import dataclasses

    from p2ptrain.planning.devices.blocks import extrapolated
    from p2ptrain.planning.pipeline.task import peer_from_profile

    peers = [peer_from_profile(profile, name, chain, codings) for name, profile in profiles]
    measured = [peer.times for peer in peers if peer.times]
    peers = [dataclasses.replace(p, times=extrapolated(p.times, measured)) if p.times else p for p in peers]
    if rate_mbit_s is not None:
        peers = [dataclasses.replace(peer, link_bytes_per_s=rate_mbit_s * 1e6 / 8) for peer in peers]
    return tuple(peers)
