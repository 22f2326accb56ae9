"""Local training of one peer's model: loss over its outputs, optimizer, schedule, and a snapshot of all of it.

Invariant: (snapshot, batches that follow) determines the weights, bit for bit on one thread: the step counter, the
optimizer's state and the buffers are in the snapshot, and the random numbers of a step (dropout) follow from seed and
step alone. A step whose loss or gradients are not finite changes nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import JobError, LocalError, RemoteError, UserError
from p2ptrain.learning.averaging import check_state
from p2ptrain.learning.objective import OfAllClasses, training_loss, why_not_some
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.layout import arrange
from p2ptrain.learning.own.lightning import configured_optimizer, own_rates, step_loss
from p2ptrain.learning.own.parts import own_factor, own_optimizer, own_step
from p2ptrain.learning.profiling.precision import mixed
from p2ptrain.learning.snapshots import copy_to_cpu, read_count, split_state
from p2ptrain.model_config import LIGHTNING_LOSS, LIGHTNING_OPTIMIZER

ResolvedTargets = Literal["all", "rest", "own"]
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

MAX_BAD_STEPS = 10
"""So many steps in a row without a finite loss end the training."""
FAILS = "the model fails on a batch of samples"
_IGNORED = -100


class DivergedError(UserError):
    """The loss stayed not finite. The model is as it was before the first such step."""


class LocalTrainer:
    """Trains one model. ``own_classes``: the group's class numbers, in the order of the sub-model's output rows.

    Targets: ``all`` = outputs are all classes; ``own`` = outputs are the own classes, other samples are skipped;
    ``rest`` = own classes and one last output for every other class. ``present``: the classes that there are samples of
    (None: all); outputs of others stay out of the loss. ``samples``: two or so, to see in which order of memory a model
    with code of its own can be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        num_classes: int,
        total_steps: int,
        targets: ResolvedTargets = "all",
        own_classes: Sequence[int] = (),
        present: Sequence[int] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        samples: Tensor | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self._order = arrange(self.model, None if samples is None else samples.to(self.device))
        self.config = config
        self.targets = targets
        self.total_steps = max(1, total_steps)
        self.seed = seed
        self.num_steps = 0
        """The place in the schedule: a round that ends early counts with all of its steps."""
        self.num_samples = 0
        """Samples whose loss trained the model: push-sum mass grows with it."""
        self.num_bad_steps = 0
        self._bad_in_a_row = 0
        self._num_single = 0
        """Steps that could not be made, as their batch was a single sample."""
        rows = _label_table(targets, own_classes, num_classes)
        table, in_play = _labels_in_play(rows, present)
        self._table = table.to(self.device)
        self._in_play = None if in_play is None else in_play.to(self.device)
        competing = rows if config.loss == LIGHTNING_LOSS else table
        self._step_table = competing.to(self.device)
        """Labels of a step: a model's own ``training_step`` sees all of its outputs, so labels count among them all."""
        self.num_outputs = len(competing[competing != _IGNORED].unique())
        """Outputs that compete. From a single one nothing can be learnt."""
        self._parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = make_optimizer(self._parameters, config, self.model)
        self._rates = own_rates(self._optimizer) if config.own_optimizer == LIGHTNING_OPTIMIZER else {}
        """Of a model's own optimizer, by parameter group."""
        self._own_loss = "" if config.loss == LIGHTNING_LOSS else config.loss
        self._whole: OfAllClasses | None = None
        """Of an own loss, where not every class has an output of its own that competes."""
        of_class = torch.where(table == _IGNORED, _IGNORED, rows)
        if self._own_loss and not torch.equal(of_class, torch.arange(num_classes)):
            if why := why_not_some(self._own_loss, num_classes):
                raise JobError(why)
            self._whole = OfAllClasses(of_class.to(self.device))
            named = torch.where(table == _IGNORED, _IGNORED, torch.arange(num_classes)).to(self.device)
            self._table = self._step_table = named
        self._anchors: dict[str, Tensor] = {}
        """The trained parameters when the round began, where they draw back to that."""

    def step(self, x: Tensor, y: Tensor) -> float | None:
        """One batch, x [N, ...], y [N] or [N, T] global class numbers. The mean loss; None = nothing was learnt."""
        self._set_learning_rate()
        torch.default_generator.manual_seed((self.seed * 1_000_003 + self.num_steps) & (2**63 - 1))
        self.num_steps += 1
        y = self._step_table[y.to(self.device, torch.int64)]
        if self.targets == "own":
            kept = (y != _IGNORED).nonzero().squeeze(1)
            if kept.numel() < len(y):
                x, y = x[kept.to(x.device)], y[kept]
        self.model.train()
        if len(y) == 0 or (len(y) == 1 and has_batch_norm(self.model)):
            self._num_single += len(y)
            return None  # BatchNorm can't be trained on a single value a channel
        x = x.to(self.device)
        if x.dim() == 4:
            x = x.contiguous(memory_format=self._order)
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        self._optimizer.zero_grad(set_to_none=True)
        with mixed(self.config, self.device):
            loss = self._loss(x, y)
        with own_code(FAILS, self.model):
            loss.backward()  # type: ignore[no-untyped-call]
        self._draw_back()
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self.config.max_norm)
        loss_value: float
        norm_value: float
        loss_value, norm_value = torch.stack([loss.detach().float(), norm.float()]).tolist()  # the step's only sync
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            self._skip_bad_step(buffers)
            return None
        own_step(self.config.own_optimizer, self._optimizer)
        self._bad_in_a_row = 0
        self.num_samples += len(y)
        return loss_value

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.config.loss == LIGHTNING_LOSS:
            return step_loss(self.model, x, y, self.num_steps - 1)
        with own_code(FAILS, self.model):
            logits = self.model(x)
        return training_loss(logits, y, self.config.label_smoothing, self._in_play, self._own_loss, self._whole)

    def begin_round(self) -> None:
        """From here on, steps are drawn back to the parameters as they are now (FedProx, Li et al., MLSys 2020)."""
        if self.config.proximal:
            self._anchors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def _draw_back(self) -> None:
        """Add the gradient of ``proximal / 2 * |w - w0|^2``. The loss that is told is without it."""
        for name, anchor in self._anchors.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=self.config.proximal)

    def why_nothing_was_learnt(self) -> str:
        """Where no step could be made: what is wrong, and what to do."""
        if self._num_single:
            return (
                "nothing was learnt: its batches are single samples, which batch normalisation can't be trained on; "
                "raise training.batch_size, or give this device more samples"
            )
        return (
            f"nothing was learnt: the loss was not a finite number in any of {self.num_bad_steps} steps; lower "
            "training.learning_rate or look for samples that are not finite"
        )

    def skip(self, num_steps: int) -> None:
        """Go on as if so many steps had been made: what is left of the schedule is not stretched."""
        self.num_steps += num_steps

    @torch.no_grad()
    def loss_on(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean loss over samples that are not trained on, of the classes that are; NaN = there is none of them."""
        loss_sum, samples = 0.0, 0
        self.model.eval()
        for x, y in batches:
            labels = self._table[y.to(self.device, torch.int64)]
            kept = labels != _IGNORED
            if bool(kept.any()):
                with mixed(self.config, self.device), own_code(FAILS, self.model):
                    logits = self.model(x.to(self.device)[kept])
                own = self._own_loss
                loss = training_loss(logits.float(), labels[kept], in_play=self._in_play, own=own, whole=self._whole)
                loss_sum, samples = loss_sum + float(loss) * int(kept.sum()), samples + int(kept.sum())
        self.model.train()
        return loss_sum / samples if samples else math.nan

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """A copy on the CPU: parameters and buffers (``model.``), optimizer state (``optim.``), and metadata."""
        tensors = {f"model.{name}": copy_to_cpu(tensor) for name, tensor in self.model.state_dict().items()}
        kept = {} if self.config.own_optimizer else self._parameters  # what another one's state means is not known
        for name, parameter in kept.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optim.{key}.{name}"] = copy_to_cpu(value)
        metadata = {
            "format": "p2ptrain-snapshot-1",
            "optimizer": self.config.optimizer_name,
            "targets": self.targets,
            "steps": str(self.num_steps),
            "total_steps": str(self.total_steps),
            "samples": str(self.num_samples),
        }
        return tensors, metadata

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Take over a snapshot, which may be another peer's work: what does not fit is a ``RemoteError``.

        Where the other trainer planned another number of steps, the step counter keeps the share of training done.
        """
        model_state, optimizer_state = split_state(tensors)
        check_state(model_state, self.model.state_dict())
        steps, total, samples = (read_count(metadata, key) for key in ("steps", "total_steps", "samples"))
        states = self._checked_optimizer_state(optimizer_state) if self._same_optimizer(metadata) else {}
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(model_state[name])
        self._optimizer.state.clear()
        for parameter, state in states.items():
            self._optimizer.state[parameter] = state
        self.num_steps = steps if total == self.total_steps else round(steps / max(1, total) * self.total_steps)
        self.num_samples = samples
        self._bad_in_a_row = 0

    def _same_optimizer(self, metadata: Mapping[str, str]) -> bool:
        return not self.config.own_optimizer and metadata.get("optimizer") == self.config.optimizer

    def _checked_optimizer_state(self, tensors: Mapping[str, Tensor]) -> dict[Tensor, dict[str, Tensor]]:
        keys = {"sgd": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}[self.config.optimizer]
        states: dict[Tensor, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, parameter_name = name.partition(".")
            parameter = self._parameters.get(parameter_name)
            if key not in keys or parameter is None:
                raise RemoteError("snapshot", f"optimizer state {name!r} is unknown")
            shape = () if key == "step" else tuple(parameter.shape)
            dtype = torch.float32 if key == "step" else parameter.dtype
            if tuple(tensor.shape) != shape or tensor.dtype != dtype or not bool(tensor.isfinite().all()):
                raise RemoteError("snapshot", f"optimizer state {name!r} has a wrong shape, dtype, or is not finite")
            like = (
                tensor if key == "step" else parameter.detach()
            )  # the parameter's memory format, as fused kernels need
            states.setdefault(parameter, {})[key] = torch.empty_like(like).copy_(tensor)
        for name, parameter in self._parameters.items():
            if parameter in states and len(states[parameter]) != len(keys):
                raise RemoteError("snapshot", f"optimizer state of {name!r} is incomplete")
        return states

    def _skip_bad_step(self, buffers: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            for buffer, before in buffers:  # the forward pass has put the bad batch into the running statistics
                buffer.copy_(before)
        self._optimizer.zero_grad(set_to_none=True)
        self.num_bad_steps += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"the loss was not a finite number in {MAX_BAD_STEPS} steps in a row (step {self.num_steps} of "
                f"{self.total_steps}, learning rate {self.learning_rate:.3g}); lower training.learning_rate or look "
                "for samples that are not finite"
            )

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.config.learning_rate * schedule(self.config, self.num_steps, self.total_steps)

    def _set_learning_rate(self) -> None:
        factor = schedule(self.config, self.num_steps, self.total_steps)
        for number, group in enumerate(self._optimizer.param_groups):
            group["lr"] = self._rates.get(number, self.config.learning_rate) * factor


def has_batch_norm(module: nn.Module) -> bool:
    """Whether training takes statistics from the batch, which has to have two samples then. Of a module in training
    mode: what its own ``train`` keeps out of that mode takes none."""
    return any(isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training for each in module.modules())


def check_batch_size(model: nn.Module, batch_size: int) -> None:
    """Refuse batches that no step can be made with. The model is put into training mode. Raises ``JobError``."""
    model.train()
    if batch_size == 1 and has_batch_norm(model):
        raise JobError(
            "training.batch_size: 1, and the model has batch normalisation, which takes its statistics from the "
            "samples of a batch: nothing would be learnt; set 2 or more (job new --batch-size), or take a model without"
        )


def schedule(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Factor on the learning rate at a step: a linear rise over the first steps, then flat or a cosine down to zero."""
    if config.own_schedule:
        return own_factor(config.own_schedule, step, total_steps)
    warmup = config.warmup * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _label_table(targets: ResolvedTargets, own_classes: Sequence[int], num_classes: int) -> Tensor:
    """[num_classes] int64: global class number -> output row, or ignored."""
    if targets == "all":
        return torch.arange(num_classes)
    if not own_classes or any(not 0 <= c < num_classes for c in own_classes):
        raise LocalError(f"own classes {list(own_classes)} of {num_classes}")
    table = torch.full((num_classes,), len(own_classes) if targets == "rest" else _IGNORED)
    table[torch.tensor(own_classes)] = torch.arange(len(own_classes))
    return table


def _labels_in_play(table: Tensor, present: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
    """The table with labels counted among the outputs that compete, and those outputs (None: all of them).

    A label that never comes is ignored.
    """
    rows = table[torch.tensor(sorted(set(present)), dtype=torch.int64)] if present is not None else table
    rows = rows[rows != _IGNORED].unique()
    if len(rows) == len(table[table != _IGNORED].unique()):
        return table, None
    among = torch.full((int(table.max()) + 1,), _IGNORED)
    among[rows] = torch.arange(len(rows))
    return torch.where(table == _IGNORED, table, among[table.clamp_min(0)]), rows


def _without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer, whose methods don't load ``torch._dynamo`` only to tell it to look away: 35 MB, and half a
    second of a fast core."""
    plain = {
        name: inspect.unwrap(getattr(kind, name))
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    }
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[Optimizer], type(kind.__name__, (kind,), {**plain, "step": step}))


class SGD(_without_compiler(torch.optim.SGD)):  # type: ignore[misc]
    """Its fused kernel takes momenta of all parameters or of none. One that gets its first gradient later than others,
    as under layers that are left out by chance, has none yet: zero, which makes of its first step the same."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            graded = [p for p in group["params"] if p.grad is not None] if group["momentum"] and group["fused"] else []
            new = [p for p in graded if self.state[p].get("momentum_buffer") is None]
            for parameter in new if len(new) < len(graded) else ():
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        super().step()


AdamW = _without_compiler(torch.optim.AdamW)


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, model: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The config's, by parameter name; weight decay is for tensors of two dimensions or more. Raises ``UserError``.

    ``model``: whose parameters they are, where it may bring an optimizer of its own.
    """
    if not parameters:
        raise UserError("the model has no parameter to train; give a model with trainable layers")
    if config.own_optimizer == LIGHTNING_OPTIMIZER and model is not None:
        return configured_optimizer(model)[0]
    if config.own_optimizer:
        return own_optimizer(config.own_optimizer, parameters.values(), config.learning_rate)
    decayed = [p for p in parameters.values() if p.dim() > 1]
    plain = [p for p in parameters.values() if p.dim() <= 1]  # norms and biases
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    # In half precision torch's fused kernels hardly learn on the CPU, where others do.
    sound = (torch.float32, torch.float64)
    fused = all(p.dtype in sound and p.device.type in ("cpu", "cuda", "mps") for p in parameters.values())
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=fused)
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)
