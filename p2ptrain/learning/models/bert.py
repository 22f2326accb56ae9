"""An encoder after BERT (Devlin et al. 2019), of BERT-small's size (Turc et al. 2019): 4 layers of 512 features.

With BERT's own vocabulary of 30,522 it has 28 M parameters, with bytes as tokens 13 M. It answers once a sample: it
reads the tokens and a [MASK] after them, and says which class stands there. For text that is the byte that follows;
for any labelled sequences it is their class. So it needs what every other model needs, a label a sample, where masking
at random would need a job that says how, and other inputs for training than for testing.

Invariant: norms come after each layer, as in the original; there are no segments and no tied weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.learning.models.layers import InputShape
from p2ptrain.learning.models.transformer import (
    NUM_BYTES,
    FeedForward,
    SelfAttention,
    TransformerConfig,
    init_transformer,
    scaled_config,
    token_numbers,
)


class EncoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config, causal=False)
        self.norm1 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D]
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class BERT(nn.Module):
    """``vocabulary``: tokens are numbers below it; one more is the [MASK]."""

    def __init__(
        self,
        input_shape: InputShape,
        num_classes: int,
        width: float = 1.0,
        *,
        vocabulary: int = NUM_BYTES,
        depth: int = 4,
        dim: int = 512,
        heads: int = 8,
    ) -> None:
        super().__init__()
        config = scaled_config(
            "bert_small", input_shape, width, vocabulary=vocabulary, depth=depth, dim=dim, heads=heads
        )
        self.mask = config.vocabulary
        self.token_embedding = nn.Embedding(config.vocabulary + 1, config.dim)
        self.position_embedding = nn.Embedding(config.context + 1, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.Sequential(*(EncoderLayer(config) for _ in range(config.depth)))
        self.transform = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.LayerNorm(config.dim))
        self.head = nn.Linear(config.dim, num_classes)
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 1, T] token numbers
        tokens = F.pad(token_numbers(x), (0, 1), value=self.mask)  # [N, T + 1]
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.size(1)]
        x = self.layers(self.norm(x))  # [N, T + 1, D]
        return self.head(self.transform(x[:, -1]))  # [N, num_classes]
