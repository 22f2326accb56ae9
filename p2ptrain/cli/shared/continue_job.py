"""``p2ptrain job continue``: a job file that goes on from the model of a job that is done.

Invariant: the new job differs from the old one in its rounds, in what it starts from, and in classes that it has beside
the old ones, in nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.options import (
    MoreNames,
    UserPath,
    classes_option,
    progress,
    state_option,
)
from p2ptrain.cli.shared.outputs import check_output, gone_unless_done, seen_from, write_text
from p2ptrain.config import Job
from p2ptrain.errors import UserError
from p2ptrain.model_config import is_own_code
from p2ptrain.words import folded, listed, match_class, word

if TYPE_CHECKING:
    from p2ptrain.runtime.store.kept import KeptJob

EXAMPLES = """\b
Examples:
  p2ptrain job continue job.toml --rounds 3 -o more.toml             from the model that this device keeps
  p2ptrain job continue job.toml --model global.safetensors -o more.toml
  p2ptrain job continue job.toml --classes +ferret -o more.toml      with a class that is new
"""


def continue_command(commented: Callable[[Job], str]) -> click.Command:
    """``commented``: a job as the text of its file."""

    @click.command("continue", epilog=EXAMPLES)
    @click.argument("job_file", type=UserPath(), metavar="FILE")
    @click.option(
        "--rounds",
        type=click.IntRange(1),
        metavar="N",
        help="So many more, such as 20 or +20. [default: as many as the job says]",
    )
    @classes_option(
        "Classes that are new, such as +ferret or +ferret,otter; they come after the others. What the model has learnt "
        "of the others it keeps. [default: none]",
        MoreNames(),
    )
    @click.option(
        "--model",
        "model_file",
        type=UserPath(),
        metavar="FILE",
        help="A harvested model to go on from. [default: the one that this device wrote when the group was done]",
    )
    @state_option
    @click.option(
        "-o",
        "--output",
        type=UserPath(),
        default=Path("more.toml"),
        metavar="FILE",
        help="The new job file. [default: more.toml]",
    )
    @click.option("--force", is_flag=True, help="Overwrite the files if there are any.")
    def command(
        job_file: Path,
        rounds: int | None,
        classes: tuple[str, ...],
        model_file: Path | None,
        state_dir: Path | None,
        output: Path,
        force: bool,
    ) -> None:
        """Write a job file that goes on from the model of a job that is done, for more rounds.

        Model and optimizer start anew from its weights: the learning rate rises and falls once more. The devices, their
        samples and how many there are may be others than before.
        """
        if check_output(output, force).suffix == ".safetensors":
            raise UserError(f"-o {output}: is the name of a model; name a job file, such as more.toml")
        from p2ptrain.modes.jobs import check_job, load_job

        old = load_job(job_file)
        data = dataclasses.replace(old.data, classes=(*old.data.classes, *_new_classes(old, job_file, classes)))
        given = model_file or _kept_model(old, job_file, state_dir)
        told = _told_by(given)
        behind = _check_model(old, data.classes, job_file, given, told)
        is_told = "classes" in told
        if not is_told:
            progress(f"note: {given} does not say its classes: they are taken to be those of {job_file}, in that order")
        start = check_output(output.with_suffix(".safetensors"), force) if model_file is None or not is_told else given
        with gone_unless_done(start):
            if not is_told:
                from p2ptrain.learning.checkpoint import copy_with_classes

                copy_with_classes(given, start, old.data.classes)
            elif start != given:
                _copy(given, start)
            training = dataclasses.replace(old.training, rounds=rounds or old.training.rounds)
            model = dataclasses.replace(old.model, init=seen_from(output, start), init_bytes=0)
            new = dataclasses.replace(old, training=training, model=model, data=data)
            check_job(new, where="job continue")
            taken = _tried(new, start, _classes(told))
            write_text(output, commented(new))
        new = load_job(output)
        click.echo(
            f"{output}: job {new.id}, {new.training.rounds} more rounds from {given}"
            + (f", which has {behind} behind it" if behind else "")
        )
        if taken:
            click.echo(f"its model: {taken}")
        click.echo(
            f"next: p2ptrain peer --job {word(output)} --data SPEC on this device; the others start again with their "
            "own commands, without --job"
        )

    return command


def _new_classes(job: Job, job_file: Path, more: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ``UserError`` for names that the job, or another of them, has already."""
    if more and job.data.kind == "text":
        raise UserError("--classes: the classes of a text are its bytes, all of them; leave it out")
    known = {folded(name): name for name in job.data.classes}
    for name in more:
        if (there := known.get(folded(name))) is not None:
            where = f"{job_file} has the class {there!r} already" if there in job.data.classes else f"{there!r} is too"
            raise UserError(f"--classes +{name}: {where}; name new ones only, each once")
        known[folded(name)] = name
    return more


def _kept_model(job: Job, job_file: Path, state_dir: Path | None) -> Path:
    """The model of this job, or of one that differs in its rounds and classes alone."""
    from p2ptrain.api import default_state_dir
    from p2ptrain.runtime.store.kept import all_jobs, why_unread

    state = state_dir or default_state_dir()
    differ = [(differing(kept.job, job), kept) for kept in all_jobs(state)]
    like = [kept for keys, kept in differ if keys <= {"training.rounds"}]
    like += [kept for keys, kept in differ if keys - {"training.rounds"} == {"data.classes"}]
    found = [path for kept in like if (path := kept.model) is not None]
    if found:
        return found[0]
    if like:
        raise UserError(
            f"{job_file}: the group was not done yet when this device stopped (round {like[0].round} of "
            f"{like[0].job.training.rounds}): start the peer again to go on, or harvest what there is with "
            "`p2ptrain harvest -o global.safetensors` and give that with --model global.safetensors"
        )
    nothing = f"{state} keeps nothing of this job" + (f": {why}" if (why := why_unread(state)) else "")
    raise UserError(
        f"{job_file}: {nothing}; harvest its model with `p2ptrain harvest -o "
        "global.safetensors` and give that with --model global.safetensors"
    )


def _told_by(model_file: Path) -> Mapping[str, str]:
    """What a model's file says of itself. Raises ``UserError`` if it is none."""
    from p2ptrain.runtime.harvest import told_by

    found = told_by(model_file)
    if found is not None and not found:
        raise UserError(
            f"{model_file}: is no model of p2ptrain; give one that `p2ptrain harvest` wrote, or begin a job from other "
            "weights with `p2ptrain job new --init`"
        )
    if found is None:
        raise UserError(f"{model_file}: no such file; `p2ptrain harvest` writes one")
    return found


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all. Raises ``UserError``."""
    from p2ptrain.runtime.model_writer import copy_whole

    try:
        copy_whole(source, target)
    except OSError as error:
        raise UserError(f"{target}: can't be written ({error.strerror or error}); name another with -o") from None


def _classes(told: Mapping[str, str]) -> list[str]:
    return [str(name) for name in json.loads(told.get("classes", "[]"))]


def _check_model(job: Job, classes: Sequence[str], job_file: Path, model_file: Path, told: Mapping[str, str]) -> int:
    """How many rounds are behind the model. ``classes``: of the new job.

    Raises ``UserError`` if it is none of such a job.
    """
    from p2ptrain.runtime.harvest import rounds_behind

    is_like = (
        told.get("model") == job.model.name
        and told.get("width") == repr(job.model.width)
        and json.loads(told.get("input_shape", "[]")) == list(job.data.input_shape)
    )
    if not is_like:
        raise UserError(
            f"{model_file}: is of another model, width or input shape than {job_file}; harvest the model of that job"
        )
    theirs = _classes(told)
    if other := [name for name in theirs if match_class(name, classes) is None]:
        more = ",".join(f'"{name}"' if "," in name else name for name in other)
        raise UserError(
            f"{model_file}: is of other classes than {job_file}: it knows {listed(other)} too; harvest the model of "
            f"that job, or let the new job have them: --classes '+{more}'"
        )
    if (kind := told.get("completeness", "complete")) != "complete":
        progress(f"note: {model_file} is the {kind} model: what it lacks starts as it is there")
    return rounds_behind(json.loads(told.get("lineage", "[]")))


def _tried(job: Job, model_file: Path, theirs: list[str]) -> str:
    """What of the model is taken, in words; "" where its classes are the job's. Raises ``UserError``."""
    if theirs == list(job.data.classes):
        return ""
    if is_own_code(job.model.name):  # somebody's own code, which this command does not run
        return "`p2ptrain job check` tells what of it is taken"
    from p2ptrain.cli.shared.model_check import tried

    trial, words = tried(job, model_file, None)
    if trial.fitted is not None and trial.fitted.resized:
        raise UserError(f"{model_file}: is not of this model and these classes: {words}; harvest the model of the job")
    return words


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
    shown = listed(keys, width=60)
    start = (
        f"{job_file} is a new job ({job.id}) and starts from nothing: it differs from the one that this group had here "
        f"last ({kept.job.id}, {kept.round} of {old} rounds) in {shown}"
    )
    grows = kept.model is not None and set(kept.job.data.classes) < set(job.data.classes)
    if grows and set(keys) <= {"training.rounds", "data.classes"}:
        return f"{start}. To go on from that one's model: p2ptrain job continue {word(job_file)} -o more.toml"
    if keys != ["training.rounds"]:
        return f"{start}. To go on with that one, start without --job"
    if kept.model is None:
        return f"{start} alone ({old} before, {new} now). To go on with that one, start without --job"
    more = f" --rounds {new - old}" if new > old else ""
    return (
        f"{start} alone ({old} before, {new} now). To go on from that one's model: p2ptrain job continue "
        f"{word(job_file)}{more} -o more.toml"
    )
