"""A model's forward code as a torch.fx graph, or an error that names the line that stands in the way.

Invariant: a graph from ``trace_chain`` is the same in training and in eval mode; what differs between the two is up to
its layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, fx, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.models import MODEL_BUGS
from p2ptrain.learning.own.blame import layer_of, where
from p2ptrain.learning.own.outputs import logits_of

BLOCKS_METHOD = "pipeline_blocks"
ADVICE = (
    "take control flow that depends on tensors out of that line, return an nn.Sequential, or give the model a method "
    f"{BLOCKS_METHOD}() that returns its submodules in the order in which they run"
)
_SIZES = (int, tuple, list, fx.Node)
"""What ``view`` is given for a shape; a dtype is another matter."""
_NEEDED_BY = "cutting it into blocks needs"


def trace(model: nn.Module, *, needed_by: str, advice: str, whole: Sequence[nn.Module] = ()) -> fx.GraphModule:
    """The traced model, which shares the model's tensors. ``whole``: submodules that become a single node each.

    Raises ``JobError`` with the line of the user's code that can't be traced.
    """
    tracer = _Tracer(whole)
    try:
        options = _options(model)
        with contextlib.redirect_stdout(sys.stderr):
            graph = tracer.trace(model, concrete_args=options)
        _leave_out(graph, options)
        for node in list(graph.nodes):
            if node.op == "call_method" and node.target == "view" and isinstance(node.args[1], _SIZES):
                node.target = "reshape"  # the same, in any order of memory
            elif node.op == "output":
                returned = node.args[0]
                node.args = (logits_of(_built(returned)),)
                if isinstance(returned, fx.Node) and not returned.users:
                    graph.erase_node(returned)
        return fx.GraphModule(tracer.root, graph, type(model).__name__)
    except MODEL_BUGS as error:
        reason = str(error).strip().splitlines()
        raise JobError(
            f"the model {type(model).__name__} can't be traced by torch.fx, which {needed_by}: {where(error)}"
            f"{reason[0] if reason else type(error).__name__}; {advice}"
        ) from error


def _built(output: Any) -> Any:
    """A named tuple or a dataclass of nodes, where the forward pass makes one."""
    kind = output.target if isinstance(output, fx.Node) and output.op == "call_function" else None
    is_record = dataclasses.is_dataclass(kind) or (isinstance(kind, type) and hasattr(kind, "_fields"))
    return kind(*output.args, **output.kwargs) if isinstance(kind, type) and is_record else output


def _options(model: nn.Module) -> dict[str, Any]:
    """What forward takes beside the batch, and is never given here: at its default."""
    try:
        beside = list(inspect.signature(type(model).forward).parameters.values())[2:]
    except (TypeError, ValueError):
        return {}
    named = [each for each in beside if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return {each.name: each.default for each in named if isinstance(each.default, (bool, int, float, type(None)))}


def _leave_out(graph: fx.Graph, options: Collection[str]) -> None:
    """Their inputs, and the checks that they have these defaults, which are all that torch makes of them."""
    named = {f"{name}_1" for name in options}  # as torch calls what it was given a value of
    for given in [node for node in graph.nodes if node.op == "placeholder" and node.target in named]:
        checks = [given]
        for each in checks:
            checks += [user for user in each.users if user not in checks]
        for each in reversed(checks):
            graph.erase_node(each)


def trace_chain(model: nn.Module) -> fx.GraphModule:
    """The traced model.

    Single nodes become: children of an ``nn.Sequential`` that can't be traced, other modules without children and
    weights that can't, and modules that run other code in training than in eval mode (stochastic depth).
    """
    was_training = model.training
    whole: list[nn.Module] = []
    if isinstance(model, nn.Sequential):
        whole = [child for child in model if not _is_traceable(child)]
    while True:
        graphs: list[fx.GraphModule] = []
        for mode in (False, True):
            model.train(mode)
            try:
                graphs.append(trace(model, needed_by=_NEEDED_BY, advice=ADVICE, whole=whole))
            except JobError as failed:
                leaf = model.get_submodule(layer_of(failed.__cause__ or failed, model))
                if leaf in whole or any(True for _ in (*leaf.children(), *leaf.parameters())):
                    raise
                whole.append(leaf)  # it computes by itself what can't be traced
                break
            finally:
                model.train(was_training)
        if len(graphs) < 2:
            continue
        nodes = itertools.zip_longest(*(graph.graph.nodes for graph in graphs))
        first = next((pair for pair in nodes if not all(pair) or _text(pair[0]) != _text(pair[1])), None)
        if first is None:
            return graphs[1]
        around = [path for node in reversed(first) if node is not None for path in _modules_around(node)]
        if not around or model.get_submodule(around[0]) in whole:
            there = next((place(node, graph) for node, graph in zip(first, graphs, strict=True) if node), "its end")
            raise JobError(
                f"the model {type(model).__name__} runs other code in training than in eval mode at {there}, which a "
                "block can't switch between; use a layer for it (nn.Dropout, not functional.dropout with "
                "training=self.training)"
            )
        whole.append(model.get_submodule(around[0]))


def _modules_around(node: fx.Node) -> list[str]:
    """The modules whose forward runs a node that computes, innermost first; without the model itself."""
    if node.op in ("placeholder", "output", "get_attr"):
        return []
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    if node.op == "call_module":  # that it is called differs, not what it does
        paths = [path for path in paths if path != node.target]
    return paths[::-1]


def listed_blocks(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The blocks that the model's author lists, by qualified name, or ``None``: what ``pipeline_blocks()`` returns.

    Run one after the other on the input batch they must do what forward does; a block may return a tuple of tensors,
    which are the next one's arguments.
    """
    method = getattr(model, BLOCKS_METHOD, None)
    if method is None:
        return None
    kind = type(model).__name__
    try:
        blocks = list(method())
    except MODEL_BUGS as error:
        raise JobError(f"{kind}.{BLOCKS_METHOD}() failed: {type(error).__name__}: {error}; correct it") from error
    names = {id(module): name for name, module in model.named_modules()}
    if not blocks or not all(isinstance(block, nn.Module) and names.get(id(block)) for block in blocks):
        raise JobError(f"{kind}.{BLOCKS_METHOD}() must return a list of submodules of the model, in running order")
    if len({id(block) for block in blocks}) < len(blocks):
        raise JobError(f"{kind}.{BLOCKS_METHOD}() lists a submodule twice; a block may run once only")
    return [(names[id(block)], block) for block in blocks]


def place(node: fx.Node, root: nn.Module) -> str:
    """How to name a node to the model's author."""
    if node.op == "placeholder":
        return "the input batch"
    if node.op == "call_module":
        return f"layer {node.target!r} ({type(root.get_submodule(str(node.target))).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    around = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f"operation {name.strip('_')!r} in " + (f"module {around[-1]!r}" if around else "the model's forward")


def tensors_of(node: fx.Node, root: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers that a node uses by itself, by qualified name."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        return [(f"{node.target}.{name}", tensor) for name, tensor in named]
    attributes = [source for source in node.all_input_nodes if source.op == "get_attr"]
    found = [(str(source.target), attribute(root, str(source.target))) for source in attributes]
    return [(name, value) for name, value in found if isinstance(value, Tensor)]


def attribute(root: nn.Module, target: str) -> object:
    prefix, _, name = target.rpartition(".")
    return getattr(root.get_submodule(prefix), name)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # so that what forward computes from a buffer is in the graph, not done once

    def __init__(self, whole: Sequence[nn.Module]) -> None:
        super().__init__()
        self._whole = {id(module) for module in whole}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._whole or super().is_leaf_module(m, module_qualified_name)


def _text(node: fx.Node) -> str:
    """What a node does; constants are numbered anew in every trace."""
    return re.sub(r"_tensor_constant\d+", "constant", str(node.format_node()))


def _is_traceable(module: nn.Module) -> bool:
    try:
        fx.Tracer().trace(module)
    except MODEL_BUGS:
        return False
    return True
