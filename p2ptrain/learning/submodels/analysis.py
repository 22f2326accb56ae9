"""The analysis behind class sub-models: a model's channels, found by running it on tags, and proved the same way.

Every convolution and linear layer gives its output channels fresh ids; how these travel through the model: ``tagging``.

Invariant: every tensor of the model has its ids, or the model is refused and the layer in the way is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.blocks.flops import sample_dtype
from p2ptrain.learning.blocks.tracing import place, trace
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.building import refuse_odd
from p2ptrain.learning.own.copying import copied
from p2ptrain.learning.submodels.channels import NEXT_STEP, Channels
from p2ptrain.learning.submodels.kinds import LINEAR_TAIL, name_of
from p2ptrain.learning.submodels.tagging import BATCH, SHAPE, Tagger


def analyse(model: nn.Module, input_shape: Sequence[int]) -> Channels:
    """Trace a model and find its channels; JobError names the layer that stands in the way."""
    _refuse_tied(model)
    state = model.state_dict()
    if hidden := [name for name, _ in model.named_parameters() if name not in state]:
        raise JobError(
            f"the model {type(model).__name__} leaves {hidden[0]!r} out of its state_dict(), by which class sub-models "
            'are divided; let it be in there, or train with mode = "replicas"'
        )
    refuse_odd(model, "can't be divided among classes")
    with own_code(f"the model {type(model).__name__} can't be copied", model, 'train with mode = "replicas"'):
        model = copied(model).cpu()
    model.eval()
    advice = 'take control flow that depends on tensor values out of forward, or train with mode = "replicas"'
    traced = trace(model, needed_by="class sub-models need", advice=advice)
    dtype = sample_dtype(model)
    doing = f"the model {type(model).__name__} fails on a batch of {BATCH} samples of shape {tuple(input_shape)}"
    with own_code(doing, model, "correct the model or the job's input shape"), torch.no_grad():
        _Shapes(traced).run(torch.zeros(BATCH, *input_shape, dtype=dtype))
    _flatten_logits(traced)
    channels = Channels(traced=traced.to("meta"))
    with own_code(f"the model {type(model).__name__} can't be divided into class sub-models", model, NEXT_STEP):
        logits = Tagger(traced, channels, None).tag()
    _find_head(channels, traced, logits)
    unseen = [name for name in model.state_dict() if name not in channels.axes]
    if unseen:
        raise JobError(
            f"tensor {unseen[0]!r} takes no part in the model's forward pass (or is used there without its layer); "
            'remove it, or train with mode = "replicas"'
        )
    return channels


class _Shapes(fx.Interpreter):
    """Notes the shape of what each node gives. (torch's own ``ShapeProp`` does, too, but loads sympy: 60 MB.)"""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta[SHAPE] = tuple(result.shape)
        return result


def _flatten_logits(traced: fx.GraphModule) -> None:
    """[N, classes, 1, 1] counts as [N, classes] everywhere (``outputs.flat_logits``)."""
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    logits = output.args[0]
    shape: tuple[int, ...] = logits.meta.get(SHAPE, ()) if isinstance(logits, fx.Node) else ()
    if len(shape) <= 2 or any(size != 1 for size in shape[2:]):
        return
    with traced.graph.inserting_before(output):
        flat = traced.graph.call_method("flatten", (logits, 1))
    flat.meta[SHAPE] = shape[:2]
    output.args = (flat,)
    traced.recompile()


def check(channels: Channels, kept: Tensor) -> None:
    """Prove that the forward code, run with the kept ids only, carries the very channels that it should."""
    assert channels.traced is not None
    Tagger(channels.traced, channels, kept).tag()


def _refuse_tied(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if id(tensor) in seen:
            raise JobError(
                f"tensors {seen[id(tensor)]!r} and {name!r} of the model are one and the same: tied weights can't be "
                "divided into class sub-models; untie them, call one layer twice instead, or train with "
                'mode = "replicas"'
            )
        seen[id(tensor)] = name


def _find_head(channels: Channels, traced: fx.GraphModule, logits: Tensor) -> None:
    """The layer whose output channels are the logits, with nothing but moves and means after it."""
    advice = "end the model with a Linear layer (or a convolution followed by average pooling) that returns logits"
    rows = logits[0]
    layer = next((name for name, ids in channels.created.items() if torch.equal(ids, rows)), None)
    if layer is None or len(set(channels.roots(rows))) != rows.numel():
        last = channels.layers[-1] if channels.layers else "none"
        raise JobError(f"the model's output is not the plain output of its last layer ({last!r}); {advice}")
    used = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == layer]
    if len(used) > 1:
        raise JobError(f"layer {layer!r} gives the logits and is called {len(used)} times; {advice}")
    todo = [*used[0].users]
    while todo:
        node = todo.pop()
        if node.op == "output" or name_of(node) in ("size", "getattr", "dim"):
            continue
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if (type(module).__name__ if module is not None else name_of(node)) not in LINEAR_TAIL:
            raise JobError(f"{place(node, traced)} changes the logits of layer {layer!r}; {advice}")
        todo += node.users
    channels.head = layer
