"""Encoders of transformers as a chain of blocks: the embeddings, each layer, and what makes classes of the first token.

torch.fx can't trace these models, so their blocks are listed here. Every layer has to know which tokens are padding.
That goes along with the hidden states as one more feature, 1 for a token that is there: so one tensor crosses a cut,
and it begins with the batch.

Invariant: the outputs are those of transformers' own forward with an attention mask, and no tensor has another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from p2ptrain.errors import JobError

ENCODERS = {
    "BertForSequenceClassification": ("bert", ("bert.pooler", "dropout", "classifier")),
    "RobertaForSequenceClassification": ("roberta", ("classifier",)),
}
"""By class: where embeddings and layers are, and what follows them."""


def is_known(model: nn.Module) -> bool:
    """Whether it can run in blocks. One that is set to be a decoder has another mask, and perhaps other layers."""
    return type(model).__name__ in ENCODERS and not getattr(model.config, "is_decoder", False)


def in_blocks(model: nn.Module, pad: int | None) -> None:
    """Have a known model run block by block, on batches [N, 1, 1, T] of token numbers; others refuse to be cut, with
    the reason. ``pad``: the number that is no token; None = all are."""
    kind = type(model)
    if not is_known(model):
        model.__class__ = type(kind.__name__, (kind,), {"pipeline_blocks": _refused, "__module__": __name__})
        return
    base, tail = ENCODERS[kind.__name__]
    encoder = model.get_submodule(base)
    embeddings = encoder.get_submodule("embeddings")
    embeddings.register_forward_pre_hook(_flattened)
    embeddings.register_forward_hook(_WithMask(pad))
    for layer in encoder.get_submodule("encoder.layer").children():
        layer.register_forward_pre_hook(_without_mask, with_kwargs=True)
        layer.register_forward_hook(_with_mask_again, with_kwargs=True)
    model.get_submodule(tail[0]).register_forward_pre_hook(_hidden_alone)
    methods = {"forward": _block_by_block, "pipeline_blocks": _listed, "__module__": __name__}
    model.__class__ = type(kind.__name__, (kind,), methods)


def _listed(model: nn.Module) -> list[nn.Module]:
    base, tail = ENCODERS[type(model).__name__]
    encoder = model.get_submodule(base)
    layers = encoder.get_submodule("encoder.layer").children()
    return [encoder.get_submodule("embeddings"), *layers, *(model.get_submodule(name) for name in tail)]


def _refused(model: nn.Module) -> list[nn.Module]:
    known = ", ".join(ENCODERS)
    raise JobError(
        f"{type(model).__name__} of transformers can't be cut into blocks: torch.fx does not trace it, and where to "
        f'cut is known of {known} alone, as encoders; train it in mode "replicas"'
    )


def _block_by_block(model: nn.Module, x: Tensor) -> Tensor:
    for block in _listed(model):
        x = block(x)
    return x


def _flattened(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0].flatten(1).long(),)


class _WithMask:
    """[N, T] tokens, and hidden states [N, T, D] of them -> [N, T, D + 1]."""

    def __init__(self, pad: int | None) -> None:
        self._pad = pad

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], hidden: Tensor) -> Tensor:
        there = torch.ones_like(args[0]) if self._pad is None else args[0] != self._pad
        first = torch.ones_like(there[:, :1])  # an empty text has a token, too
        there = torch.cat([first, there[:, 1:]], 1)
        return torch.cat([hidden, there.unsqueeze(-1).to(hidden.dtype)], -1)


def _without_mask(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> Any:
    hidden, there = args[0][..., :-1], args[0][..., -1].detach()
    mask = torch.zeros_like(there).masked_fill(there < 0.5, torch.finfo(there.dtype).min)
    return (hidden, mask[:, None, None, :]), dict(kwargs)


def _with_mask_again(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    there = (args[1] == 0).squeeze(1).transpose(1, 2)  # [N, T, 1]
    return torch.cat([hidden, there.to(hidden.dtype)], -1)


def _hidden_alone(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0][..., :-1],)
