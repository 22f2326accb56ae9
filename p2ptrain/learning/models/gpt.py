"""A decoder after GPT-2 (Radford et al. 2019): causal attention, norms before each layer, a prediction per position.

``gpt_mini`` is small: 6 layers of 192 features, 2.8 M parameters. (GPT-2's smallest has 12 of 768, and 124 M.)

Invariant: the logits at a position depend on the tokens up to it only. Unlike GPT-2's, the output layer has weights of
its own: tied to the first layer's they would hold both ends of the model on one device.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape
from p2ptrain.learning.models.transformer import (
    INIT_STD,
    FeedForward,
    SelfAttention,
    TransformerConfig,
    init_transformer,
    scaled_config,
    token_numbers,
)


class DecoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = SelfAttention(config, causal=True)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D]
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """The tokens it reads are the classes it predicts."""

    def __init__(
        self,
        input_shape: InputShape,
        num_classes: int,
        width: float = 1.0,
        *,
        depth: int = 6,
        dim: int = 192,
        heads: int = 6,
    ) -> None:
        super().__init__()
        config = scaled_config(
            "gpt_mini", input_shape, width, vocabulary=num_classes, depth=depth, dim=dim, heads=heads
        )
        self.token_embedding = nn.Embedding(config.vocabulary, config.dim)
        self.position_embedding = nn.Embedding(config.context, config.dim)
        self.layers = nn.Sequential(*(DecoderLayer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocabulary, bias=False)
        init_transformer(self)
        for module in self.modules():  # what the layers add to the sum is small, so that the sum keeps its size
            if isinstance(module, SelfAttention | FeedForward):
                nn.init.normal_(module.project.weight, std=INIT_STD / math.sqrt(2 * config.depth))

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 1, T] token numbers
        tokens = token_numbers(x)
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.size(1)]
        x = self.layers(x)  # [N, T, D]
        return self.head(self.norm(x))  # [N, T, vocabulary]
