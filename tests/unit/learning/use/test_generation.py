"""A language model writes what it learnt, whatever its windows are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from p2ptrain.config import DataConfig
from p2ptrain.errors import UserError
from p2ptrain.learning.models import build_model
from p2ptrain.learning.use.generation import _looks_back_only, generate

WINDOW = 8
TEXT = DataConfig(kind="text", input_shape=(1, 1, WINDOW))


class Counts(nn.Module):
    """Expects the byte after the one that it looks at. ``form``: at every position, the last one, or mixing all."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape == (1, 1, 1, WINDOW), "always whole windows"
        tokens = x.flatten(1)
        logits = 9.0 * torch.nn.functional.one_hot((tokens + 1) % 256, 256).float()
        if self.form == "last":
            return logits[:, -1]
        return logits + 0.01 * tokens.sum() if self.form == "mixing" else logits


@pytest.mark.parametrize("form", ["every", "last", "mixing"])
@pytest.mark.parametrize("prompt", [b"a", b"xyz a", b"longer than the window a"])
def test_short_and_long_prompts_are_gone_on_from_their_end(form: str, prompt: bytes) -> None:
    written = bytes(generate(Counts(form), TEXT, prompt, num_bytes=12, temperature=0))
    assert written == b"bcdefghijklm"


def test_what_looks_back_only_is_told_from_what_does_not() -> None:
    gpt = build_model("gpt_mini", input_shape=(1, 1, WINDOW), num_classes=256, width=0.25, seed=0).eval()
    assert _looks_back_only(gpt, WINDOW) and _looks_back_only(Counts("every"), WINDOW)
    assert not _looks_back_only(Counts("mixing"), WINDOW) and not _looks_back_only(Counts("last"), WINDOW)


def test_chance_is_the_seeds() -> None:
    flat = Counts("every")

    def text(seed: int, **how: float) -> bytes:
        return bytes(generate(flat, TEXT, b"a", num_bytes=30, seed=seed, temperature=5.0, **how))

    assert text(1) == text(1) != text(2)
    assert text(1, top_k=1) == bytes(generate(flat, TEXT, b"a", num_bytes=30, temperature=0))


def test_only_text_is_written() -> None:
    with pytest.raises(UserError, match="predict"):
        next(generate(Counts("every"), DataConfig(kind="image"), b"", num_bytes=1))


def test_a_model_that_answers_with_nothing_is_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((1, WINDOW, 256), float("nan"))

    with pytest.raises(UserError, match="missing numbers"):
        next(generate(Broken(), TEXT, b"", num_bytes=1))
