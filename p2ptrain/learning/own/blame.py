"""Whose fault an error is that comes out of a model: the line of its author's code, or else the layer.

Invariant: whatever a model raises, ``sys.exit`` too, leaves ``own_code`` as a ``JobError`` that names the place. Only
what is no fault of the code passes: memory that has run out, Ctrl-C, and what is p2ptrain's own word already.
"""

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from p2ptrain.errors import JobError, P2PTrainError, UserError
from p2ptrain.words import scaled

_PASSED = (P2PTrainError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, GeneratorExit)
_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
_LIBRARIES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_PYTHON = sysconfig.get_path("stdlib")
MAX_REASON = 300


class own_code(contextlib.AbstractContextManager[None]):
    """Runs what a model's author wrote. What it prints goes beside the output proper.

    ``doing`` begins the error: "the model mine:net fails on a batch of samples".
    """

    def __init__(self, doing: str, model: nn.Module | None = None, advice: str = "correct the model") -> None:
        self._doing, self._model, self._advice = doing, model, advice
        self._printing: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> None:
        self._printing = contextlib.redirect_stdout(sys.stderr)
        self._printing.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._printing.__exit__(kind, error, trace)
        if error is None or isinstance(error, _PASSED) or _is_out_of_memory(error):
            return
        raise JobError(f"{self._doing}: {where(error, self._model)}{reason(error)}; {self._advice}") from error


class enough_memory(contextlib.AbstractContextManager[None]):
    """Runs what may need more memory than there is: then a ``UserError`` that says of what."""

    def __init__(self, who: str) -> None:
        self._who = who

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _is_out_of_memory(error):
            asked = re.search(r"(\d+) bytes", str(error))
            more = f" (it asked for {scaled(int(asked[1]), 'B')} at once)" if asked else ""
            raise UserError(
                f"{self._who} needs more memory than this device has free{more}; take a smaller one (--width), smaller "
                "batches (--batch-size), or mode pipeline on several devices, each of which holds a part of it"
            ) from error


def where(error: BaseException, model: nn.Module | None = None) -> str:
    """``file.py, line 12 (code): `` of the innermost line that is the author's own; else the layer, if it is known."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", *_OURS))]
    others = [f for f in frames if f.filename.startswith(_LIBRARIES) or not f.filename.startswith(_PYTHON)]
    own = [f for f in others if not f.filename.startswith(_LIBRARIES)] or others
    if own:
        return f"{own[-1].filename}, line {own[-1].lineno} ({(own[-1].line or '').strip()}): "
    layer = layer_of(error, model) if model is not None else ""
    if model is None or not layer:
        return ""
    return f"layer {layer!r} ({type(model.get_submodule(layer)).__name__}): "


def reason(error: BaseException) -> str:
    """What it says, in a line."""
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__module__.startswith("torch.jit") and lines:  # the TorchScript traceback comes first
        lines = lines[-1:]
    return f"{kind}: {lines[0][:MAX_REASON]}" if lines else kind


def layer_of(error: BaseException, model: nn.Module) -> str:
    """The name of the innermost module of the model that was running; "" = the model itself."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            found = names[id(module)]
    return found


def _is_out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
