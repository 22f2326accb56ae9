"""What a peer will do with the job's model, tried once on a few samples: a look at its outputs, and a training step.

Invariant: ``job check`` and a peer that starts ask the same question here, so they give the same answer. What is tried
is a model of its own, which is dropped afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from p2ptrain.config import Job
from p2ptrain.errors import JobError
from p2ptrain.learning.initial import Fitted, fit, start_from
from p2ptrain.learning.models import global_model
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.own.blame import enough_memory, own_code
from p2ptrain.learning.own.building import refuse_blank
from p2ptrain.learning.own.lightning import configured_optimizer, is_lightning, of_no_use, step_loss
from p2ptrain.learning.own.outputs import check_logits, check_outputs, made_up
from p2ptrain.learning.own.parts import own_step
from p2ptrain.learning.snapshots import put_state
from p2ptrain.learning.training import check_batch_size, make_optimizer, schedule
from p2ptrain.model_config import LIGHTNING_LOSS, LIGHTNING_OPTIMIZER, is_own_code

MADE_UP = 8
"""So many samples are made up where there are none."""


class Trial:
    """A model that was built, and what came of trying it.

    ``x`` [N, ...] and ``y`` [N] or [N, T]: some of the own samples, a batch at most; None: made up. Raises ``JobError``
    naming what in the model or the checkpoint can't be trained.
    """

    def __init__(
        self,
        job: Job,
        x: Tensor | None = None,
        y: Tensor | None = None,
        init: Mapping[str, Tensor] | None = None,
        *,
        allow_user_code: bool = True,
    ) -> None:
        self.model: nn.Module
        self.fitted: Fitted | None = None
        """What was taken of the checkpoint that the job starts from."""
        self.notes: list[str] = []
        """What the person should know, though it can be trained."""
        with enough_memory(f"model {job.model.name}"):
            self._try(job, x, y, init, allow_user_code)

    def _try(
        self, job: Job, x: Tensor | None, y: Tensor | None, init: Mapping[str, Tensor] | None, allow_user_code: bool
    ) -> None:
        who = f"model {job.model.name}"
        self.model = global_model(job, allow_user_code=allow_user_code)
        refuse_blank(who, self.model)
        drawn = _digests(self.model) if is_own_code(job.model.name) else {}
        if init is not None:
            self.fitted = fit(init, self.model.state_dict(), job.model.name)
            start_from(self.model.state_dict(), self.fitted)
        self.notes += _of_lightning(job, who, self.model)
        if job.model.freeze:
            frozen = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
            self.notes.append(
                f"{frozen:,} of {sum(p.numel() for p in self.model.parameters()):,} parameters are frozen, and stay as "
                + ("they are in the checkpoint" if init is not None else "they were drawn: --init takes others")
            )
        with own_code(f"{who} can't be put into training mode", self.model):
            self.model.train()
        check_batch_size(self.model, job.training.batch_size)
        if x is None or y is None or len(x) == 0:
            x = made_up(job.data, min(MADE_UP, max(2, job.training.batch_size)))
            y = x.flatten(1).long() if job.data.kind == "text" else torch.arange(len(x)) % len(job.data.classes)
        if len(x) == 1:
            x, y = torch.cat([x, x]), torch.cat([y, y])  # as in a batch of two
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(job.seed & (2**63 - 1))
            before = _shapes(self.model)
            self._look(job, who, x)
            self._step(job, who, x, y)
            _check_same(who, before, _shapes(self.model))
        if not job.training.own_optimizer:
            self.model.zero_grad(set_to_none=True)  # room for another model; an own optimizer's step needs them
        if drawn:
            self._check_drawn(who, drawn, _digests(global_model(job, allow_user_code=allow_user_code)))
            self._look_beside(job, who, x, allow_user_code)
        if job.training.own_optimizer:  # last, as the model is another one then
            trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            own_step(job.training.own_optimizer, make_optimizer(trained, job.training, self.model))

    def _look(self, job: Job, who: str, x: Tensor) -> None:
        """In eval mode."""
        with own_code(f"{who} can't be put into eval mode", self.model):
            self.model.eval()
        logits = check_outputs(self.model, job.data, who, x.clone())
        if not bool(logits.isfinite().all()):
            self._refuse_not_finite(who, x, "")
        if logits.dim() == 2 and bool((logits >= 0).all()) and bool((logits.float().sum(1) - 1).abs().max() < 1e-3):
            self.notes.append(
                f"{who} seems to return probabilities (each row adds up to 1); training takes logits: without the "
                "softmax at its end it learns faster and better"
            )

    def _step(self, job: Job, who: str, x: Tensor, y: Tensor) -> None:
        with own_code(f"{who} can't be put into training mode", self.model):
            self.model.train()
        doing = f"{who} fails in a training step"
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not trained:
            raise JobError(f"{who} has no parameter to train; let some of its layers have requires_grad = True")
        with own_code(doing, self.model):
            logits = self.model(x.clone())
        check_logits(logits, len(x), job.data, f"{who}, training,")
        if not logits.requires_grad:
            raise JobError(
                f"{who}: its outputs have no gradient, so nothing can be learnt; take no_grad(), detach() and .data "
                "out of its forward"
            )
        y = y.to(torch.int64)
        if job.training.loss == LIGHTNING_LOSS:
            loss = step_loss(self.model, x.clone(), y, 0)
        else:
            loss = training_loss(logits, y, job.training.label_smoothing, own=job.training.loss)
        if not bool(loss.isfinite()):
            self._refuse_not_finite(who, x, " in training")
        with own_code(doing, self.model):
            loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise JobError(
                    f"{who}: the gradient of {name!r} is not finite in the first step, though the loss is; look for a "
                    "root, a logarithm or a division at zero in its forward"
                )
        schedule(job.training, 0, 2)
        idle = [name for name, parameter in trained.items() if parameter.grad is None]
        if len(idle) == len(trained):
            raise JobError(f"{who}: no parameter gets a gradient from its outputs, so nothing can be learnt")
        if idle:
            self.notes.append(
                f"{len(idle)} of {len(trained)} trained tensors of {who} have no part in its logits and stay as they "
                f"are: {', '.join(idle[:3])}{' ...' if len(idle) > 3 else ''}"
            )

    def _check_drawn(self, who: str, drawn: Mapping[str, bytes], again: Mapping[str, bytes]) -> None:
        """Two devices must begin with the same weights."""
        taken = self.fitted.state if self.fitted else {}
        other = [name for name in drawn if name not in taken and drawn[name] != again.get(name)]
        if other:
            raise JobError(
                f"{who}: {other[0]!r} is another one each time it is built, so devices would not begin alike; draw its "
                "numbers with torch's, numpy's or Python's own functions (torch.randn, np.random.normal, "
                "random.random), which get the job's seed, and fill what torch.empty makes"
            )

    def _look_beside(self, job: Job, who: str, x: Tensor, allow: bool) -> None:
        """Whether the state is all that its outputs hang on."""
        with own_code(f"{who} fails", self.model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.model.eval()
            ours, again = (self.model(x.clone()).float() for _ in range(2))
        theirs = self._with_another_seed(job, who, x, allow)
        tolerance = 1e-3 * float(ours.abs().max())
        if not torch.allclose(ours, again, rtol=1e-3, atol=tolerance):
            self.notes.append(
                f"{who} gives other outputs each time, in eval mode too, so asked twice it may answer otherwise; draw "
                "random numbers only while self.training"
            )
        elif theirs is not None and not torch.allclose(ours, theirs, rtol=1e-3, atol=tolerance):
            self.notes.append(
                f"the outputs of {who} hang on numbers by chance that are no part of its state: they are not trained, "
                "and only p2ptrain draws the same again; keep tensors in register_buffer(...), layers in nn.ModuleList"
            )

    def _with_another_seed(self, job: Job, who: str, x: Tensor, allow: bool) -> Tensor | None:
        """Outputs of a model that another seed draws and that has the state of this one. None where another seed makes
        one of another form, or none: every device builds it with the job's, so nothing is wrong with it."""
        try:
            other = global_model(dataclasses.replace(job, seed=(job.seed + 1) % 2**31), allow_user_code=allow)
            if _shapes(other) != _shapes(self.model):
                return None
            put_state(other, self.model.state_dict())
            with own_code(f"{who} fails", other), torch.no_grad(), torch.random.fork_rng(devices=[]):
                other.eval()
                theirs: Tensor = other(x.clone()).float()
            return theirs
        except JobError:
            return None

    def _refuse_not_finite(self, who: str, x: Tensor, when: str) -> None:
        doing = f"{who}: its outputs are not finite{when}, though its samples and weights are"
        for test in (torch.isnan, torch.isinf):  # infinities may be meant (masks), what is not a number never is
            with own_code(doing, self.model), torch.no_grad(), _Watch(test):
                self.model(x.clone())
        raise JobError(f"{doing}; correct its forward")


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _check_same(who: str, before: Mapping[str, torch.Size], after: Mapping[str, torch.Size]) -> None:
    """Raises ``JobError`` where the state that is exchanged has got another form when the model ran."""
    for name in (*after, *before):
        if before.get(name) != after.get(name):
            what = "goes" if name not in after else "comes about"
            if name in before and name in after:
                what = f"becomes {list(after[name])} where it was {list(before[name])}"
            raise JobError(
                f"{who}: {name!r} of its state {what} when the model runs, and peers exchange states of one form; make "
                "it in __init__ as large as it gets, or keep it out of the state: "
                "register_buffer(..., persistent=False)"
            )


def _digests(model: nn.Module) -> dict[str, bytes]:
    return {
        name: hashlib.blake2b(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()).digest()
        for name, tensor in model.state_dict().items()
    }


def _of_lightning(job: Job, who: str, model: nn.Module) -> list[str]:
    """What of a LightningModule is used, and what of it could be."""
    takes = {LIGHTNING_LOSS: job.training.loss, LIGHTNING_OPTIMIZER: job.training.own_optimizer}
    unused = {each: each.partition(":")[2] for each, taken in takes.items() if taken != each}
    found = [configured_optimizer(model)[1]] if LIGHTNING_OPTIMIZER not in unused else []
    if is_lightning(model) and unused:
        ways = " and ".join(f"{'--loss' if each == LIGHTNING_LOSS else '--own-optimizer'} {each}" for each in unused)
        found.append(
            f"{who} is a LightningModule: {' and '.join(unused.values())} of it are not called, the job's own loss and "
            f"optimizer train its forward; {ways} call them in mode replicas"
        )
    if is_lightning(model) and len(unused) < len(takes):
        found += of_no_use(model)
    return [note for note in found if note]


class _Watch(TorchFunctionMode):
    """Stops at the first operation whose result is bad though what it was given isn't."""

    def __init__(self, is_bad: Any) -> None:
        super().__init__()
        self._is_bad = is_bad

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            given = [each for each in (*args, *(kwargs or {}).values()) if self._bad(each)]
        value = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            if not given and self._bad(value):
                raise FloatingPointError(
                    f"{getattr(func, '__name__', 'an operation')} gives a number that is not finite"
                )
        return value

    def _bad(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and bool(self._is_bad(value).any())
