"""How a function of a user's own becomes a model that can be trained here.

It is called with those of ``input_shape``, ``num_classes`` and ``width`` that it takes. Wrappers that change the names
of tensors are taken off (``torch.compile``, ``DataParallel``), lazy layers get their sizes, everything comes to the
CPU, and only the logits are returned.

Invariant: with a seed two devices get the same weights, whether they are drawn by torch, numpy or Python.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter as Uninitialized

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.copying import tensors_in
from p2ptrain.learning.own.importing import working_directory_on_path
from p2ptrain.learning.own.outputs import adapt
from p2ptrain.learning.snapshots import DTYPES, MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS

SIGNATURE = "def build(input_shape, num_classes): ... return a torch.nn.Module"
READS_TOKENS = "reads_tokens"
"""The attribute of a model whose samples are token numbers, int64."""
_WRAPPED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Where the model is that a wrapper holds, by the wrapper's class."""


def build_own(name: str, arguments: dict[str, object], seed: int | None) -> nn.Module:
    """The model that ``package.module:function`` returns. Raises ``JobError`` naming the line that is wrong."""
    with working_directory_on_path(), seeded(seed):
        function = function_of(name, f"model {name!r}", SIGNATURE)
    with working_directory_on_path(), seeded(seed):  # once more: a module may seed generators when it is imported
        accepted = _accepted(name, function, arguments)
        given = ", ".join(f"{key}={value!r}" for key, value in accepted.items())
        with own_code(f"model {name!r} failed when called with ({given})", advice="correct it"):
            model = function(**accepted)
        if not isinstance(model, nn.Module):
            module_name, _, function_name = name.partition(":")
            raise JobError(
                f"model {name!r}: function {function_name!r} in {module_name!r} returned {type(model).__name__}; "
                "it must return a torch.nn.Module"
            )
        return finished(name, model, arguments["input_shape"])


def function_of(name: str, what: str, signature: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names, imported. Raises ``JobError`` that says what is missing.

    ``what``: whose name it is, for people; ``signature``: how one is written.
    """
    module_name, _, function_name = name.partition(":")
    try:
        with own_code(f"{what}: module {module_name!r} fails when it is imported"):
            module = importlib.import_module(module_name)
    except JobError as failed:
        error = failed.__cause__
        if not isinstance(error, (ImportError, SyntaxError, ValueError)):
            raise
        raise JobError(
            f"{what}: module {module_name!r} can't be imported ({error}); start p2ptrain in the directory "
            f"that holds it, or install it, and see that `python -c 'import {module_name}'` works there"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise JobError(
            f"{what}: module {module_name!r} ({module.__file__}) has no function {function_name!r}; "
            f"define it there ({signature}), or correct the name after the colon"
        )
    return function


def finished(name: str, model: nn.Module, input_shape: object) -> nn.Module:
    """A model as somebody's code made it, as one that can be trained here. Raises ``JobError`` where it can't."""
    model = _plain(model)
    _materialise(name, model, input_shape)
    if any(tensor.device.type not in ("cpu", "meta") for tensor in (*model.parameters(), *model.buffers())):
        model.cpu()
    _apart(model)
    held = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers()) if _is_plain(tensor)}
    state = model.state_dict()
    if len(state) > MAX_TENSORS:
        raise JobError(
            f"model {name!r}: its state has {len(state):,} tensors, and {MAX_TENSORS:,} can be exchanged; keep what is "
            "alike in one tensor (the weights of all experts in one parameter)"
        )
    for tensor_name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor_name.endswith("_extra_state"):
            raise JobError(
                f"model {name!r}: {tensor_name!r} of its state is a {type(tensor).__name__} (get_extra_state), which "
                "peers can't average; keep numbers in buffers (register_buffer), and the rest out of the state"
            )
        if len(tensor_name) > MAX_NAME:
            raise JobError(
                f"model {name!r}: the name of tensor '{tensor_name[:60]}...' of its state has {len(tensor_name)} "
                f"characters, and {MAX_NAME} can be exchanged; give its layers shorter names"
            )
        if tensor.dim() > MAX_DIMENSIONS:
            raise JobError(
                f"model {name!r}: tensor {tensor_name!r} of its state has {tensor.dim()} dimensions, and "
                f"{MAX_DIMENSIONS} can be exchanged; keep it flatter, and reshape it in forward"
            )
        if tensor.is_complex():
            raise JobError(
                f"model {name!r}: tensor {tensor_name!r} is of complex numbers, which peers can't average; keep it as "
                "real numbers (torch.view_as_real), and take torch.view_as_complex of it in forward"
            )
        if not _is_plain(tensor) or tensor.dtype not in DTYPES:
            raise JobError(
                f"model {name!r}: tensor {tensor_name!r} of its state is {_kind(tensor)}, which peers can't exchange; "
                "keep it dense and of another type (float32, int64, bool), or out of the state: "
                "register_buffer(..., persistent=False)"
            )
        if tensor.numel() and tensor.untyped_storage()._cdata not in held:
            raise JobError(
                f"model {name!r}: its state_dict() gives {tensor_name!r} as a copy, so what peers send would never "
                "reach the model; give the parameters and buffers themselves, as nn.Module does"
            )
    return adapt(model)


def refuse_blank(who: str, model: nn.Module) -> None:
    """Raises ``JobError`` where a tensor of a model that was built in full has no numbers."""
    if blank := [name for name, tensor in (*model.state_dict().items(), *model.named_buffers()) if tensor.is_meta]:
        raise JobError(
            f"{who}: {blank[0]!r} is on the meta device, so it has no numbers; build the model on the CPU, or fill "
            "it with to_empty() and an initialisation"
        )


def refuse_odd(model: nn.Module, doing: str) -> None:
    """Raises ``JobError`` where it keeps a tensor whose elements don't lie side by side, as those of sparse and nested
    ones, as a buffer or beside. ``doing``: what can't be done then."""
    held = [
        (f"{prefix}.{name}", value) for prefix, module in model.named_modules() for name, value in vars(module).items()
    ]
    for name, tensor in [*model.named_buffers(), *((name, each) for name, value in held for each in tensors_in(value))]:
        if not _is_plain(tensor):
            raise JobError(
                f"{name.lstrip('.')!r} of the model is {_kind(tensor)}, and a model with such a tensor {doing}; keep "
                'it dense, or train with mode = "replicas"'
            )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested


def _kind(tensor: Tensor) -> str:
    """In a word."""
    if tensor.is_nested:
        return "nested"
    return str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.").lstrip("_")


def _apart(model: nn.Module) -> None:
    """Give every element of a buffer memory of its own: ``expand`` lets several share one, and none can be written."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if _is_plain(buffer) and any(
                n > 1 and step == 0 for n, step in zip(buffer.shape, buffer.stride(), strict=True)
            ):
                setattr(module, name, buffer.clone(memory_format=torch.contiguous_format))


def _accepted(name: str, function: Callable[..., object], arguments: dict[str, object]) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind is not p.VAR_POSITIONAL
        and (p.name not in arguments or p.kind is p.POSITIONAL_ONLY)
    ]
    if unknown:
        raise JobError(
            f"model {name!r}: the function needs {', '.join(unknown)}, which p2ptrain does not give; it gives "
            f"{', '.join(arguments)} by keyword, so give the others a default value"
        )
    return {p.name: arguments[p.name] for p in keywords if p.name in arguments}


def _plain(model: nn.Module) -> nn.Module:
    """Without wrappers, around it or within."""
    while (held := _WRAPPED.get(type(model).__name__)) is not None:
        model = getattr(model, held)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            plain = child
            while (held := _WRAPPED.get(type(plain).__name__)) is not None:
                plain = getattr(plain, held)
            if plain is not child:
                setattr(module, name, plain)
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False  # the same gradient, in the form that it is clipped and checked in
        # What module.compile() leaves.
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
    return model


def _materialise(name: str, model: nn.Module, input_shape: object) -> None:
    """Give lazy layers the sizes that samples of this shape ask for."""
    lazy = [tensor for tensor in model.parameters() if isinstance(tensor, Uninitialized)]
    if not lazy or not isinstance(input_shape, Sequence):
        return
    samples = torch.zeros(2, *input_shape, device=lazy[0].device)
    was_training = model.training
    model.eval()
    doing = f"model {name!r}: its lazy layers can't get their sizes from samples of shape {list(input_shape)}"
    with own_code(doing), torch.no_grad():
        model(samples)
    model.train(was_training)
    left = [each for each, tensor in model.named_parameters() if isinstance(tensor, Uninitialized)]
    if left:
        raise JobError(
            f"model {name!r}: {left[0]!r} is lazy and takes no part in the forward pass, so its size is not known; "
            "remove it, or give it its size"
        )


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """With a seed, the same random numbers everywhere; all generators are afterwards as they were."""
    if seed is None:
        yield
        return
    python, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerators' generators too
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)
