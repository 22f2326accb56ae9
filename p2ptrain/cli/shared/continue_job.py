"""``p2ptrain job continue``: a job file that goes on from the model of a job that is done.

Invariant: the new job differs from the old one in its rounds and in what it starts from, in nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.options import check_output, progress, write_text
from p2ptrain.config import Job
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from p2ptrain.runtime.store.kept import KeptJob

MAX_KEYS = 4
EXAMPLES = """\b
Examples:
  p2ptrain job continue job.toml --rounds 3 -o more.toml             from the model that this device keeps
  p2ptrain job continue job.toml --model global.safetensors -o more.toml
"""


def continue_command(commented: Callable[[Job], str]) -> click.Command:
    """``commented``: a job as the text of its file."""

    @click.command("continue", epilog=EXAMPLES)
    @click.argument("job_file", type=click.Path(path_type=Path), metavar="FILE")
    @click.option(
        "--rounds",
        type=click.IntRange(1),
        metavar="N",
        help="So many more, such as 20 or +20. [default: as many as the job says]",
    )
    @click.option(
        "--model",
        "model_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A harvested model to go on from. [default: the one that this device wrote when the group was done]",
    )
    @click.option(
        "--state",
        "state_dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="P2PTRAIN_STATE",
        metavar="DIR",
        help="Where this device keeps its jobs. [default: $P2PTRAIN_STATE, else ~/.local/state/p2ptrain]",
    )
    @click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=Path("more.toml"),
        metavar="FILE",
        help="The new job file. [default: more.toml]",
    )
    @click.option("--force", is_flag=True, help="Overwrite the files if there are any.")
    def command(
        job_file: Path, rounds: int | None, model_file: Path | None, state_dir: Path | None, output: Path, force: bool
    ) -> None:
        """Write a job file that goes on from the model of a job that is done, for more rounds.

        Model and optimizer start anew from its weights: the learning rate rises and falls once more.
        """
        check_output(output, force)
        from p2ptrain.modes.jobs import check_job, load_job

        old = load_job(job_file)
        if model_file is None:
            model_file = check_output(output.with_suffix(".safetensors"), force)
            shutil.copyfile(_kept_model(old, job_file, state_dir), model_file)
        behind = _check_model(old, job_file, model_file)
        relative = os.path.relpath(model_file.resolve(), output.absolute().parent.resolve())
        training = dataclasses.replace(old.training, rounds=rounds or old.training.rounds)
        model = dataclasses.replace(old.model, init=Path(relative).as_posix(), init_bytes=0)
        new = dataclasses.replace(old, training=training, model=model)
        check_job(new, where="job continue")
        write_text(output, commented(new))
        new = load_job(output)
        click.echo(
            f"{output}: job {new.id}, {new.training.rounds} more rounds from {model_file}"
            + (f", which has {behind} behind it" if behind else "")
        )
        click.echo(
            f"next: p2ptrain peer --job {output} --data SPEC on this device; the others start again with their own "
            "commands, without --job"
        )

    return command


def _kept_model(job: Job, job_file: Path, state_dir: Path | None) -> Path:
    """The model of this job, or of one that differs in its rounds alone."""
    from p2ptrain.api import default_state_dir
    from p2ptrain.runtime.store.kept import all_jobs

    state = state_dir or default_state_dir()
    like = [kept for kept in all_jobs(state) if differing(kept.job, job) <= {"training.rounds"}]
    found = [path for kept in like if (path := kept.model) is not None]
    if found:
        return found[0]
    if like:
        raise UserError(
            f"{job_file}: the group was not done yet when this device stopped (round {like[0].round} of "
            f"{like[0].job.training.rounds}): start the peer again to go on, or harvest what there is with "
            "`p2ptrain harvest -o global.safetensors` and give that with --model global.safetensors"
        )
    raise UserError(
        f"{job_file}: {state} keeps nothing of this job; harvest its model with `p2ptrain harvest -o "
        "global.safetensors` and give that with --model global.safetensors"
    )


def _check_model(job: Job, job_file: Path, model_file: Path) -> int:
    """How many rounds are behind the model. Raises ``UserError`` if it is none of such a job."""
    from p2ptrain.runtime.harvest import former_model, rounds_behind

    found = former_model(model_file)
    if found is None:
        raise UserError(f"{model_file}: no such file; `p2ptrain harvest` writes one")
    is_like = (
        found.get("model") == job.model.name
        and found.get("width") == repr(job.model.width)
        and json.loads(found.get("classes", "[]")) == list(job.data.classes)
        and json.loads(found.get("input_shape", "[]")) == list(job.data.input_shape)
    )
    if not is_like:
        raise UserError(
            f"{model_file}: is of another model, other classes or another input shape than {job_file}; harvest the "
            "model of that job"
        )
    if (kind := found.get("completeness", "complete")) != "complete":
        progress(f"note: {model_file} is the {kind} model: what it lacks starts as it is there")
    return rounds_behind(json.loads(found.get("lineage", "[]")))


def differing(old: Job, new: Job) -> set[str]:
    """The keys of two jobs that differ, as a job file names them."""

    def keys(plain: object, prefix: str) -> dict[str, object]:
        if not isinstance(plain, dict):
            return {prefix: plain}
        each = [keys(value, f"{prefix}.{name}" if prefix else name) for name, value in plain.items()]
        return {name: value for part in each for name, value in part.items()}

    ours, theirs = keys(json.loads(old.to_json()), ""), keys(json.loads(new.to_json()), "")
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


def new_job_hint(job: Job, job_file: Path, kept: KeptJob | None) -> str:
    """That a job is another one than the group had here last, and what to do if it was meant to be the same; or ""."""
    if job.model.init or kept is None or kept.job.id == job.id or not (keys := sorted(differing(kept.job, job))):
        return ""
    old, new = kept.job.training.rounds, job.training.rounds
    shown = ", ".join(keys[:MAX_KEYS]) + (f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else "")
    start = (
        f"{job_file} is a new job ({job.id}) and starts from nothing: it differs from the one that this group had here "
        f"last ({kept.job.id}, {kept.round} of {old} rounds) in {shown}"
    )
    if keys != ["training.rounds"]:
        return f"{start}. To go on with that one, start without --job"
    if kept.model is None:
        return f"{start} alone ({old} before, {new} now). To go on with that one, start without --job"
    more = f" --rounds {new - old}" if new > old else ""
    return (
        f"{start} alone ({old} before, {new} now). To go on from that one's model: p2ptrain job continue "
        f"{job_file}{more} -o more.toml"
    )
