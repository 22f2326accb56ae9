"""A language model writes on: byte after byte, each drawn from what the model expects next.

Invariant: the model is asked as it was trained, with windows of its context length; what it expects at a position
depends on the bytes up to it alone, or the position asked is the last.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from p2ptrain.config import DataConfig
from p2ptrain.errors import UserError
from p2ptrain.learning.own.blame import own_code

PADDING = ord("\n")
"""Stands before a text that is shorter than the window, for models that answer for its end only."""


def generate(
    model: nn.Module,
    data: DataConfig,
    prompt: bytes,
    *,
    num_bytes: int,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[int]:
    """The bytes that follow ``prompt``, one at a time.

    ``temperature``: what the logits are divided by; 0 = always the likeliest byte. ``top_k``: drawn from so many of
    the likeliest only; 0 = from all. Equal seeds give equal texts on equal machines. Raises ``UserError`` for a model
    of anything but text.
    """
    if data.kind != "text":
        raise UserError("this model does not read text: `p2ptrain predict` tells what it takes a file for")
    window = data.input_shape[2]
    rng = torch.Generator().manual_seed(seed)
    looks_back_only = _looks_back_only(model, window)
    text = bytearray(prompt or bytes([PADDING]))
    for _ in range(num_bytes):
        logits = _following(model, bytes(text[-window:]), window, looks_back_only)
        if not bool(logits.isfinite().any()):
            raise UserError("the model answers with infinite or missing numbers; train it with a lower learning rate")
        text.append(_drawn(logits.nan_to_num(nan=-torch.inf), temperature, top_k, rng))
        yield text[-1]


def _following(model: nn.Module, text: bytes, window: int, looks_back_only: bool) -> Tensor:
    """Logits [256] of what follows ``text``, of which there are at most ``window`` bytes."""
    missing = bytes([PADDING]) * (window - len(text))
    padded = text + missing if looks_back_only else missing + text
    logits = _asked(model, torch.tensor(list(padded)).view(1, 1, 1, window))
    if logits.dim() == 1:
        return logits
    return logits[len(text) - 1 if looks_back_only else -1]


def _asked(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits [T, 256], or [256] of a model that answers for the end only."""
    with torch.no_grad(), own_code("the model fails on a text", model):
        logits: Tensor = model(tokens)[0].float()
    return logits


def _looks_back_only(model: nn.Module, window: int) -> bool:
    """Whether what it expects in the middle stays as it is when what comes later changes."""
    tokens = torch.arange(window).remainder(256).view(1, 1, 1, window)
    others = tokens.clone()
    middle = window // 2
    others[..., middle:] = 255 - others[..., middle:]
    before, after = _asked(model, tokens), _asked(model, others)
    return window > 1 and before.dim() == 2 and torch.allclose(before[:middle], after[:middle], atol=1e-4)


def _drawn(logits: Tensor, temperature: float, top_k: int, rng: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    values, tokens = logits.topk(min(top_k or len(logits), len(logits)))
    return int(tokens[torch.multinomial((values / temperature).softmax(0), 1, generator=rng)])
