"""``p2ptrain attribute``: score a model's channels by class, for a job that starts from that model.

Invariant: the model's own tensors are copied as they are; the scores come beside them as ``attribution/<layer>``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from p2ptrain.cli.shared.options import DATA_HELP, UserPath, allow_option, load_allowed, progress
from p2ptrain.cli.shared.outputs import check_apart, check_output
from p2ptrain.errors import UserError
from p2ptrain.words import word

EXAMPLES = """\b
Examples:
  p2ptrain attribute global.safetensors --data images:photos/ -o init.safetensors
  p2ptrain job new --data images:photos/ --model vgg11_bn --init init.safetensors -o job.toml
"""


@click.command(epilog=EXAMPLES)
@click.argument("model_file", type=UserPath(), metavar="FILE")
@click.option("--data", required=True, metavar="SPEC", help=f"{DATA_HELP} Samples of all classes.")
@click.option(
    "--samples",
    "num_samples",
    type=click.IntRange(1, 100_000),
    default=256,
    metavar="N",
    help="Training samples to use, evenly from all. [default: 256]",
)
@click.option(
    "-o",
    "--output",
    type=UserPath(),
    default=Path("init.safetensors"),
    metavar="FILE",
    help="Where checkpoint and scores go. [default: init.safetensors]",
)
@allow_option
def command(model_file: Path, data: str, num_samples: int, output: Path, allow_model: str) -> None:
    """Score how much each class needs each channel, so that a job starting from this model is divided by use.

    The output is the checkpoint with the scores; name it as model.init in a job file.
    """
    from p2ptrain.learning.data import load, open_source, select

    check_apart(check_output(output), "-o", model_file, "FILE")
    source = open_source(data)
    import torch

    from p2ptrain.config import DataConfig, Job, ModelConfig
    from p2ptrain.learning.checkpoint import ATTRIBUTION, save_model
    from p2ptrain.learning.submodels.attribution import attribute
    from p2ptrain.learning.submodels.decoupling import Decoupling

    model, card = load_allowed(model_file, allow_model)
    shape, num_classes = card.data.input_shape, len(card.data.classes)
    # Nothing that a model is made of has seen what a job holds out for validation.
    contract = dataclasses.replace(card.data, val=DataConfig().val)
    indices = select(source, contract, "train")
    chosen = indices[torch.linspace(0, len(indices) - 1, min(num_samples, len(indices))).long().numpy()]
    samples = load(source, contract, "train", chosen)
    for note in samples.notes:
        progress(f"note: {note}")
    if missing := [name for name, n in zip(card.data.classes, samples.counts(), strict=True) if n == 0]:
        raise UserError(f"{data}: no sample of {', '.join(missing)} among {len(samples)}; raise --samples, or add data")
    halves = [range(num_classes // 2), range(num_classes // 2, num_classes)]
    layers = list(Decoupling(model, shape, halves).channel_layers)
    x, y = samples.tensors(slice(None))
    scores = attribute(model, layers, x, num_classes, labels=y)
    job = Job(seed=card.seed, model=ModelConfig(card.model, card.width, config=card.config), data=card.data)
    tensors = dict(model.state_dict()) | {f"{ATTRIBUTION}{layer}": score for layer, score in scores.items()}
    save_model(output, tensors, job, {**card.extra, "job_id": card.job_id, "lineage": list(map(dict, card.lineage))})
    click.echo(f"{output}: checkpoint and scores of {len(layers)} layers, from {len(samples)} samples")
    click.echo(f"next: p2ptrain job new --data SPEC --model {word(card.model)} --init {word(output)} -o job.toml")
