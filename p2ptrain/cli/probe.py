"""``p2ptrain probe``: measure this device and write its profile; with ``--model`` also its times for a model's blocks.

Invariant: prints a profile that ``p2ptrain peer --profile`` takes, with the source of every number; to a profile that
is there it only adds, so that what a person wrote into it stays.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.chain import chain_of, shape_options
from p2ptrain.cli.shared.options import UserPath, progress
from p2ptrain.cli.shared.outputs import check_output, write_text
from p2ptrain.errors import UserError
from p2ptrain.runtime.preflight import device_name
from p2ptrain.words import word

if TYPE_CHECKING:
    from p2ptrain.learning.blocks.chain import Chain
    from p2ptrain.planning.devices.profile_times import MeasuredBlocks

KINDS = ("board", "phone", "laptop", "desktop", "server")
BATCH_SIZES = (2, 8, 32)
BLOCKS_BUDGET_S = 30.0
EXAMPLES = """\b
Examples:
  p2ptrain probe
  p2ptrain probe -o peers/mine.toml --name "Kitchen laptop" --kind laptop
  p2ptrain probe -o peers/mine.toml --model vgg11 --batch-size 64
"""


@click.command(epilog=EXAMPLES)
@click.option("-o", "--output", type=UserPath(), metavar="FILE", help="Write the profile. [default: print it]")
@click.option("--name", default="", metavar="TEXT", help="What to call the device. [default: its host name]")
@click.option("--kind", type=click.Choice(KINDS), help="What sort of device it is. [default: a guess]")
@click.option("--force", is_flag=True, help="Overwrite the file if there is one.")
@click.option(
    "--model",
    metavar="NAME",
    help="Measure this model's blocks too; a FILE that is there gets their times and keeps the rest. [default: none]",
)
@shape_options
@click.option(
    "--batch-size", type=click.IntRange(1, 1 << 16), default=32, help="Largest to measure blocks with. [default: 32]"
)
def command(
    output: Path | None,
    name: str,
    kind: str | None,
    force: bool,
    model: str | None,
    width: float,
    input_shape: str | None,
    num_classes: int,
    batch_size: int,
) -> None:
    """Measure this device, in about ten seconds: speed of training, memory, cores, disk and link.

    With --model, in about half a minute more: the times of a model's blocks, which `p2ptrain plan` then uses.
    """
    adds = model is not None and output is not None and output.is_file() and not force
    if adds and (name or kind):
        raise UserError(f"{output}: is there and keeps its name and kind; leave out --name and --kind, or use --force")
    if output is not None:
        check_output(output, force or adds)
    if model is not None and output is not None and adds:
        _add_times(output, model, chain_of(model, input_shape, num_classes, width), batch_size)
        return
    chain = chain_of(model, input_shape, num_classes, width) if model is not None else None
    progress("measuring for some seconds; leave the device alone meanwhile")
    from p2ptrain.learning.profiling.device import default_kind, probe, profile_of

    result = probe(output.absolute().parent if output else None)
    profile = profile_of(result, name or device_name(), kind or default_kind())  # type: ignore[arg-type]
    if model is not None and chain is not None:
        profile = dataclasses.replace(profile, block_times=(_measured(model, chain, batch_size),))
    if output is None:
        click.echo(profile.to_toml(), nl=False)
    else:
        write_text(output, profile.to_toml())
        click.echo(f"{output} written; use it with: p2ptrain peer --profile {word(output)} ...")


def _add_times(path: Path, model: str, chain: Chain, batch_size: int) -> None:
    from p2ptrain.planning.devices.profile_times import with_block_times
    from p2ptrain.planning.devices.profiles import parse_profile, read_profile

    before = read_profile(path)
    text = path.read_text(encoding="utf-8")
    measured = _measured(model, chain, batch_size)
    kept = tuple(each for each in before.block_times if each.chain != measured.chain)
    new = with_block_times(text, measured, tuple(each.chain for each in before.block_times))
    try:
        after = parse_profile(new, path)
    except ValueError:  # not TOML any more
        after = None
    if after != dataclasses.replace(before, block_times=(*kept, measured)):
        raise UserError(
            f"{path}: its older times of {model} are in another form; remove that table, then measure again"
        )
    write_text(path, new)
    click.echo(
        f"times of {model}'s blocks added to {path}; use them with: p2ptrain plan --model {word(model)} {word(path)} "
        "..."
    )


def _measured(model: str, chain: Chain, batch_size: int) -> MeasuredBlocks:
    import math

    import torch

    from p2ptrain.learning.blocks.costs import profile_blocks
    from p2ptrain.learning.profiling.allocator import keep_for_training, kept_block_bytes
    from p2ptrain.learning.profiling.block_times import measure_blocks
    from p2ptrain.learning.profiling.coding_times import measure_codings
    from p2ptrain.learning.profiling.device import available_cores, find_accelerator, versions
    from p2ptrain.planning.devices.profile_codec import chain_hash, rounded, rounded_times
    from p2ptrain.planning.devices.profile_times import MeasuredBlocks

    progress(f"measuring the {len(chain.blocks)} blocks of {model}, for half a minute at most")
    keep_for_training()
    accelerator, device = find_accelerator()
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, math.floor(available_cores())))
    try:
        sizes = [size for size in BATCH_SIZES if size < batch_size]
        times = measure_blocks(
            chain,
            model,
            batch_sizes=(*sizes, batch_size),
            device=device or "cpu",
            budget_s=BLOCKS_BUDGET_S,
            heap_bytes=kept_block_bytes() // 2,
        )
        codings = {coding: (rounded(one), rounded(other)) for coding, (one, other) in measure_codings(chain).items()}
    finally:
        torch.set_num_threads(before)
    shape = "x".join(map(str, chain.input.shape))
    return MeasuredBlocks(
        model,
        chain_hash(profile_blocks(chain, model)),
        f"p2ptrain probe: {len(chain.blocks)} blocks, samples of {shape}, on {accelerator or 'the CPU'}; {versions()}",
        rounded_times(times),
        codings,
    )
