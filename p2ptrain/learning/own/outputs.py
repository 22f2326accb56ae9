"""What models return, and which of it the logits are.

Known forms: the logits alone; a tuple or list that begins with them (``(logits, aux)``); an object, a named tuple or a
table with ``logits``, or else ``out``. Only the logits are trained. [N, classes, 1, 1] counts as [N, classes].

Invariant: whatever passes ``check_logits`` can be trained and judged on the job's classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from p2ptrain.config import DataConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code

NAMES = ("logits", "out")
_WHOLE = "_p2ptrain_whole_outputs"


def logits_of(output: Any) -> Any:
    """The logits of what a model returned, or of a traced one's output node; what is of no known form as it is."""
    if isinstance(output, Tensor):
        return output
    for name in NAMES:
        named = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(named, (Tensor, fx.Node)):
            return named
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    if isinstance(output, Mapping) and len(output) == 1:
        return next(iter(output.values()))
    return output


def adapt(model: nn.Module) -> nn.Module:
    """Make a model take samples in its own precision, and return its logits alone. Names of tensors stay."""
    if isinstance(model, torch.jit.ScriptModule):
        return model  # it takes no hooks: what it returns is checked as it is
    model.register_forward_pre_hook(_in_own_precision)
    model.register_forward_hook(_logits_alone)
    return model


def own_hooks(model: nn.Module) -> str:
    """What of the author's own runs around the model's forward, as hooks do, in words; "" if nothing does."""
    hooks = [*model._forward_pre_hooks.values(), *model._forward_hooks.values()]
    own = [hook for hook in hooks if hook not in (_in_own_precision, _logits_alone)]
    if own:
        return f"a hook of its own around it ({getattr(own[0], '__name__', type(own[0]).__name__)})"
    if "forward" in vars(model):
        return "a forward that was put on the object, not in its class"
    if type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule):
        return "a __call__ of its own"
    return ""


def _in_own_precision(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return tuple(
        x.to(dtype) if dtype is not None and isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )


def _logits_alone(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output if getattr(module, _WHOLE, False) else logits_of(output)


@contextlib.contextmanager
def whole_outputs(model: nn.Module) -> Iterator[None]:
    """Within, it returns all that its forward does: code of its own calls it."""
    setattr(model, _WHOLE, True)
    try:
        yield
    finally:
        delattr(model, _WHOLE)


def flat_logits(logits: Tensor) -> Tensor:
    """[N, classes] of [N, classes, 1, ...]; others as they are."""
    is_flat = logits.dim() <= 2 or any(size != 1 for size in logits.shape[2:])
    return logits if is_flat else logits.flatten(1)


def check_outputs(model: nn.Module, data: DataConfig, who: str, samples: Tensor | None = None) -> Tensor:
    """Run the model, which is in eval mode, on a few samples (made up if there are none), and check what it returns.

    Returns the logits. Raises ``JobError`` for what is wrong with them, or with the model's code.
    """
    num_classes = len(data.classes)
    batch = 2 if num_classes != 2 else 3  # so that the axes can be told apart
    samples = made_up(data, batch) if samples is None else samples[torch.arange(batch) % len(samples)]
    advice = "correct the model, or the job's input shape"
    if data.reads_tokens:
        advice = TEXT_CONTRACT if data.kind == "text" else TOKENS_CONTRACT
    doing = f"{who} fails on a batch of samples of shape {list(data.input_shape)}"
    with own_code(doing, model, advice), torch.no_grad():
        output = model(samples)
    check_logits(output, batch, data, who)
    return output


@torch.no_grad()
def find_head(model: nn.Module, data: DataConfig) -> str:
    """The linear layer whose outputs the logits are, by name: the last that runs, not the last that is defined.

    It gets one row a sample. The model is run, so give one that is not needed any more. Raises ``JobError``.
    """
    last: dict[str, Tensor] = {}
    hooks = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        last.pop(name, None)
        last[name] = output

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(partial(note, name)))
    model.eval()
    try:
        logits = flat_logits(check_outputs(model, data, "the model"))
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in reversed(last.items()):
        if output.dim() == 2 and output.shape == logits.shape and torch.equal(output, logits):
            return name
    raise JobError(
        "the model's logits are not the plain output of a Linear layer, which gets a row a sample, so its last layer "
        'can\'t be fitted again; end it with one, or set tasks.fit_head = "never"'
    )


TEXT_CONTRACT = (
    "text comes as token numbers, int64 of shape [batch, 1, 1, length]: begin forward with x = x.flatten(1), "
    "and return [batch, classes] or [batch, length, classes]"
)
TOKENS_CONTRACT = (
    "texts come as token numbers, int64 of shape [batch, 1, 1, length], 0 after the last: begin forward with "
    "x = x.flatten(1), and return [batch, classes]"
)


def contract_words(data: DataConfig) -> str:
    """What a model of one's own is given for these data, and what it is to return, in a line."""
    if data.kind == "tokens":
        return TOKENS_CONTRACT.replace("length", str(data.input_shape[-1])).replace("classes", str(len(data.classes)))
    if data.kind == "text":
        return TEXT_CONTRACT.replace("length", str(data.input_shape[-1])).replace("classes", str(len(data.classes)))
    what = "log-mels" if data.kind == "audio" else "samples"
    return (
        f"{what} come normalised, as float32 of shape [batch, {', '.join(map(str, data.input_shape))}]: return logits "
        f"[batch, {len(data.classes)}]"
    )


def made_up(data: DataConfig, batch: int) -> Tensor:
    """[batch, *input_shape] samples as they might be: token numbers, or numbers of mean 0 and spread 1."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, *data.input_shape)
    if data.reads_tokens:
        return torch.randint(data.vocabulary or len(data.classes), shape, generator=generator)
    return torch.randn(shape, generator=generator)


def check_logits(output: Any, batch: int, data: DataConfig, who: str) -> None:
    """Raises ``JobError`` that says what was expected."""
    kind, num_classes, positions = data.kind, len(data.classes), data.input_shape[-1]
    wanted = f"[{batch}, {num_classes}]"
    if kind == "text":
        wanted += f", or [{batch}, {positions}, {num_classes}] with an answer at every position,"
    expected = f"for {batch} samples and {num_classes} classes it must return logits {wanted}"
    if not isinstance(output, Tensor):
        raise JobError(f"{who} returns {described(output)}: {expected} alone, first in a tuple, or as .logits")
    shape = list(flat_logits(output).shape)
    if shape == [batch, num_classes] or (kind == "text" and shape == [batch, positions, num_classes]):
        if not output.is_floating_point():
            raise JobError(f"{who} returns {output.dtype}: {expected} as floating-point numbers")
        return
    advice = "give its last layer num_classes outputs (its function gets num_classes)"
    if shape in ([batch, 1], [batch]) and num_classes == 2:
        advice = "give it an output for each of the two classes: nn.Linear(..., 2), trained with cross-entropy"
    elif shape[:1] != [batch] and batch in shape:
        advice = "the samples of the batch must be its first axis"
    elif shape[:1] != [batch]:
        advice = "keep the samples of the batch apart: x.flatten(1), not x.flatten()"
    raise JobError(f"{who} returns {list(output.shape)}: {expected}; {advice}")


def described(output: Any) -> str:
    """What it is, in short."""
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with {', '.join(map(str, list(output)[:5]))}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"{type(output).__name__} of {len(output)}"
    return type(output).__name__
