"""What ``job new`` and ``job check`` find out of a model, and how a person comes by one.

The trial is the same that a peer makes before its first plan.

Invariant: imports torch only when it is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import keyword
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.shared.outputs import check_output, gone_unless_done, is_pipe, write_text
from p2ptrain.config import DataConfig, Job
from p2ptrain.errors import JobError, UserError
from p2ptrain.model_config import ModelConfig, package_of
from p2ptrain.words import listed

if TYPE_CHECKING:
    from p2ptrain.learning.own.trial import Trial

MOST_TRIED = 64

freeze_option = click.option(
    "--freeze",
    "model__freeze",
    multiple=True,
    metavar="LAYER",
    help="A layer that is not trained, such as layer1, or a pattern, such as '*.bias'; may be given again. Of modes "
    "replicas, pipeline and split. [default: none]",
)


def tried(job: Job, init: Path | None, data: str | None) -> tuple[Trial, str]:
    """Build the job's model, fit the checkpoint, and make one step on some of the samples. Raises ``UserError``.

    And what was taken of the checkpoint, in words.
    """
    import numpy as np

    from p2ptrain.learning.data import load, open_source
    from p2ptrain.learning.initial import read_start
    from p2ptrain.learning.own.trial import Trial

    x = y = None
    if data:
        source = open_source(data).fitted(job.data)
        total = source.num_samples("train")
        some = np.unique(np.linspace(0, max(0, total - 1), min(total, MOST_TRIED, job.training.batch_size)).astype(int))
        x, y = load(source, job.data, "train", some).tried(len(some))
    start = read_start(init, job, allow_user_code=True) if init is not None else None
    trial = Trial(job, x, y, start.tensors if start else None)
    taken = trial.fitted.sentence() if trial.fitted else ""
    return trial, "; ".join(words for words in (taken, start.sentence() if start else "") if words)


def named_model(name: str, job: Job) -> tuple[Job, Path | None]:
    """The job with the model that a person names, and the weights that come with it, if any.

    Refuses a misspelt name without importing torch, where it is a built-in one. Raises ``UserError``.
    """
    from p2ptrain.learning.data.source import closest
    from p2ptrain.planning.devices.footprint import SIZES

    weights = None
    model = ModelConfig(name)
    if package_of(name) == "transformers":
        from p2ptrain.learning.installed import hugging_face

        model, weights = hugging_face.of_folder(Path(name.partition(":")[2]).expanduser(), job.data)
    elif package_of(name):
        from p2ptrain.learning.installed import vision

        vision.check(name)
    elif ":" not in name and name not in SIZES:
        raise JobError(
            f"--model {name}: not known{closest(name, SIZES)}; use one of {', '.join(SIZES)}, one of an installed "
            "package (torchvision:NAME, timm:NAME, hf:DIR), or your own as package.module:function"
        )
    return dataclasses.replace(job, model=model), weights


def notes_on_model(job: Job) -> list[str]:
    """What to know of the model that the job names, and of its training, beside what its trial shows."""
    from p2ptrain.core.looks.patience import patience_note

    notes = [patience_note(job)]
    if package_of(job.model.name) in ("torchvision", "timm"):
        from p2ptrain.learning.installed import vision

        channels, height, width = job.data.input_shape
        notes.append(vision.note(job.model.name, (channels, height, width)))
    return [note for note in notes if note]


@contextlib.contextmanager
def as_safetensors(init: Path, job_file: Path, *, force: bool) -> Iterator[Path]:
    """The checkpoint itself, or, of what torch.save wrote, one beside the job file with its tensors: gone after an
    error."""
    if init.suffix == ".safetensors":
        yield init
        return
    if is_pipe(job_file):
        raise UserError(
            f"--init {init}: is written as .safetensors beside the job file, and -o {job_file} is no file; name one"
        )
    from p2ptrain.learning.initial import read_weights
    from p2ptrain.learning.snapshots import save_whole

    made = check_output(job_file.with_name(f"{job_file.stem}-{init.stem}.safetensors"), force)
    with gone_unless_done(made):
        try:
            save_whole(read_weights(init), made, {})
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"{made}: can't be written ({why}); name another place with -o") from None
        yield made


def with_classes(contract: DataConfig, classes: tuple[str, ...]) -> DataConfig:
    """A contract for these classes, in their order. Raises ``UserError`` where the data have another one."""
    if contract.kind == "text":
        raise UserError("--classes: the classes of a text are its bytes; leave it out")
    known = {name.casefold() for name in classes}
    if len(known) < len(classes):
        raise UserError("--classes: two names differ in upper and lower case only; give each class once")
    if missing := [name for name in contract.classes if name.casefold() not in known]:
        raise UserError(f"--classes: the data have {listed(missing, 5)} too; name all classes of all devices")
    return dataclasses.replace(contract, classes=classes)


def write_template(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """``--model-template``: a module that a model of one's own begins with, and no job."""
    if value is None or context.resilient_parsing:
        return
    path = value if value.suffix == ".py" else value.with_suffix(".py")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise UserError(f"--model-template {path}: a module's name has letters, digits and _ only, such as my_model.py")
    check_output(path, force=False)
    if importlib.util.find_spec(path.stem) is not None:
        raise UserError(f"--model-template {path}: Python has a module {path.stem!r} already; take another name")
    template = Path(__file__).parents[2] / "learning" / "own" / "template.py"
    write_text(path, template.read_text(encoding="utf-8").replace("my_model", path.stem))
    click.echo(f"{path}: a small model; change it, then")
    folder = path.resolve().parent
    where = "" if folder == Path.cwd() else f", in {folder}"
    click.echo(f"next{where}: p2ptrain job new --data SPEC --model {path.stem}:build -o job.toml")
    context.exit()
