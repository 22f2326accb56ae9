"""The blocks of one pipeline stage, trained micro-batch by micro-batch. It knows nothing of the other stages.

Gradients of all micro-batches of a batch add up in one flat vector, which the parameters' ``grad`` are views of. Behind
them lie the running statistics of norms, weighted by the share of the rows, and the loss: so adding up the vectors of a
stage's peers gives each of them the same gradient, the same statistics and the same loss.

With ``stashing`` the backward pass of a micro-batch uses the weights of its forward pass, whatever became of them since
(PipeDream; Harlap et al. 2018). A *version* is a copy of the weights that lives as long as a micro-batch needs it.

Invariant: a micro-batch's activations are held from its forward pass to its backward pass, no longer. A batch in which
something was not finite changes neither parameters nor buffers nor the optimizer's state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.own.layout import order_of, put_in_order
from p2ptrain.learning.own.parts import own_step
from p2ptrain.learning.pipeline.rows import is_finite
from p2ptrain.learning.profiling.precision import mixed
from p2ptrain.learning.training import make_optimizer, schedule

Version = dict[str, Tensor]
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """What a backward pass needs. ``outputs``: of the last stage, the loss."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    version: Version | None


class StageModel:
    """``names``: the slice's tensors in the order of the chain. Micro-batches are named by numbers."""

    def __init__(
        self,
        module: fx.GraphModule,
        names: Sequence[str],
        config: TrainingConfig,
        *,
        total_steps: int,
        device: torch.device,
        stashing: bool = False,
    ) -> None:
        self._order = order_of(module)
        self.module = module.to(device).train()
        put_in_order(self.module, self._order)
        self.device = device
        self.config = config
        self._total_steps = total_steps
        self._stashing = stashing
        parameters = dict(self.module.named_parameters())
        self.parameters = {n: parameters[n] for n in names if n in parameters and parameters[n].requires_grad}
        """Those that are trained, in the order of the chain."""
        if any(parameter.dtype != torch.float32 for parameter in self.parameters.values()):
            raise JobError("a pipeline trains parameters in float32 only; take the model's others out, or freeze them")
        self.optimizer = make_optimizer(self.parameters, config) if self.parameters else None
        state = self.module.state_dict()
        self._buffers = {name: tensor for name, tensor in state.items() if name not in parameters}
        statistics = {n: self._buffers[n] for n in statistics_of(self._buffers, names)}
        sizes = [tensor.numel() for tensor in (*self.parameters.values(), *statistics.values())]
        self.vector = torch.zeros(sum(sizes) + 1, device=device)
        """Gradients, statistics and loss, one after the other."""
        *views, self._loss = self.vector.split([*sizes, 1])
        self._gradients = dict(zip(self.parameters, views, strict=False))
        self._statistics = list(zip(statistics.values(), views[len(self.parameters) :], strict=True))
        self.statistics = tuple(statistics)
        """Names of the running statistics, in the order in which the vector has them."""
        self._averaged = frozenset(statistics)
        for name, parameter in self.parameters.items():
            # The parameter's own layout, as the fused kernels of optimizers need.
            parameter.grad = self._gradients[name].as_strided(parameter.size(), parameter.stride())
        self._held: dict[int, _MicroBatch] = {}
        self._version: Version | None = None
        self.bad = False
        """Something in this batch was not finite."""
        self.keep_buffers()

    @property
    def num_held(self) -> int:
        """Micro-batches whose activations are held."""
        return len(self._held)

    def forward(
        self, number: int, inputs: Sequence[Tensor], seed: int, *, first: bool, run: nn.Module | None = None
    ) -> tuple[Tensor, ...]:
        """The outputs ``[rows, ...]`` of a micro-batch, on the CPU, with zeros in place of what is not finite.

        ``run``: some of the blocks, as a module that shares their tensors; all of them by default.
        """
        outputs = self._run(number, inputs, seed, first=first, run=run)
        return tuple(self._finite(output) for output in outputs)

    def forward_to_loss(
        self,
        number: int,
        inputs: Sequence[Tensor],
        y: Tensor,
        weight: float,
        seed: int,
        *,
        first: bool,
        run: nn.Module | None = None,
    ) -> None:
        """The forward pass of the last stage. ``weight``: the share of the batch that these rows are."""
        (logits,) = self._run(number, inputs, seed, first=first, run=run)
        smoothing, own = self.config.label_smoothing, self.config.loss
        loss = training_loss(logits, y.to(self.device), smoothing, own=own) * weight
        held = self._held[number]
        self._held[number] = _MicroBatch(held.inputs, (loss,), held.version)
        self._loss += loss.detach()

    def _run(
        self, number: int, inputs: Sequence[Tensor], seed: int, *, first: bool, run: nn.Module | None
    ) -> tuple[Tensor, ...]:
        self._seed(seed & (2**63 - 1))
        placed = tuple(as_trained(tensor, self.device, self._order) for tensor in inputs)
        if not first:
            placed = tuple(tensor.detach().requires_grad_() for tensor in placed)
        if self._stashing:
            self._version = self._version or self._copied()
        with mixed(self.config, self.device):
            if self._version is not None:
                value = functional_call(self.module, self._version, placed)
            else:
                value = (self.module if run is None else run)(*placed)
        # What goes on its way, and the loss, are of float32 whatever this stage computes in.
        outputs = tuple(
            out.float() if out.dtype == torch.bfloat16 else out
            for out in (value if isinstance(value, tuple) else (value,))
        )
        self._held[number] = _MicroBatch(placed, outputs, self._version)
        return outputs

    def _seed(self, seed: int) -> None:
        """For dropout."""
        if self.device.type == "cpu":
            # torch.manual_seed also writes down the call stack, for devices that are not in use: milliseconds a pass.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def backward(self, number: int, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Add to the gradient; those of the inputs, on the CPU (of samples: none). The last stage needs none given."""
        held = self._held.pop(number)
        placed: list[Tensor | None] = [as_trained(gradient, self.device, self._order) for gradient in gradients] or [
            None
        ]
        pairs = [(out, g) for out, g in zip(held.outputs, placed, strict=True) if out.requires_grad]
        if pairs:
            outputs, weights = zip(*pairs, strict=True)
            torch.autograd.backward(outputs, weights)
        wanted = [tensor for tensor in held.inputs if tensor.requires_grad]
        return tuple(self._finite(t.grad if t.grad is not None else torch.zeros_like(t)) for t in wanted)

    def _finite(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if not is_finite(tensor):
            self.bad = True
            tensor = torch.zeros_like(tensor)
        return tensor.to("cpu").contiguous()

    # --- the end of a batch ---

    def close(self, share: float | Mapping[str, float]) -> None:
        """Make the vector ready to be added up with those of the peers that hold the other shares of the rows.

        By tensor where not all blocks have had the same rows.
        """
        for name, (buffer, view) in zip(self.statistics, self._statistics, strict=True):
            view.copy_(buffer.reshape(-1) * (share if isinstance(share, float) else share[name]))
        self.bad = self.bad or not is_finite(self.vector)

    def unaveraged(self) -> list[str]:
        """Buffers of numbers that this batch has changed and the vector doesn't hold."""
        changed = [name for name, tensor in self._buffers.items() if not torch.equal(tensor, self._before[name])]
        return [n for n in changed if n not in self._averaged and self._buffers[n].is_floating_point()]

    def squares(self) -> list[float]:
        """Of the norm of each parameter's gradient, last parameter first; infinite if the batch is bad."""
        if self.bad:
            return [math.inf]
        norms = [torch.linalg.vector_norm(gradient) for gradient in reversed(self._gradients.values())]
        return [norm * norm for norm in torch.stack(norms).tolist()] if norms else []

    def apply(self, step: int, norm: float, limit: float) -> None:
        """One optimizer step with the vector's gradient, of which (and of others) ``norm`` is the norm.

        ``limit``: a longer one is scaled down to this.
        """
        for buffer, view in self._statistics:
            _write(buffer, view.view(buffer.shape))
        scale = min(1.0, limit / (norm + 1e-6))
        if scale < 1.0:
            self.vector.mul_(scale)
        if self.optimizer is not None:
            rate = self.config.learning_rate * schedule(self.config, step, self._total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            own_step(self.config.own_optimizer, self.optimizer)

    @property
    def loss(self) -> float:
        return float(self._loss)

    def next_batch(self) -> None:
        """Parameters and buffers are as the next batch shall find them."""
        self.vector.zero_()
        self.bad = False
        self._version = None
        self.keep_buffers()

    def discard(self, *, held: bool) -> None:
        """Undo what the batch has done so far; ``held``: and drop every micro-batch that is held."""
        if held:
            self._held.clear()
        for name, buffer in self._buffers.items():
            _write(buffer, self._before[name])
        self.next_batch()

    def state(self) -> dict[str, Tensor]:
        """The slice's own tensors, as they are after the last batch that is done."""
        return {name: self._before.get(name, tensor) for name, tensor in self.module.state_dict().items()}

    def keep_buffers(self) -> None:
        """As they are now, to return to."""
        self._before = {name: tensor.clone() for name, tensor in self._buffers.items()}

    # --- versions of the weights ---

    @torch.no_grad()
    def average_versions(self) -> None:
        """Put the mean of the weights and of all older versions that are still needed in place of the weights."""
        versions = {id(held.version): held.version for held in self._held.values() if held.version is not None}
        for name, parameter in self.parameters.items():
            total = parameter.clone()
            for version in versions.values():
                total += version[name]
            parameter.copy_(total / (1 + len(versions)))

    @property
    def num_versions(self) -> int:
        """Copies of the weights that are held for backward passes."""
        return len({id(held.version) for held in self._held.values() if held.version is not None})

    def _copied(self) -> Version:
        """A copy whose gradients add up in the same vector."""
        version: Version = {}
        for name, parameter in self.parameters.items():
            version[name] = parameter.detach().clone().requires_grad_()
            version[name].grad = parameter.grad
        return version


def statistics_of(state: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    """Those of a model's tensors that are running statistics, in the order of ``names``."""
    return [n for n in names if n in state and n.endswith(_STATISTICS) and state[n].dtype == torch.float32]


def _write(buffer: Tensor, value: Tensor) -> None:
    # Past autograd, as norms do it: with "async" it would take micro-batches in flight to need the old numbers.
    buffer.data.copy_(value)


def as_trained(tensor: Tensor, device: torch.device, order: torch.memory_format) -> Tensor:
    """As a stage's blocks take it: on the device, pictures in their order of memory."""
    tensor = tensor.to(device)
    return tensor.contiguous(memory_format=order) if tensor.dim() == 4 else tensor
