"""Starting from somebody's weights: what of a checkpoint fits the job's model is taken, the rest is named.

Names may have a prefix that the model's lack (``module.``, ``_orig_mod.``, ``backbone.``), or lack one that the
model's have: the pair of prefixes that makes most tensors fit is taken. A layer whose tensors have other shapes (a head
for other classes) keeps its fresh weights, all of it.

Invariant: the same checkpoint and the same model give the same weights on every device, and a number that is not finite
is never taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from p2ptrain.errors import JobError, UserError
from p2ptrain.learning.models import current_names
from p2ptrain.learning.snapshots import read_init

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
                f"other shapes, so with fresh weights: {_listed(self.resized)} ({name} is {list(theirs)} there and "
                f"{list(ours)} here)"
            )
        if missing := [name for name in self.fresh if name not in self.resized]:
            words.append(f"not in it, so with fresh weights: {_listed(missing)}")
        if self.unused:
            words.append(f"in it, and not used: {_listed(self.unused)}")
        return "; ".join(words)


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
            f"model.init: nothing in the checkpoint fits the job's model: it has {_listed(checkpoint)}, the model has "
            f"{_listed(model)}; give a checkpoint of this model (`p2ptrain job new --model`), or none"
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


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(known[:NAMED]) + more


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
        torch.serialization.pickle.UnpicklingError,
    ) as error:
        said = (str(error).strip() or "it is empty").splitlines()
        what = f"no weights that torch can read ({said[0][:100]})"
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
