"""Which tensors are alive where in a traced model, and so where it may be cut.

The nodes that compute are numbered in the order in which they run; *place* p lies after node p. Everything is run once
with two batch sizes, on the meta device if the code allows it, and each node's outputs are kept.

Invariant: at a place without an ``obstacle`` the nodes after it need nothing of those before it but the tensors that
``crossing`` names, and the gradients of these are all that the nodes before it need of those after it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.blocks.tracing import place, tensors_of
from p2ptrain.learning.models import MODEL_BUGS

BATCHES = (2, 3)  # two, so that a size that is not the batch's shows


class RunFailed(JobError):
    """The model does not run on batches of the job's shape, or not on the meta device."""


class Dataflow:
    """Of one traced model. Raises ``RunFailed`` if it can't be run on batches of this shape."""

    def __init__(self, traced: fx.GraphModule, input_shape: Sequence[int], dtype: torch.dtype) -> None:
        self.root = traced
        self.attributes = [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
        self.nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
        self._index = {node: index for index, node in enumerate(self.nodes)}
        self._inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        (self._output,) = (node for node in traced.graph.nodes if node.op == "output")
        if len(self._output.all_input_nodes) != 1 or self._output.args[0] not in self._index:
            raise JobError("the model must return one tensor: the logits")
        self.tensors = {node: tensors_of(node, traced) for node in self.nodes}
        """Parameters and buffers that each node uses, by name."""
        self._ties = self._find_ties()
        self._runs = [_run(traced, input_shape, batch, dtype) for batch in BATCHES]

    @property
    def last(self) -> int:
        """The place after the last node, where the output is all that is left."""
        return len(self.nodes) - 1

    def crossing(self, after: int) -> list[fx.Node]:
        """The nodes up to a place whose values are needed after it, in running order; at the last place, the output."""
        if after == self.last:
            return [self._output.all_input_nodes[0]]
        if after < 0:
            return [node for node in self._inputs if node.users]
        candidates = [*self._inputs, *self.nodes[: after + 1]]
        return [n for n in candidates if any(self._index.get(user, self.last + 1) > after for user in n.users)]

    def value(self, node: fx.Node) -> Any:
        """What the node put out for the first batch."""
        return self._runs[0].values[node]

    def num_bytes(self, after: int) -> int:
        """Of all tensors that cross, for the first batch."""
        return sum(self.value(n).numel() * self.value(n).element_size() for n in self.crossing(after))

    def obstacle(self, after: int, max_tensors: int) -> str | None:
        """Why a place is no cut; ``None`` if it is one."""
        alive = self.crossing(after)
        where = f"after {place(self.nodes[after], self.root)}"
        for node in alive:
            values = [run.values[node] for run in self._runs]
            if not isinstance(values[0], Tensor):
                what = "a number" if isinstance(values[0], int | float) else f"a {type(values[0]).__name__}"
                return f"{what} from {place(node, self.root)} is needed both before and {where}"
        if len(alive) > max_tensors:
            origins = [place(node, self.root) for node in alive]
            listed = f"{', '.join(origins[:-1])} and {origins[-1]}"
            return f"{len(alive)} tensors cross {where} (those of {listed}), and at most {max_tensors} may"
        for node in alive:
            values = [run.values[node] for run in self._runs]
            if not values[0].is_floating_point():
                return f"{where} whole numbers cross, which have no gradient"
            if any(v.dim() < 1 or v.shape[0] != batch for v, batch in zip(values, BATCHES, strict=True)):
                return f"{where} a tensor of shape {list(values[0].shape)} crosses that does not begin with the batch"
        storages = {_storage(self.value(node)) for node in alive}
        for writer, storage in self._runs[0].writes:
            if storage in storages and self._index[writer] > after:
                return f"{place(writer, self.root)} writes in place to what crosses {where}"
        for first, last, names in self._ties:
            if first <= after < last:
                both = f"tensors {names[0]!r} and {names[1]!r} are one and the same and are used"
                return f"{both if names[0] != names[1] else f'tensor {names[0]!r} is used'} on both sides {where}"
        return None

    def has_weights(self, node: fx.Node) -> bool:
        """Whether it has trained matrices or kernels; norms have vectors only."""
        return any(tensor.dim() > 1 and isinstance(tensor, nn.Parameter) for _, tensor in self.tensors[node])

    def subgraph(self, before: int, last: int) -> tuple[fx.Graph, list[str]]:
        """The nodes after one place up to another as a graph of their own, and the attributes that it refers to."""
        graph, copies, targets = fx.Graph(), {}, []
        for node in self.crossing(before):
            copies[node] = graph.placeholder(node.name)
        for node in self.nodes[before + 1 : last + 1]:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in copies:
                    copies[source] = graph.node_copy(source)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        targets = [str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")]
        outputs = [copies[node] for node in self.crossing(last)]
        graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        graph.lint()
        return graph, targets

    def _find_ties(self) -> list[tuple[int, int, tuple[str, str]]]:
        """(first node, last node, names there) of every tensor that several nodes use."""
        uses: dict[int, list[tuple[int, str]]] = {}
        for index, node in enumerate(self.nodes):
            for name, tensor in self.tensors[node]:
                uses.setdefault(id(tensor), []).append((index, name))
        return [(own[0][0], own[-1][0], (own[0][1], own[-1][1])) for own in uses.values() if own[-1][0] > own[0][0]]


def graph_of_blocks(
    model: nn.Module, blocks: Sequence[tuple[str, nn.Module]], input_shape: Sequence[int], dtype: torch.dtype
) -> fx.GraphModule:
    """The graph that runs the given submodules one after the other, a node each."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    value: Any = torch.zeros(BATCHES[0], *input_shape, dtype=dtype, device=device)
    for name, block in blocks:
        try:
            with torch.no_grad():
                value = block(*value) if isinstance(value, tuple) else block(value)
        except MODEL_BUGS as error:
            raise _fails(f"block {name!r} ({type(block).__name__})", input_shape, error) from error
        node = graph.call_module(name, tuple(nodes))
        nodes = [node]
        if isinstance(value, tuple | list):
            value = tuple(value)
            nodes = [graph.call_function(operator.getitem, (node, index)) for index in range(len(value))]
    graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes))
    return fx.GraphModule(model, graph, type(model).__name__)


class _Run(fx.Interpreter):
    """Runs a graph, and notes what each node put out and which tensors it wrote to."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.extra_traceback = False
        self.values: dict[fx.Node, Any] = {}
        self.writes: list[tuple[fx.Node, int]] = []
        self.device = next((t.device for t in traced.parameters()), torch.device("cpu"))

    def run_node(self, n: fx.Node) -> Any:
        read = [v for v in (self.values.get(source) for source in n.all_input_nodes) if isinstance(v, Tensor)]
        versions = [tensor._version for tensor in read]
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            value = value.to(self.device)  # a constant of the code
        for tensor, version in zip(read, versions, strict=True):
            if tensor._version != version:
                self.writes.append((n, _storage(tensor)))
        self.values[n] = value
        return value


def _run(traced: fx.GraphModule, input_shape: Sequence[int], batch: int, dtype: torch.dtype) -> _Run:
    run = _Run(traced)
    try:
        with torch.no_grad(), torch.device(run.device):
            run.run(torch.zeros(batch, *input_shape, dtype=dtype))
    except MODEL_BUGS as error:
        where = place(next(reversed(run.values)), traced) if run.values else "its input"
        raise _fails(f"{type(traced).__name__}, after {where},", input_shape, error) from error
    return run


def _fails(what: str, input_shape: Sequence[int], error: Exception) -> RunFailed:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RunFailed(
        f"the model's {what} fails on batches of samples of shape {list(input_shape)}: {reason}; correct the model or "
        "the job's input shape"
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
