"""A model's forward code as a torch.fx graph, or an error that names the line that stands in the way.

Invariant: a graph from ``trace_chain`` is the same in training and in eval mode; what differs between the two is up to
its layers. Nothing that forward finds anew in every call is written down in a graph once and for all: random numbers,
counts of calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.models import MODEL_BUGS
from p2ptrain.learning.own.blame import layer_of, where
from p2ptrain.learning.own.outputs import logits_of, own_hooks

BLOCKS_METHOD = "pipeline_blocks"
ADVICE = (
    "take control flow that depends on tensors out of that line, return an nn.Sequential, or give the model a method "
    f"{BLOCKS_METHOD}() that returns its submodules in the order in which they run"
)
_SIZES = (int, tuple, list, fx.Node)
"""What ``view`` is given for a shape; a dtype is another matter."""
_NEEDED_BY = "cutting it into blocks needs"


class AnewInEveryCall(JobError):
    """What a module computes hangs on more than its inputs and tensors."""

    def __init__(self, module: nn.Module, text: str) -> None:
        super().__init__(text)
        self.module = module


def trace(model: nn.Module, *, needed_by: str, advice: str, whole: Sequence[nn.Module] = ()) -> fx.GraphModule:
    """The traced model, which shares the model's tensors. ``whole``: submodules that become a single node each.

    Raises ``JobError`` with the line of the user's code that can't be traced.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise JobError(
            f"the model {type(model).__name__} is TorchScript, which torch.fx can't trace, and {needed_by} that; give "
            f"the model that it was made of, or {advice}"
        )
    if found := own_hooks(model):
        raise JobError(
            f"the model {type(model).__name__} has {found}, which tracing it would leave out, and it is traced, as "
            f"{needed_by.removesuffix(' needs')} needs it; do in forward what that does, or {advice}"
        )
    tracer = _Tracer(whole)
    numbers = _numbers(model)
    try:
        with contextlib.redirect_stdout(sys.stderr), _of_the_batch_alone(tracer, model), _no_lost_gradients():
            graph = tracer.trace(model)
        if tracer.drew_by is not None:
            raise AnewInEveryCall(
                tracer.drew_by,
                f"{_named(tracer.drew_by, model)} draws random numbers in a way that torch.fx can't trace, so each "
                "batch would get the same: numpy's, Python's, or torch's for a size that is written in the code; take "
                f"torch.rand_like(x) or functional.dropout, or {advice}",
            )
        if changed := [key for key, number in _numbers(model).items() if numbers.get(key, number) != number]:
            module = next(each for each in model.modules() if id(each) == changed[0][0])
            raise AnewInEveryCall(
                module,
                f"the forward of {_named(module, model)} changes {changed[0][1]!r}, a number that torch.fx would write "
                f"down as it is now; keep it in a buffer (register_buffer), or {advice}",
            )
        for node in list(graph.nodes):
            if node.op == "call_method" and node.target == "view" and isinstance(node.args[1], _SIZES):
                node.target = "reshape"  # the same, in any order of memory
            elif node.op in ("call_function", "call_method"):
                _on_its_own_device(graph, node)
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


@contextlib.contextmanager
def _of_the_batch_alone(tracer: fx.Tracer, model: nn.Module) -> Iterator[None]:
    """What else forward takes has its default, as it is never given here: another function is traced, which must be
    its class's. No class is made of that, as it may ask something of those."""
    kind, name = type(model), f"_forward_of_{id(model)}"

    def forward(self: nn.Module, x: Any) -> Any:
        return kind.forward(self, x)

    setattr(kind, name, forward)
    tracer.traced_func_name = name
    try:
        yield
    finally:
        delattr(kind, name)


@contextlib.contextmanager
def _no_lost_gradients() -> Iterator[None]:
    """Refuse functions with a gradient of their own: traced they would have that of what they are made of."""
    plain = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **options: Any) -> Any:
        if any(isinstance(each, fx.Proxy) for each in (*args, *options.values())):
            raise TypeError(
                f"{cls.__name__} has a gradient of its own; call it in the forward of a layer without weights"
            )
        return plain.__get__(None, cls)(*args, **options)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = plain  # type: ignore[method-assign]


def _on_its_own_device(graph: fx.Graph, node: fx.Node) -> None:
    """Where the code asks its own tensors for their device, which is written down as it is now: that of the input."""
    source = next(iter(node.all_input_nodes), None)
    found: list[object] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda each: found.append(each) if _is_device(each) else None)
    if source is None or not found:
        return
    with graph.inserting_before(node):
        device = graph.call_function(getattr, (source, "device"))
    node.args = fx.node.map_aggregate(node.args, lambda each: device if _is_device(each) else each)  # type: ignore[assignment, arg-type]
    node.kwargs = fx.node.map_aggregate(node.kwargs, lambda each: device if _is_device(each) else each)  # type: ignore[assignment, arg-type]


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device)


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
                name = layer_of(failed.__cause__ or failed, model)
                if not name and not isinstance(failed, AnewInEveryCall):
                    raise  # the model's own forward
                leaf = failed.module if isinstance(failed, AnewInEveryCall) else model.get_submodule(name)
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
        self._with_gradients = True
        self.drew_by: nn.Module | None = None
        """The innermost module whose forward has drawn random numbers while it was traced."""

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        before, self._with_gradients = _generators(), torch.is_grad_enabled()
        graph = super().trace(root, concrete_args)
        if self.drew_by is None and _generators() != before:
            self.drew_by = root
        return graph

    def create_node(self, *args: Any, **options: Any) -> fx.Node:
        if torch.is_grad_enabled() != self._with_gradients:
            raise TypeError("a trace does not keep no_grad(); take detach() after it, or freeze the layers in it")
        return super().create_node(*args, **options)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before = _generators()
        result = super().call_module(m, forward, args, kwargs)
        if self.drew_by is None and _generators() != before:
            self.drew_by = m
        return result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._whole or super().is_leaf_module(m, module_qualified_name)


def _generators() -> tuple[bytes, object, bytes]:
    """The states of torch's, Python's and numpy's."""
    numpys: Any = np.random.get_state(legacy=True)
    place = b"%d" % numpys[2] + numpys[1].tobytes()
    return torch.default_generator.get_state().numpy().tobytes(), random.getstate(), place


def _numbers(model: nn.Module) -> dict[tuple[int, str], int | float]:
    """Those that modules keep beside their tensors."""
    return {
        (id(module), key): value
        for module in model.modules()
        for key, value in vars(module).items()
        if type(value) in (int, float)
    }


def _named(module: nn.Module, model: nn.Module) -> str:
    name = next((name for name, each in model.named_modules() if each is module), "")
    return f"layer {name!r} ({type(module).__name__})" if name else f"the model {type(model).__name__}"


def _text(node: fx.Node) -> str:
    """What a node does; constants are numbered anew in every trace."""
    return re.sub(r"_tensor_constant\d+", "constant", str(node.format_node()))


def _is_traceable(module: nn.Module) -> bool:
    try:
        fx.Tracer().trace(module)
    except MODEL_BUGS:
        return False
    return True
