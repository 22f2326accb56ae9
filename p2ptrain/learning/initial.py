"""Starting from somebody's weights: what of a checkpoint fits the job's model is taken, the rest is named.

Names may have a prefix that the model's lack (``module.``, ``_orig_mod.``, ``backbone.``), or lack one that the
model's have: the pair of prefixes that makes most tensors fit is taken. A layer whose tensors have other shapes (a head
for other classes) keeps its fresh weights, all of it.

A checkpoint that p2ptrain wrote says its classes. Where the job has others, or has them in another order, what has an
entry a class (the rows of the last layer, scores) goes by their names.

Invariant: the same checkpoint and the same job give the same weights on every device, a number that is not finite
is never taken, and no class gets what was learnt of another one.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from p2ptrain.config import MAX_CLASSES, Job
from p2ptrain.errors import JobError, UserError
from p2ptrain.learning.models import current_names, global_model
from p2ptrain.learning.models.class_axes import class_axes
from p2ptrain.learning.snapshots import read_init
from p2ptrain.learning.submodels.views import View, put, take
from p2ptrain.words import listed, match_class

PREFIX_DEPTH = 3
"""Prefixes of up to so many names of modules are tried."""
NAMED = 4
"""So many tensors are named in a list."""

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Fitted:
    """``state``: what is taken, by the model's names. The others keep their fresh weights or are not used."""

    state: Mapping[str, Tensor]
    fresh: tuple[str, ...]
    """Tensors of the model that the checkpoint has nothing for."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the model has no place for."""
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Of the fresh ones, those that have another shape in the checkpoint: theirs, and the model's."""

    @property
    def is_whole(self) -> bool:
        return not self.fresh and not self.unused

    def sentence(self) -> str:
        """What was taken and what left out, for people."""
        if self.is_whole:
            return f"all {len(self.state)} tensors are taken"
        words = [f"{len(self.state)} of {len(self.state) + len(self.fresh)} tensors are taken"]
        if self.resized:
            name, (theirs, ours) = next(iter(self.resized.items()))
            words.append(
                f"other shapes, so with fresh weights: {_tensors(self.resized)} ({name} is {list(theirs)} there and "
                f"{list(ours)} here)"
            )
        if missing := [name for name in self.fresh if name not in self.resized]:
            words.append(f"not in it, so with fresh weights: {_tensors(missing)}")
        if self.unused:
            words.append(f"in it, and not used: {_tensors(self.unused)}")
        return "; ".join(words)


@dataclass(frozen=True, slots=True)
class Start:
    """What a job starts from: ``tensors`` of the model and ``scores`` of channels by layer, in the job's order of
    classes."""

    tensors: dict[str, Tensor]
    scores: dict[str, Tensor]
    kept: tuple[str, ...] = ()
    """The job's classes that the checkpoint knows. None of the three where it says none, or says the same."""
    fresh: tuple[str, ...] = ()
    """Those that only the job has."""
    unused: tuple[str, ...] = ()
    """Those that only the checkpoint has."""

    def sentence(self) -> str:
        """What became of the classes, for people; "" where they are the same."""
        if not (self.kept or self.fresh):
            return ""
        words = [f"{len(self.kept)} of {len(self.kept) + len(self.fresh)} classes keep what it has learnt of them"]
        if self.fresh:
            words.append(f"new, so with fresh weights: {listed(self.fresh)}")
        if self.unused:
            words.append(f"in it, and not in this job: {listed(self.unused)}")
        return "; ".join(words)


def read_start(path: Path, job: Job, *, allow_user_code: bool) -> Start:
    """Read a checkpoint for a job. Numbers of classes that both know are kept as they are; those of new ones are what
    a fresh model of the job has.

    Raises ``UserError`` for a file that can't be read, ``JobError`` where it can't be told which numbers are whose.
    """
    tensors, scores = read_init(path)
    now = current_names(job.model.name, tensors)
    tensors = {now[name]: tensor for name, tensor in tensors.items()}
    ours, theirs = job.data.classes, told_classes(path)
    if theirs is None or theirs == ours or job.data.kind == "text":  # whose classes are bytes, all of them
        return Start(tensors, scores)
    if bad := [f"{layer!r}" for layer, score in scores.items() if score.shape[:1] != (len(theirs),)]:
        raise JobError(f"model.init: it has {len(theirs)} classes, and other scores of {bad[0]}; harvest it again")
    same = same_classes(ours, theirs)
    start = Start(
        tensors,
        scores={
            layer: _moved(score, score.new_zeros(len(ours), *score.shape[1:]), (0,), same)
            for layer, score in scores.items()
        },
        kept=tuple(ours[our] for our in same),
        fresh=tuple(name for our, name in enumerate(ours) if our not in same),
        unused=tuple(name for their, name in enumerate(theirs) if their not in same.values()),
    )
    found = class_axes(job, allow_user_code=allow_user_code)
    if not found and len(ours) == len(theirs):
        raise JobError(
            f"model.init: its classes are {listed(theirs)}, the job's are {listed(ours)}, and model {job.model.name} "
            "does not say which numbers belong to which, as it takes no notice of num_classes; let its function use "
            "that, or name the same classes in the same order"
        )
    fresh = global_model(job, allow_user_code=allow_user_code).state_dict()
    for name in tensors.keys() & found.keys():
        old, new, axes = tensors.pop(name), fresh[name], found[name]
        expected = [len(theirs) if axis in axes else size for axis, size in enumerate(new.shape)]
        if list(old.shape) == expected and axes:
            tensors[name] = _moved(old, new, axes, same)
        elif (
            axes and old.dim() == new.dim() and all(old.shape[i] == n for i, n in enumerate(new.shape) if i not in axes)
        ):
            raise JobError(
                f"model.init: it says that it has {len(theirs)} classes, and its tensor {name!r} is {list(old.shape)}; "
                "harvest or copy it again"
            )
        elif old.shape != new.shape:
            tensors[name] = old  # of another width: said to be of another shape, and not taken
    return start


def _moved(old: Tensor, new: Tensor, axes: Sequence[int], same: Mapping[int, int]) -> Tensor:
    """``new`` with what ``old`` has of the classes that are the ``same``: by place in the new, place in the old."""
    result = {"": new.detach().clone()}

    def view(places: Iterable[int]) -> View:
        index = torch.tensor(list(places), dtype=torch.int64)
        return View({"": tuple(index if axis in axes else None for axis in range(new.dim()))})

    put(take({"": old}, view(same.values())), view(same), result)
    return result[""]


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """By the place of each of our classes that they have too, its place there. Names that are equal but for case and
    how accents are stored mean the same, unless that could be two."""
    exactly = set(ours) & set(theirs)
    others = [name for name in theirs if name not in exactly]
    found = {our: name if name in exactly else match_class(name, others) for our, name in enumerate(ours)}
    times = Counter(found.values())
    return {our: theirs.index(name) for our, name in found.items() if name is not None and times[name] == 1}


def told_classes(path: Path) -> tuple[str, ...] | None:
    """The classes that a checkpoint says it has, in their order; None where it says none. Raises ``UserError``."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("classes")
        names = json.loads(text) if text is not None else None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: what it says of itself can't be read ({error}); harvest or copy it again") from None
    if names is None:
        return None
    is_list = isinstance(names, list) and 1 <= len(names) <= MAX_CLASSES and all(isinstance(n, str) for n in names)
    if not is_list or len(set(names)) != len(names):
        raise UserError(f"{path}: its list of classes is damaged; harvest or copy it again")
    return tuple(names)


def fit(checkpoint: State, model: State, model_name: str = "") -> Fitted:
    """What of a checkpoint fits a model's state (which may be on the meta device). Raises ``JobError`` if nothing does,
    or what does is not finite."""
    now = current_names(model_name, checkpoint)
    checkpoint = {now[name]: tensor for name, tensor in checkpoint.items()}
    names = _matched(checkpoint, model)
    theirs = {name: checkpoint[source] for name, source in names.items()}
    wrong = {n for n, tensor in theirs.items() if tensor.shape != model[n].shape}
    layers = {name.rpartition(".")[0] for name in wrong}
    taken = {n: t for n, t in theirs.items() if n not in wrong and n.rpartition(".")[0] not in layers}
    if not any(model[name].dim() > 1 for name in taken):
        raise JobError(
            f"model.init: nothing in the checkpoint fits the job's model: it has {_tensors(checkpoint)}, the model has "
            f"{_tensors(model)}; give a checkpoint of this model (`p2ptrain job new --model`), or none"
        )
    for name, tensor in taken.items():
        _refuse_not_finite(name, tensor)
    state = {name: tensor.to(model[name].dtype) for name, tensor in taken.items()}
    used = {names[name] for name in taken} | {names[name] for name in theirs if name not in taken}
    counters = {n for n in model if n.endswith("num_batches_tracked")}  # old checkpoints have none, and need none
    return Fitted(
        state,
        fresh=tuple(n for n in model if n not in state and n not in counters),
        unused=tuple(n for n in checkpoint if n not in used),
        resized={n: (tuple(theirs[n].shape), tuple(model[n].shape)) for n in model if n in wrong},
    )


def _refuse_not_finite(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
        return
    # A mask of minus infinity is a constant of the code, no weight.
    if name.endswith(("weight", "bias", "running_mean", "running_var")) or bool(tensor.isnan().any()):
        bad = int((~tensor.isfinite()).sum())
        raise JobError(
            f"model.init: {bad} of {tensor.numel()} numbers of tensor {name!r} are not finite: what was trained there "
            "has come to nothing; give an earlier checkpoint"
        )


def _matched(checkpoint: State, model: State) -> dict[str, str]:
    """By the model's names, the checkpoint's, with the pair of prefixes that makes most tensors fit."""
    best: tuple[int, int, dict[str, str]] = (-1, 0, {})
    for strip in _prefixes(checkpoint):
        rest = {name.removeprefix(strip): name for name in checkpoint if name.startswith(strip)}
        for add in _prefixes(model):
            found = {add + name: source for name, source in rest.items() if add + name in model}
            fitting = sum(checkpoint[source].shape == model[name].shape for name, source in found.items())
            edits = -len(strip) - len(add)
            if (fitting, edits) > best[:2]:
                best = (fitting, edits, found)
    return best[2]


def _prefixes(names: Iterable[str]) -> list[str]:
    """ "" first, then each module's name with its dot that is the beginning of some tensor's."""
    found = {""}
    for name in names:
        parts = name.split(".")[:-1]
        found.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), PREFIX_DEPTH) + 1))
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _tensors(names: Iterable[str]) -> str:
    return listed(names, NAMED, width=120)


def fitting_scores(scores: State, model: State, num_classes: int, model_name: str = "") -> dict[str, Tensor]:
    """A checkpoint's scores of channels, by layer, as far as they are of these classes and this model's layers."""
    now = current_names(model_name, [f"{layer}.weight" for layer in scores])
    fitting: dict[str, Tensor] = {}
    for layer, score in scores.items():
        weight = now[f"{layer}.weight"]
        if weight in model and tuple(score.shape) == (num_classes, model[weight].shape[0]):
            fitting[weight.removesuffix(".weight")] = score
    return fitting


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a person's own file by name: of ``.safetensors``, or of what ``torch.save`` wrote.

    torch makes tensors and containers of the latter and calls nothing else (``weights_only``). Groups exchange
    safetensors alone. Raises ``UserError``.
    """
    if path.suffix == ".safetensors":
        tensors, scores = read_init(path)
        return tensors | {f"attribution/{layer}": score for layer, score in scores.items()}
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        AssertionError,
        TypeError,
        struct.error,
        torch.serialization.pickle.UnpicklingError,
    ) as error:
        said = (str(error).strip() or "it is empty").splitlines()
        reason = f" ({said[0][:100]})" if " " in said[0] else ""  # a bare number or letter tells nobody anything
        what = f"no weights that torch can read{reason}"
        if "Unsupported global" in str(error):
            what = "a whole model or other Python objects, which would run code: weights alone are taken"
        raise UserError(
            f'{path}: {what}; save them with torch.save(model.state_dict(), "weights.pth"), or as .safetensors'
        ) from None
    tensors = _most_tensors(found)
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name; save them with torch.save(model.state_dict(), ...)")
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _most_tensors(found: object, depth: int = 3) -> dict[str, Tensor]:
    """The table with the most tensors, of those within each other: trainers save weights beside other things."""
    if not isinstance(found, Mapping) or depth == 0:
        return {}
    own = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    inner = [_most_tensors(value, depth - 1) for value in found.values()]
    return max([own, *inner], key=len)


@torch.no_grad()
def start_from(state: State, fitted: Fitted) -> None:
    """Write what is taken into a model's tensors."""
    for name, tensor in fitted.state.items():
        if name in state:
            state[name].copy_(tensor)
