"""A model as a chain of blocks, and any run of blocks as a module of its own: a stage of a pipeline.

A place in the forward pass is a *cut* if one tensor crosses it (or a stated few), which begins with the batch, carries
gradients and is not written to later on, and if no parameter is used on both sides. Between two layers with weights
there may be several such places; the chain takes the one where the fewest bytes cross, the last of these if they are
equal: so norms, activations and pooling stay with the layer before them, and a residual block is one block.

What torch.fx can't trace needs a method ``pipeline_blocks()`` (see ``tracing.listed_blocks``), and is cut as it says.

Invariant: the slices of a chain, run one after the other, do what the whole model does, bit for bit, forward and
backward; each holds its tensors under the plain model's names, and no tensor is in two of them.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from p2ptrain.errors import JobError, LocalError, UserError
from p2ptrain.learning.blocks.dataflow import Dataflow, RunFailed, graph_of_blocks
from p2ptrain.learning.blocks.flops import meta_twin, sample_dtype
from p2ptrain.learning.blocks.partial import blank_model, named_tensors, partial_model, without_numbers
from p2ptrain.learning.blocks.tracing import ADVICE, attribute, listed_blocks, trace_chain
from p2ptrain.learning.own.blame import enough_memory
from p2ptrain.learning.own.building import refuse_blank
from p2ptrain.learning.own.outputs import flat_logits


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that crosses a cut: ``[batch, *shape]``."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Per sample."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """``name``: the module that its layers have in common. ``tensors``: what it holds of the model's state."""

    name: str
    tensors: tuple[str, ...]
    outputs: tuple[Crossing, ...]


def chain_of(build: Callable[[], nn.Module], input_shape: Sequence[int]) -> Chain:
    """The chain of the model that ``build`` makes, of which nothing is held but its shapes.

    Code that looks at its numbers while it builds the model is let have them; what looks at them in its forward pass,
    too, is held whole. Raises ``JobError``, also for a model that has no numbers when it is built in full.
    """
    try:
        model, is_named = without_numbers(build)
        if is_named:
            _refuse_blank(build)
        return Chain(model, input_shape)
    except JobError as error:
        first = error
    try:
        with enough_memory("the model"):
            model = build()
    except JobError:
        raise
    except UserError:  # there is no room to see whether numbers would help
        raise first from None
    refuse_blank(f"the model {type(model).__name__}", model)
    with contextlib.suppress(JobError):
        return Chain(meta_twin(model), input_shape)
    return Chain(model, input_shape)


def _refuse_blank(build: Callable[[], nn.Module]) -> None:
    """Build it in full to see: a stage would take what has no numbers for whatever lies in memory."""
    try:
        with enough_memory("the model"):
            model = build()
    except JobError:
        raise
    except UserError:
        return  # what there is no room for is not on the meta device
    refuse_blank(f"the model {type(model).__name__}", model)


class Chain:
    """The blocks of a model, first to last. The model is read, never changed, but for the mode (train, eval)
    of layers that slices share with it; it may be on the meta device.

    ``max_tensors``: so many tensors may cross a cut. Raises ``JobError`` where the model has no cut, and says why.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], *, max_tensors: int = 1) -> None:
        _refuse_computed(model)
        self.model = model
        self.input = Crossing(tuple(input_shape), sample_dtype(model))
        self.on_meta = True
        """Whether the blocks run on the meta device, as all do whose control flow doesn't hang on values."""
        twin = meta_twin(model)
        self._still = frozenset(name for name, module in twin.named_modules() if not module.training)
        """Modules that the model's own ``train`` leaves in eval mode, such as norms that are not to learn."""
        try:
            self._flow, cuts = self._analyse(twin, max_tensors)
        except RunFailed:
            if any(tensor.is_meta for tensor in model.parameters()):
                raise
            self.on_meta, twin = False, copy.deepcopy(model)
            twin.eval()
            self._flow, cuts = self._analyse(twin, max_tensors)
        self._bounds = [-1, *cuts, self._flow.last]
        self._constants = _constants(self._flow, model)
        state = tuple(twin.state_dict())
        self.blocks = tuple(
            self._block(index, before, last, state)
            for index, (before, last) in enumerate(zip(self._bounds, self._bounds[1:], strict=False))
        )
        held = set(self.tensor_names(0, len(self.blocks)))
        unused = [name for name in state if name not in held]
        if unused:
            raise JobError(
                f"tensor {unused[0]!r} of the model {type(model).__name__} takes no part in its forward pass under "
                "that name, so no block would hold it; remove it"
            )

    def tensor_names(self, first: int, stop: int) -> tuple[str, ...]:
        """What blocks ``first`` to ``stop - 1`` hold of the model's state."""
        return tuple(name for block in self.blocks[first:stop] for name in block.tensors)

    def inputs(self, index: int) -> tuple[Crossing, ...]:
        """What crosses to a block from the one before, or the input batch."""
        return self.blocks[index - 1].outputs if index else (self.input,)

    def slice(self, first: int, stop: int, source: nn.Module | None = None) -> fx.GraphModule:
        """Blocks ``first`` to ``stop - 1`` as a module: takes the tensors that cross before it, returns those after.

        It shares its tensors with ``source``: the chain's model by default, else one of the same architecture of which
        only these blocks need be off the meta device.
        """
        if not 0 <= first < stop <= len(self.blocks):
            raise LocalError(f"blocks {first} to {stop} of {len(self.blocks)}")
        source = self.model if source is None else source
        graph, targets = self._flow.subgraph(self._bounds[first], self._bounds[stop])
        values = {
            t: self._constants[t] if t in self._constants else self._of_its_own(t, attribute(source, t))
            for t in targets
        }
        module = fx.GraphModule(values, graph, f"Blocks{first}To{stop - 1}")
        state = source.state_dict().keys()
        for name, tensor in list(module.named_buffers()):
            if name not in state:  # what is no part of the model's state is no part of the slice's
                prefix, _, short = name.rpartition(".")
                module.get_submodule(prefix).register_buffer(short, tensor, persistent=False)
        for name, layer in module.named_modules():
            if name in self._still:
                layer.train = types.MethodType(_stays, layer)  # type: ignore[method-assign]
        return module.train(source.training)

    def build_slice(self, build: Callable[[], nn.Module], first: int, stop: int) -> fx.GraphModule:
        """A slice of the model that ``build`` makes, without ever holding the other blocks (see ``partial_model``)."""
        nodes = self._flow.nodes[self._bounds[first] + 1 : self._bounds[stop] + 1]
        used = {name for node in nodes for name, _ in self._flow.tensors[node]}
        module = self.slice(first, stop, partial_model(build, used & named_tensors(self.model).keys()))
        if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):  # a tensor that is no buffer
            return self.slice(first, stop, build())
        return module

    def blank_slice(self, first: int, stop: int) -> fx.GraphModule | None:
        """A slice whose tensors have no values yet, for weights that come from elsewhere: nothing is drawn for it.

        None where some tensors of these blocks are no part of the model's state, so that nobody would bring them.
        """
        names = set(self.tensor_names(first, stop))
        source = blank_model(self.model, names)
        module = self.slice(first, stop, source) if source is not None else None
        return module if module is not None and named_tensors(module).keys() <= names else None

    def _of_its_own(self, target: str, value: object) -> object:
        """A layer in which something stays in eval mode, apart from the model's, with the same tensors."""
        names = {f"{target}.{name}".rstrip(".") for name, _ in value.named_modules()} if _is_layer(value) else set()
        return _apart(value) if _is_layer(value) and names & self._still else value

    def _analyse(self, twin: nn.Module, max_tensors: int) -> tuple[Dataflow, list[int]]:
        shape, dtype = self.input.shape, self.input.dtype
        listed = listed_blocks(twin)
        if listed is None:
            flow = _with_flat_logits(trace_chain(twin), shape, dtype)
            return flow, _best_cuts(flow, max_tensors)
        flow = _with_flat_logits(graph_of_blocks(twin, listed, shape, dtype), shape, dtype)
        return flow, _listed_cuts(flow)

    def _block(self, index: int, before: int, last: int, state: Sequence[str]) -> Block:
        held = {name: t for node in self._flow.nodes[before + 1 : last + 1] for name, t in self._flow.tensors[node]}
        parameters = {name: tensor for name, tensor in held.items() if isinstance(tensor, nn.Parameter)}
        weights = [name for name, tensor in parameters.items() if tensor.dim() > 1] or list(parameters)
        layers = [name.rpartition(".")[0] for name in weights]
        name = _common(layers)
        values = [self._flow.value(node) for node in self._flow.crossing(last)]
        outputs = tuple(Crossing(tuple(value.shape[1:]), value.dtype) for value in values)
        return Block(name or (layers[0] if layers else f"block{index}"), tuple(n for n in state if n in held), outputs)


def _with_flat_logits(traced: fx.GraphModule, shape: Sequence[int], dtype: torch.dtype) -> Dataflow:
    """[N, classes, 1, 1] becomes [N, classes], as everywhere (``outputs.flat_logits``)."""
    flow = Dataflow(traced, shape, dtype)
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    logits = output.args[0]
    value = flow.value(logits)
    if not isinstance(value, Tensor) or flat_logits(value) is value:
        return flow
    with traced.graph.inserting_before(output):
        output.args = (traced.graph.call_method("flatten", (logits, 1)),)
    traced.recompile()
    return Dataflow(traced, shape, dtype)


def _stays(module: nn.Module, mode: bool = True) -> nn.Module:
    """``train`` of what is never trained itself, whatever is in it."""
    module.training = False
    for child in module.children():
        child.train(mode)
    return module


def _is_layer(value: object) -> TypeGuard[nn.Module]:
    return isinstance(value, nn.Module)


def _apart(layer: nn.Module) -> nn.Module:
    """Another object, and others within it, that hold the same tensors. Parametrized layers refuse ``copy.copy``."""
    twin: nn.Module = object.__new__(type(layer))
    twin.__dict__.update(vars(layer))
    twin._modules = {name: child if child is None else _apart(child) for name, child in layer._modules.items()}
    return twin


def _refuse_computed(model: nn.Module) -> None:
    """Blocks are copies, and what was computed from other tensors when a layer was built can't be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            is_made = f"{key}_orig" in module._parameters  # by a hook, before each forward pass
            if isinstance(value, Tensor) and (is_made or not value.is_leaf):
                raise JobError(
                    f"layer {name!r} ({type(module).__name__}) of {type(model).__name__} holds {key!r}, which "
                    "is computed from other tensors (as torch.nn.utils.weight_norm and spectral_norm do): no block can "
                    'be made of it; take torch.nn.utils.parametrizations instead, or train with mode = "replicas"'
                )


def _best_cuts(flow: Dataflow, max_tensors: int) -> list[int]:
    """One cut between two layers with weights, if there is any: the one with the fewest bytes, the last of equals."""
    weights = [flow.has_weights(node) for node in flow.nodes]
    best: dict[int, int] = {}
    obstacles: list[str] = []
    num_before, num_weights = 0, sum(weights)
    for after in range(flow.last):
        num_before += weights[after]
        if not 0 < num_before < num_weights:
            continue
        obstacle = flow.obstacle(after, max_tensors)
        if obstacle is not None:
            obstacles.append(obstacle)
        elif num_before not in best or flow.num_bytes(after) <= flow.num_bytes(best[num_before]):
            best[num_before] = after
    if not best:
        reason = min(obstacles, key=obstacles.count) if obstacles else f"it has {num_weights} layer(s) with weights"
        raise JobError(f"the model has no place to cut it: {reason}; {ADVICE}")
    return [best[key] for key in sorted(best)]


def _listed_cuts(flow: Dataflow) -> list[int]:
    """After every block of a list but the last. The author states how many tensors pass, so any number may.

    Blocks before the first weights, such as an ``nn.Flatten``, go with the next one: what they hand on are the samples.
    """
    starts = [index for index, node in enumerate(flow.nodes) if node.op == "call_module"]
    weighted = next((index for index, node in enumerate(flow.nodes) if flow.has_weights(node)), flow.last)
    cuts = [start - 1 for start in starts[1:] if start > weighted]
    for after in cuts:
        obstacle = flow.obstacle(after, max_tensors=len(flow.nodes))
        if obstacle is not None:
            raise JobError(f"the model can't be cut where its list of blocks says: {obstacle}; list these as one block")
    if not cuts:
        raise JobError("the model lists fewer than two blocks with weights, so it can't be cut; list at least two")
    return cuts


def _constants(flow: Dataflow, model: nn.Module) -> dict[str, Tensor]:
    """Tensors that the forward code writes down, by the names that tracing gave them."""
    found: dict[str, Tensor] = {}
    for target in flow.attributes:
        try:
            attribute(model, target)
        except AttributeError:
            value = attribute(flow.root, target)
            assert isinstance(value, Tensor)
            if value.is_meta:
                raise JobError(
                    f"the model's forward computes a constant of shape {list(value.shape)} from its own tensors in a "
                    f"way that can't be traced; keep it in a buffer (register_buffer), or {ADVICE}"
                ) from None
            found[target] = value
    return found


def _common(layers: Sequence[str]) -> str:
    """The module that all these are in."""
    levels = zip(*(layer.split(".") for layer in layers), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda names: len(set(names)) == 1, levels))
