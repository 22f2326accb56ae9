"""What the language models share: their configuration, attention, and how a batch of samples becomes token numbers.

A sample is ``[1, 1, context]`` token numbers, so that text has the shape of any other data. There is no dropout: models
and texts of this size are limited by what they can learn, not by what they forget.

Invariant: every position is computed in the same way for any batch size and any context up to the configured one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.errors import JobError
from p2ptrain.learning.models.layers import InputShape

NUM_BYTES = 256
INIT_STD = 0.02


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """``dim``: features per position, a multiple of ``heads``. ``context``: most positions of a sample."""

    vocabulary: int
    depth: int
    dim: int
    heads: int
    context: int


def scaled_config(
    name: str, input_shape: InputShape, width: float, *, vocabulary: int, depth: int, dim: int, heads: int
) -> TransformerConfig:
    """The configuration for samples of a shape; ``width`` scales the features per head."""
    if input_shape[:2] != (1, 1):
        raise JobError(
            f"model {name} reads text, so its input shape is [1, 1, context], not {list(input_shape)}; make the job "
            "from a text (p2ptrain job new --data text:FILE), or take a model for such data"
        )
    return TransformerConfig(vocabulary, depth, heads * max(1, round(dim * width / heads)), heads, input_shape[2])


def token_numbers(x: Tensor) -> Tensor:
    """[N, 1, 1, T] of any dtype -> [N, T] int64."""
    return x.flatten(1).long()


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, causal
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.project = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [N, T, 3, heads, D / heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [N, heads, T, D / heads] each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.project(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig, *, approximate: str = "none") -> None:
        super().__init__()
        self.expand = nn.Linear(config.dim, 4 * config.dim)
        self.gelu = nn.GELU(approximate)
        self.project = nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D]
        return self.project(self.gelu(self.expand(x)))


def init_transformer(model: nn.Module) -> None:
    """As in GPT-2 and BERT: normal with deviation 0.02, biases zero, norms one and zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
