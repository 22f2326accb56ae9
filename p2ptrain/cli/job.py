"""``p2ptrain job``: write a job file from a data set, check one, or go on from one that is done.

Invariant: ``job new`` only writes files that ``load_job`` reads back, complete, with the data contract in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from p2ptrain.cli.shared.continue_job import continue_command
from p2ptrain.cli.shared.job_comments import commented
from p2ptrain.cli.shared.job_defaults import FOR_TEXT, batch_size_for
from p2ptrain.cli.shared.model_check import (
    as_safetensors,
    freeze_option,
    named_model,
    notes_on_model,
    tried,
    with_classes,
    write_template,
)
from p2ptrain.cli.shared.options import (
    DATA_HELP,
    F,
    Names,
    Share,
    UserPath,
    json_option,
    print_json,
    progress,
    strict_option,
)
from p2ptrain.cli.shared.outputs import check_output, is_pipe, seen_from, write_text
from p2ptrain.cli.shared.own_code import allow_options, check_job_allowed, flags_for, own_parts
from p2ptrain.cli.shared.strategies import strategy_options, with_strategy
from p2ptrain.config import Job
from p2ptrain.errors import JobError, UserError
from p2ptrain.model_config import is_own_code
from p2ptrain.modes.tables import NAMES, TABLES
from p2ptrain.words import clean, word

AUTO_PASSES = 0.0
"""As many as equal work allows, fewer where validation samples say so: how many are best hangs on the model."""
DEFAULT_MODELS = {"image": "lenet", "audio": "dscnn", "text": "gpt_mini", "tokens": "bert_small"}
MODE_WHY = {
    "auto": "when the first plan is made the group takes a class sub-model each (tasks), or the whole model on each "
    "(replicas) where the model can't be divided or only one device has samples, and says so; --mode decides it now",
    "replicas": "class sub-models are for pictures and audio; --mode pipeline makes one of the devices",
}
"""What the mode means, for whoever did not choose one."""
EXAMPLES_NEW = """\b
Examples:
  p2ptrain job new --data images:photos/ --model vgg11_bn -o job.toml
  p2ptrain job new --data digits --model lenet --mode replicas --rounds 5 -o job.toml
  p2ptrain job new --data text:book.txt --mode pipeline --micro-batches 4 -o job.toml
  p2ptrain job new --data images:photos/ --model vgg11 --mode split -o job.toml
"""


@click.group(epilog="\b\nExample:\n  p2ptrain job new --data digits -o job.toml && p2ptrain job check job.toml")
def command() -> None:
    """Write a job file from a data set, check one, or go on from one that is done.

    The job is what a group trains: model, classes, input shape, hyper-parameters. One peer starts with the file; all
    others get it from the group.
    """


def setting(name: str, path: str, kind: Any, text: str) -> Callable[[F], F]:
    """An option that sets one key of the job, whose default is the job's own."""
    title, _, key = path.rpartition(".")
    table = TABLES[title]() if title in TABLES else getattr(Job(), title) if title else Job()
    shown = f"{getattr(table, key)}" + (f"; {FOR_TEXT[path]} for text" if path in FOR_TEXT else "")
    return click.option(name, path.replace(".", "__"), type=kind, help=f"{text} [default: {shown}]")


@command.command(epilog=EXAMPLES_NEW)
@click.option("--data", required=True, metavar="SPEC", help=f"{DATA_HELP} Classes and shape come from it.")
@click.option(
    "--classes",
    type=Names(),
    default=(),
    metavar="NAMES",
    help="The job's classes, such as cat,dog,bird, where other devices have some that these data lack. [default: those "
    "of the data]",
)
@click.option(
    "--model-template",
    type=UserPath(),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=write_template,
    help="Only write a small model of your own to begin with, such as my_model.py. [default: write a job]",
)
@click.option(
    "--model",
    "model__name",
    metavar="NAME",
    help="Built-in, torchvision:NAME, timm:NAME, hf:DIR (a folder of transformers), or package.module:function. "
    "[default: lenet; dscnn for audio; gpt_mini or bert_small for text]",
)
@setting("--name", "name", str, "What to call the job.")
@click.option(
    "--mode",
    "mode",
    type=click.Choice(NAMES),
    help="tasks: a class sub-model a peer. replicas: the whole model. pipeline: some layers. split: the whole model, "
    "or its first layers with a helper for the rest. auto: the group takes tasks or replicas when it makes its first "
    "plan, by devices, model and who has which classes. [default: auto; replicas for text]",
)
@strategy_options
@setting("--rounds", "training.rounds", click.IntRange(1), "Rounds; parameters travel after each.")
@setting("--epochs", "training.epochs_per_round", click.FloatRange(0.001), "Passes over the own samples a round.")
@click.option(
    "--batch-size",
    "training__batch_size",
    type=click.IntRange(1),
    help="Samples a step. [default: 64; 32 or 16 of audio if there is little]",
)
@setting("--optimizer", "training.optimizer", click.Choice(["sgd", "adamw"]), "Which optimizer.")
@own_parts
@setting("--learning-rate", "training.learning_rate", click.FloatRange(0, min_open=True), "At the start.")
@setting("--warmup", "training.warmup", click.FloatRange(0, 0.9), "Share of all steps in which the rate rises.")
@setting("--clip", "training.clip", click.FloatRange(0), "Longer gradients are scaled to this norm; 0 is none.")
@setting(
    "--precision",
    "training.precision",
    click.Choice(["fp32", "bf16"]),
    "bf16: compute in bfloat16 on devices that have it; parameters stay float32.",
)
@setting(
    "--patience",
    "training.patience",
    click.IntRange(0),
    "The group ends when its whole model got no more validation samples right in so many looks (--look-every); 0 is "
    "never. harvest --best gives the best state.",
)
@setting(
    "--look-every",
    "training.look_every",
    click.IntRange(0),
    "Rounds between two looks at the whole model; 0: ten in all, for a twentieth of the time at most.",
)
@setting("--seed", "seed", int, "For initial weights and shares of the data.")
@setting("--width", "model.width", click.FloatRange(0.01, 16), "Factor on all channel counts.")
@setting("--groups", "tasks.num_groups", click.IntRange(0), "Sub-models; 0 is one a peer.")
@setting("--trunk", "tasks.trunk", click.IntRange(0), "First layers that all sub-models share.")
@click.option(
    "--passes",
    "tasks__passes",
    type=click.FloatRange(0),
    metavar="N",
    help="Passes of a class sub-model over the samples, for one that the whole model would make; at most as many as "
    "are as much work. 0: that many, but a round ends early when the own validation samples say that more would bring "
    f"nothing. [default: {AUTO_PASSES:g} in mode auto, else 1]",
)
@click.option(
    "--budget",
    "tasks__budget",
    type=Share(),
    metavar="PART",
    help="Of the work of central training, what a device may spend in all, such as 1/11.8: class sub-models are as "
    "narrow, and pass the samples as often, as that pays. [default: as much as central training]",
)
@setting(
    "--micro-batches",
    "pipeline.micro_batches",
    click.IntRange(1),
    "Parts of a batch in a pipeline or on its way to a helper, at most.",
)
@setting("--schedule", "pipeline.schedule", click.Choice(["sync", "async"]), "Of a pipeline.")
@setting("--min-peers", "group.min_peers", click.IntRange(1), "The first plan waits for so many peers.")
@setting("--compression", "group.compression", click.Choice(["none", "fp16", "int8", "topk"]), "Of what peers send.")
@setting(
    "--robust",
    "group.robust",
    click.Choice(["none", "clip", "trimmed-mean", "median"]),
    "How much one device's contribution may move what several make, from three devices on.",
)
@setting("--augment/--no-augment", "data.augment", bool, "Random crops and flips, or shifts, while training.")
@setting(
    "--val",
    "data.val",
    click.FloatRange(0, 0.5),
    "Share of the training samples held out for validation, unless the data have a val split; 0 is none.",
)
@click.option(
    "--input-shape",
    metavar="C,H,W",
    help="Channels, height and width in pixels. [default: that of the data, at most 64 pixels a side]",
)
@click.option(
    "--init",
    type=UserPath(),
    metavar="FILE",
    help="Weights to start from, .safetensors or .pth; what fits the model is taken. Scores in it decide who gets "
    "which channels. [default: random weights]",
)
@freeze_option
@click.option(
    "-o",
    "--output",
    type=UserPath(),
    default=Path("job.toml"),
    metavar="FILE",
    help="The job file. [default: job.toml]",
)
@click.option("--force", is_flag=True, help="Overwrite the file if there is one.")
def new(
    data: str,
    classes: tuple[str, ...],
    input_shape: str | None,
    init: Path | None,
    output: Path,
    force: bool,
    strategy: str | None,
    **settings: Any,
) -> None:
    """Write a complete job file, with the data contract (classes, shape, normalisation) proposed from a data set."""
    check_output(output, force, is_text=True)
    from p2ptrain.learning.data import open_source, propose_contract

    source = open_source(data)
    augment = bool(settings.pop("data__augment"))
    contract = propose_contract(source, _shape(input_shape), augment=augment, say=_note)
    contract = with_classes(contract, classes) if classes else contract
    job = dataclasses.replace(Job(), data=contract)
    job, weights = named_model(settings.pop("model__name") or DEFAULT_MODELS[source.kind], job)
    if weights is not None and init is None:
        init = weights
    from p2ptrain.modes.jobs import check_job, job_from_text, with_settings
    from p2ptrain.modes.registry import MODES

    became = with_strategy(settings, strategy)
    given = settings["mode"]
    settings["mode"] = given or "auto"
    if settings["mode"] == "auto" and settings["tasks__passes"] is None:
        settings["tasks__passes"] = AUTO_PASSES
    if contract.reads_tokens:
        settings["mode"] = given or "replicas"
        for path, value in FOR_TEXT.items():
            key = path.replace(".", "__")
            settings[key] = value if settings[key] is None else settings[key]
    if settings["tasks__budget"] and settings["tasks__passes"] is None:
        settings["tasks__passes"] = AUTO_PASSES
    mode = MODES[settings["mode"]]
    if hasattr(mode.config, "micro_batches"):
        settings[f"{mode.config.TABLE}__micro_batches"] = settings.pop("pipeline__micro_batches")
    settings["model__freeze"] = settings["model__freeze"] or None
    for path, value in settings.items():
        title, _, key = path.rpartition("__")
        job = with_settings(job, title, **{key: value}) if value is not None else job
    if mode.needs_data and settings["training__batch_size"] is None:  # a pipeline cuts batches into micro-batches
        num = round(source.num_samples("train") * (1.0 if source.num_samples("val") else 1 - job.data.val))
        job = with_settings(job, "training", batch_size=batch_size_for(source.kind, num, job.training))
    job = job.with_table(job.table(mode.config))  # all its keys are in the file, for people
    with contextlib.ExitStack() as made:
        if init is not None:
            if not init.is_file():
                raise UserError(f"--init {init}: no such file; `p2ptrain attribute` or `p2ptrain harvest` writes one")
            init = made.enter_context(as_safetensors(init, output, force=force))
            job = dataclasses.replace(job, model=dataclasses.replace(job.model, init=seen_from(output, init)))
        check_job(job, where="job new")
        text = commented(job)
        written = job_from_text(text, output)
        tell = partial(click.echo, err=is_pipe(output))  # beside a text that is piped on
        if init is not None and not is_own_code(job.model.name):
            tell(f"--init: {tried(job, init, None)[1]}")
        write_text(output, text)
    job = written
    shape = " x ".join(map(str, job.data.input_shape))
    tell(f"{output}: job {job.id}, {len(job.data.classes)} classes, input {shape}, model {job.model.name}")
    if not given:
        tell(f"mode {job.mode}: {MODE_WHY[job.mode]}")
    for line in (*filter(None, [became]), *notes_on_model(job), *mode.words.choice_lines(job)):
        tell(line)
    allow = "".join(f" {flag}" for flag in flags_for(job))
    given_as = f"{word(output)} --data {word(data)}{allow}"
    tell(f"next: p2ptrain job check {given_as}; then p2ptrain peer --job {given_as}")


def _note(text: str) -> None:
    progress(f"note: {clean(text, 400)}")


def _shape(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--input-shape {text}: write channels, height and width, such as 3,32,32")
    return int(parts[0]), int(parts[1]), int(parts[2])


command.add_command(continue_command(commented))


@command.command(epilog="\b\nExample:\n  p2ptrain job check job.toml")
@click.argument("job_file", type=UserPath(), metavar="FILE")
@click.option("--data", metavar="SPEC", help=f"Check also that this fits the job. {DATA_HELP} [default: no data]")
@click.option("--full", is_flag=True, help="With --data: read every file whole. [default: the headers of all]")
@strict_option
@allow_options
@json_option
def check(job_file: Path, data: str | None, full: bool, strict: bool, allowed: str, as_json: bool) -> None:
    """Check a job file, and tell its id, the size of its model and what training costs.

    With --data all files' headers are read, and some samples are held against the job.
    """
    from p2ptrain.modes.jobs import init_path, load_job
    from p2ptrain.modes.registry import mode_of
    from p2ptrain.runtime.preflight import checked_data

    job = load_job(job_file)
    if not data and (full or strict):
        raise UserError("--full and --strict are about files: name them with --data")
    counts = checked_data(job, data, full=full, strict=strict) if data else {}
    if job.own_code and not allowed:
        raise JobError(
            f"{job_file}: {', '.join(job.own_code)}: code of your own; let it run with {' '.join(flags_for(job))}"
        )
    check_job_allowed(job, allowed)
    from p2ptrain.learning.blocks.flops import memory_bytes, training_flops
    from p2ptrain.learning.models import global_model
    from p2ptrain.learning.own.outputs import contract_words

    trial, taken = tried(job, init_path(job_file), data)
    model = trial.model
    found = mode_of(job).check_model(job, global_model(job, allow_user_code=True))
    flops = training_flops(model, job.data.input_shape)
    optimizer: Any = job.training.optimizer
    if job.training.own_optimizer:
        optimizer = "adamw"  # as large as usual ones are
    elif optimizer == "sgd" and job.training.momentum:
        optimizer = "sgd_momentum"
    plain = {
        "id": job.id,
        "name": job.name,
        "mode": job.mode,
        "model": job.model.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "flops_per_sample": {"forward": flops.forward, "training": flops.total},
        "training_bytes": memory_bytes(model, job.data.input_shape, job.training.batch_size, optimizer),
        "classes": list(job.data.classes),
        "input_shape": list(job.data.input_shape),
    }
    plain |= {**found, **counts}
    plain["model_notes"] = [*notes_on_model(job), *trial.notes, *found.get("model_notes", ())]
    plain["model_contract"] = contract_words(job.data) if is_own_code(job.model.name) else ""
    plain["init"] = taken
    if as_json:
        print_json(plain)
        return
    _tell(job, plain)


def _tell(job: Job, plain: dict[str, Any]) -> None:
    from p2ptrain.modes.registry import mode_of
    from p2ptrain.words import listed, scaled

    flops = plain["flops_per_sample"]
    click.echo(f"id        {job.id}   ({clean(job.name, 60)}, mode {job.mode})")
    click.echo(f"model     {job.model.name}: {plain['parameters']:,} parameters, {scaled(plain['model_bytes'], 'B')}")
    click.echo(
        f"cost      {scaled(flops['training'], 'FLOP')} a sample to train, {scaled(flops['forward'], 'FLOP')} forward; "
        f"{scaled(plain['training_bytes'], 'B')} of memory at batch size {job.training.batch_size}, beside torch itself"
    )
    if plain["model_contract"]:
        click.echo(f"contract  {plain['model_contract']}")
    for note in plain["model_notes"]:
        click.echo(f"note      {note}")
    if plain["init"]:
        click.echo(f"init      {plain['init']}")
    if groups := plain.get("max_groups", 0):
        taken = (
            f"class sub-models, up to {groups} different ones" if groups > 1 else "replicas: the model can't be divided"
        )
        click.echo(f"mode      auto: {taken}")
    for line in mode_of(job).words.job_lines(job):
        click.echo(line)
    shape = " x ".join(map(str, job.data.input_shape))
    click.echo(f"data      {job.data.kind} {shape}, {len(job.data.classes)} classes: {listed(job.data.classes)}")
    if "samples" in plain:
        counts, num_val = plain["samples"], sum(plain["validation"].values())
        each = [f"{clean(name, 24)} {number}" for name, number in counts.items()]
        by_class = "" if job.data.kind == "text" else f": {listed(each, 12)}"
        click.echo(f"samples   {sum(counts.values()):,} to train on, {num_val:,} for validation{by_class}")
        for note in plain["notes"]:
            click.echo(f"note      {clean(note, 400)}")
    click.echo("fine")
