"""Re-fitting the head over frozen sub-models by group-averaged gradients.

A peer runs the frozen sub-models over its own samples, one at a time, and keeps the head's inputs (``features``).
Then in every step each peer sums something over its own samples, a lead adds these contributions up and makes the
next state, which goes to all:

    step 0   contribution = ``moments`` of the features      state = ``begin``: the head in whitened coordinates
    step k   contribution = ``gradient`` of the loss         state = ``advance``: one step of Nesterov descent
    end      ``plain_head``: the weight and bias of the model's own last layer

Only sums over samples leave a peer. States and contributions are dicts of tensors; a state holds all that anyone
needs to go on, optimizer included, so any peer can be the next lead.

A class of which nobody has a sample here (its only holder may be gone) is left out of the softmax and keeps the weights
that its sub-model learnt; only its bias is lowered, until it takes no more from the samples that there are than two of
their own classes do. The benchmark ``neighbours`` shows what comes of it, where the only holder is killed.

Invariant: the same contributions in the same order give the same state, and contributions of several peers add up to
what one peer with all the samples would have contributed, to float tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.errors import LocalError, RemoteError, UserError
from p2ptrain.learning.candidates import VALIDATION

MAX_WHITENED = 1024
"""Up to so many features the group sums their full second moments; above it, only their variances."""
RIDGE = 0.1
"""Share of the mean variance that is added to every direction before whitening: flat directions are noise."""
OUT_OF_PROPORTION = 5.0
"""Times as large as most parts' features are, or what they say."""
MAX_ROWS = 16384
"""A peer with more samples takes so many of them a step, in turn."""
MAX_LOWERED = 1.0
"""By so much at most a step lowers the bias of a class that nobody has samples of."""
MAY_TAKE = 2.0
"""Times what a fitted class takes of others' samples. With less the classes that are there gain a little, and the lost
ones lose more."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """``steps`` gradient steps. ``balanced``: every class weighs the same, however few samples it has."""

    steps: int = 300
    learning_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-2
    balanced: bool = True


@torch.no_grad()
def features(
    model: nn.Module,
    head: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What the layer ``head`` reads, sample by sample: ([n, F] in ``dtype`` on the CPU, labels [n])."""
    layer = model.get_submodule(head)
    if not isinstance(layer, nn.Linear):
        raise UserError(f'layer {head!r} is no Linear layer, so it can\'t be re-fitted; set tasks.fit_head = "never"')
    kept: list[Tensor] = []
    labels: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].dim() != 2:
            raise UserError(f'the input of layer {head!r} is not [N, F]; set tasks.fit_head = "never"')
        kept.append(inputs[0].to("cpu", dtype))

    hook = layer.register_forward_pre_hook(keep)
    was_training = model.training
    model.eval()
    model.to(device)
    try:
        for x, y in batches:
            model(x.to(device))
            labels.append(y.cpu().to(torch.int64))
    finally:
        hook.remove()
        model.train(was_training)
    if not kept:
        return torch.zeros(0, layer.in_features, dtype=dtype), torch.zeros(0, dtype=torch.int64)
    return torch.cat(kept), torch.cat(labels)


def join_columns(parts: Sequence[tuple[Tensor, Tensor | None]], num_columns: int) -> Tensor:
    """[n, num_columns]: each part's features [n, F_g] at its columns (None: all) of the global head; others are zero.

    The columns are those of the view of the head's weight: ``view.axes[head + ".weight"][1]``.
    """
    num_rows = {part.shape[0] for part, _ in parts}
    if len(num_rows) != 1:
        raise LocalError(f"features of {sorted(num_rows)} samples can't be joined")
    joined = torch.zeros(num_rows.pop(), num_columns, dtype=parts[0][0].dtype)
    for part, columns in parts:
        if columns is None:
            columns = torch.arange(num_columns)
        if part.shape[1] != columns.numel():
            raise LocalError(f"{part.shape[1]} features for {columns.numel()} columns")
        joined[:, columns] = part
    return joined


@torch.inference_mode()
def moments(x: Tensor, y: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Sums over the own samples, in double precision: of each class, of the features, of their products."""
    num_features = x.shape[1]
    full = num_features <= MAX_WHITENED
    total = torch.zeros(num_features, dtype=torch.float64)
    square = torch.zeros((num_features, num_features) if full else (num_features,), dtype=torch.float64)
    for rows in torch.split(x, 4096):
        block = rows.double()
        total += block.sum(0)
        square += block.T @ block if full else block.square().sum(0)
    return {"counts": torch.bincount(y, minlength=num_classes).double(), "sum": total, "square": square}


@torch.inference_mode()
def begin(
    head: Mapping[str, Tensor],
    contributions: Sequence[Mapping[str, Tensor]],
    config: FitConfig,
    parts: Sequence[Tensor] = (),
) -> dict[str, Tensor]:
    """The first state, from the assembled head (``weight`` [C, F], ``bias`` [C]) and all peers' moments.

    ``parts``: each part's columns. One whose features are out of all proportion to those of the others would hide these
    behind the ridge, so it is measured with another scale; one whose say is, begins with none.
    """
    weight = head["weight"].double()
    bias = head["bias"].double() if "bias" in head else torch.zeros(weight.shape[0], dtype=torch.float64)
    total = _add(contributions, moments_of(*weight.shape))
    counts = total["counts"]
    n = float(counts.sum())
    if n < 1 or bool((counts < 0).any()):
        raise RemoteError("head-fit", f"moments of {n:g} samples")
    mean = total["sum"] / n
    diagonal = total["square"].diagonal() if total["square"].dim() == 2 else total["square"]
    deviations = (diagonal / n - mean.square()).clamp_min(0).sqrt()
    if len(parts) > 2:  # the size of what each part adds to the outputs
        weight = weight * _proportions([(weight[:, c] * deviations[c]).norm() for c in parts], parts, deviations, 0.0)
    if total["square"].dim() == 2:
        covariance = total["square"] / n - torch.outer(mean, mean)
        scale = _proportions([deviations[c].square().mean().sqrt() for c in parts], parts, deviations)
        whiten, unwhiten = _whitening(covariance * torch.outer(scale, scale))
        whiten, unwhiten = scale.unsqueeze(1) * whiten, unwhiten / scale
        weight_w = weight @ unwhiten.T
    else:
        scale = _proportions([deviations[c].square().mean().sqrt() for c in parts], parts, deviations)
        variance = (deviations * scale).square()
        whiten = scale * (variance + RIDGE * variance.mean() + 1e-12).rsqrt()
        weight_w = weight / whiten
    present = counts > 0
    class_weight = present.double()
    if config.balanced:
        class_weight = class_weight * n / (present.sum() * counts.clamp_min(1))
    state = {
        "weight": weight_w,
        "bias": bias + weight @ mean,
        "mean": mean,
        "whiten": whiten,
        "class_weight": class_weight,  # 0: nobody has samples of it
        "momentum.weight": torch.zeros_like(weight_w),
        "momentum.bias": torch.zeros_like(bias),
    }
    return {name: tensor.float() for name, tensor in state.items()}


def _proportions(
    sizes: Sequence[Tensor], parts: Sequence[Tensor], like: Tensor, instead: float | None = None
) -> Tensor:
    """[F]: 1, and for the columns of parts that are more than ``OUT_OF_PROPORTION`` times as large as most of them what
    makes them as large as that, or ``instead``."""
    factors = torch.ones_like(like)
    if len(parts) < 3:
        return factors
    most = OUT_OF_PROPORTION * float(torch.stack(list(sizes)).sort().values[(len(parts) - 1) // 2])
    for columns, size in zip(parts, map(float, sizes), strict=True):
        if size > most > 0:
            factors[columns] = most / size if instead is None else instead
    return factors


def _whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """(W, U): z = (x - mean) W has about unit covariance, and W U = 1."""
    variances, directions = torch.linalg.eigh((covariance + covariance.T) / 2)
    variances = variances.clamp_min(0)
    lengths = (variances + RIDGE * variances.mean() + 1e-12).sqrt()
    # The symmetric root (ZCA): unlike the eigenvectors alone it does not depend on the solver's signs and order.
    return directions / lengths @ directions.T, directions * lengths @ directions.T


@torch.inference_mode()
def gradient(state: Mapping[str, Tensor], x: Tensor, y: Tensor, step: int) -> tuple[dict[str, Tensor], int]:
    """This peer's contribution to a step: (sums over its samples of the gradient and the loss, number of samples).

    In place of the gradient of a bias that nobody can fit stands what its class takes from these samples.
    """
    n = x.shape[0]
    first, taken = 0, n
    if n > MAX_ROWS:  # in turn; scaled up below to stand for all, so that a large peer keeps its weight
        first, taken = (step * MAX_ROWS) % n, MAX_ROWS
    rows = torch.arange(first, first + taken) % max(1, n)
    # The head is folded for the forward pass and its gradient unfolded after it: whitening the features themselves
    # would cost F/C times as much in every step.
    head = plain_head(state)
    absent = state["class_weight"] == 0
    raw = torch.zeros_like(state["weight"])  # gradient for the folded weight, [C, F]
    bias, takes = torch.zeros_like(state["bias"]), torch.zeros_like(state["bias"])
    loss = torch.zeros(())
    for chunk in torch.split(rows, 4096):
        xs, ys = (x, y) if chunk.numel() == n else (x[chunk], y[chunk])
        xs = xs.float()
        logits = torch.addmm(head["bias"], xs, head["weight"].T)  # [rows, C]
        weights = state["class_weight"][ys]  # [rows]
        if bool(absent.any()):
            takes += (logits.softmax(1) * weights.unsqueeze(1)).sum(0)
            logits[:, absent] = -torch.inf
        loss += (F.cross_entropy(logits, ys, reduction="none") * weights).sum()
        residual = logits.softmax(1)  # d loss / d logits = p - onehot
        residual[torch.arange(ys.numel()), ys] -= 1
        residual *= weights.unsqueeze(1)
        raw += residual.T @ xs
        bias += residual.sum(0)
    centred = raw - torch.outer(bias, state["mean"])
    whiten = state["whiten"]
    sums = {"weight": centred @ whiten if whiten.dim() == 2 else centred * whiten}
    sums["bias"] = torch.where(absent, takes, bias)
    sums["loss"] = loss
    scale = n / taken if taken else 1.0
    return {name: tensor * scale for name, tensor in sums.items()}, n


@torch.inference_mode()
def advance(
    state: Mapping[str, Tensor],
    contributions: Sequence[tuple[float, Mapping[str, Tensor]]],
    step: int,
    config: FitConfig,
) -> dict[str, Tensor]:
    """The next state: one step of Nesterov descent on the mean of the contributions (give them in peer-id order).

    Gradient steps count from 1. Raises ``RemoteError`` for a contribution that does not fit or is not finite.
    """
    total = _add([sums for _, sums in contributions], gradient_of(*state["weight"].shape))
    n = sum(samples for samples, _ in contributions)
    if n < 1:
        raise RemoteError("head-fit", "a gradient of no samples")
    progress = min(1.0, (step - 1) / max(1, config.steps))
    rate = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if state["whiten"].dim() == 1:  # features may all move together: their covariance has an eigenvalue up to F
        rate *= min(1.0, 2.0 / state["weight"].shape[1])
    after, present = dict(state), state["class_weight"] > 0
    for name in ("weight", "bias"):
        slope = total[name] / n
        if name == "weight":
            slope = slope + config.weight_decay * state[name] * present.unsqueeze(1)
        else:
            slope = slope * present
        velocity = config.momentum * state[f"momentum.{name}"] + slope
        after[f"momentum.{name}"] = velocity
        after[name] = state[name] - rate * (slope + config.momentum * velocity)
    after["loss"] = total["loss"] / n
    after["bias"] -= _lowered(total["bias"] / n, after["loss"], present)
    return after


def _lowered(takes: Tensor, loss: Tensor, present: Tensor) -> Tensor:
    """[C]: what to take off the biases of classes that nobody has samples of. ``takes``: of a mean sample.

    Of the samples of other classes a fitted class takes as much as it loses of its own to them: each its part of the
    chance to be wrong, 1 - exp(-loss). What a class takes grows with exp(bias) as long as it is little.
    """
    most = MAY_TAKE * (1 - torch.exp(-loss)) / present.sum()
    too_much = (takes.clamp_min(1e-9) / most.clamp_min(1e-9)).log().clamp(0, MAX_LOWERED)
    return too_much.masked_fill(present, 0.0)


@torch.inference_mode()
def plain_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whitening folded into the layer: ``weight`` [C, F] and ``bias`` [C] of a plain Linear over raw features."""
    weight, whiten = state["weight"].double(), state["whiten"].double()
    plain = weight @ whiten.T if whiten.dim() == 2 else weight * whiten
    bias = state["bias"].double() - plain @ state["mean"].double()
    return {"weight": plain.float(), "bias": bias.float()}


def check_fit_state(state: Mapping[str, Tensor], num_classes: int, num_features: int) -> None:
    """Refuse (``RemoteError``) a state from another peer that is not one of this head."""
    whiten = (num_features, num_features) if num_features <= MAX_WHITENED else (num_features,)
    matrix, row = (num_classes, num_features), (num_classes,)
    shapes = {
        **{"weight": matrix, "bias": row, "mean": (num_features,), "whiten": whiten, "class_weight": row},
        **{"momentum.weight": matrix, "momentum.bias": row},
    }
    names = {name for name in state if not name.startswith(VALIDATION)}
    if names - {"loss"} != shapes.keys():
        raise RemoteError("head-fit", f"state of tensors {sorted(state)[:8]}")
    for name, shape in shapes.items():
        _check(name, state[name], shape, torch.float32)
    if "loss" in state:
        _check("loss", state["loss"], (), torch.float32)


Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shapes and types by name."""


def moments_of(num_classes: int, num_features: int) -> Expected:
    """What ``moments`` are."""
    square = (num_features, num_features) if num_features <= MAX_WHITENED else (num_features,)
    shapes = {"counts": (num_classes,), "sum": (num_features,), "square": square}
    return {name: (shape, torch.float64) for name, shape in shapes.items()}


def gradient_of(num_classes: int, num_features: int) -> Expected:
    """What the sums of ``gradient`` are."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (num_classes, num_features), "bias": (num_classes,), "loss": ()}
    return {name: (shape, torch.float32) for name, shape in shapes.items()}


def check_contribution(contribution: Mapping[str, Tensor], expected: Expected) -> None:
    """Raises ``RemoteError`` for what is not that, or not finite."""
    if contribution.keys() != expected.keys():
        raise RemoteError("head-fit", f"contribution of tensors {sorted(contribution)[:5]}")
    for name, (shape, dtype) in expected.items():
        _check(name, contribution[name], shape, dtype)


def _add(contributions: Sequence[Mapping[str, Tensor]], expected: Expected) -> dict[str, Tensor]:
    """The sum, in the order given; in double precision, so that the number of peers does not matter."""
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, (shape, _) in expected.items()}
    for contribution in contributions:
        check_contribution(contribution, expected)
        for name in expected:
            total[name] += contribution[name]
    return {name: tensor.to(expected[name][1]) for name, tensor in total.items()}


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise RemoteError("head-fit", f"{name}: {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}")
    if not bool(tensor.isfinite().all()):
        raise RemoteError("head-fit", f"{name} is not finite")
