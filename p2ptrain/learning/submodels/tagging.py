"""A run of a traced model on *tags*: integer tensors that say for every element which channel it carries.

Flatten, reshape, cat and the like are carried out on the tags by torch itself; element-wise operations and everything
that mixes channels join ids into classes that a split must not separate. So a residual add ties two layers together, a
norm group becomes one unit, and what mixes all channels shows itself as a single class.

Invariant: whatever runs without an error has recorded (or checked) the ids on every axis of every tensor it used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.blocks.tracing import place
from p2ptrain.learning.submodels.channels import NEXT_STEP, Channels
from p2ptrain.learning.submodels.kinds import CHANNEL_NORMS, CONVS, KINDS, name_of

BATCH = 2  # of the sample that shapes are taken from; two, so that a batch size written into the code shows
SHAPE = "shape"
"""In a node's ``meta``: of the tensor that it gives; other values have none."""


class Tagger(fx.Interpreter):
    """Runs a traced model on tags. Without ``kept`` it fills the channels in, with it it checks the narrowed model."""

    def __init__(self, traced: fx.GraphModule, channels: Channels, kept: Tensor | None) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.channels, self.kept = channels, kept
        self.node: fx.Node = next(iter(traced.graph.nodes))
        self.place = ""

    def tag(self) -> Tensor:
        """The logits' tags, [batch, classes]."""
        logits = self.run(None)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != BATCH:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise JobError(f"the model returns {shape} for a batch of {BATCH}; it must return logits [batch, classes]")
        if not torch.equal(logits[0], logits[1]):
            raise JobError("the model's logits depend on the place in the batch; " + NEXT_STEP)
        return logits

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        self.place = place(n, self.module)
        return super().run_node(n)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        shape = self.node.meta.get(SHAPE)
        if shape is None:
            if not args:
                raise JobError(f"the model's forward needs {target!r}; it must work with the input batch alone")
            return args[0]
        if self.kept is None:
            self.channels.inputs = self.channels.fresh(shape[1]).tolist()
        return self.spread(torch.tensor(self.channels.inputs[: shape[1]]), 1)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self.fetch_attr(target)
        if not isinstance(value, Tensor):
            return value
        if isinstance(value, nn.Parameter) or value.numel() > 1:
            # Held whole by everyone; what it touches must be in the trunk.
            if self.kept is None and target not in self.channels.axes:
                one = self.channels.fresh(1)
                self.channels.axes[target] = (None,) * value.dim()
                self.channels.unsplittable.append((one, f"tensor {target!r} is used without a layer of its own"))
                self.channels.modules[target] = one
            return self.channels.modules[target].expand(value.shape)
        self.channels.axes.setdefault(target, (None,) * value.dim())
        return 1.0

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        tags = args[0] if args else next(iter(kwargs.values()))
        if isinstance(module, (*CONVS, nn.Linear)) and "weight" not in dict(module.named_parameters(recurse=False)):
            raise JobError(
                f"{self.place} computes its weight from other tensors (as weight_norm, spectral_norm and prune do), "
                'which can\'t be divided into class sub-models; take it without, or train with mode = "replicas"'
            )
        if isinstance(module, CONVS):
            return self.convolve(target, module, tags)
        if isinstance(module, nn.Linear):
            return self.spread(self.dense(target, module, self.along(tags, -1), module.out_features), -1)
        if isinstance(module, (*CHANNEL_NORMS, nn.GroupNorm, nn.PReLU)):
            return self.normalise(target, module, tags)
        if isinstance(module, nn.LayerNorm | nn.LocalResponseNorm):
            hint = "use BatchNorm, or GroupNorm whose groups are few channels each"
            self.must_be_shared(target, module, tags, f"{self.place} normalises over channels ({hint})")
            return tags
        kind = KINDS.get(type(module).__name__)
        if kind is None or next(module.parameters(), None) is not None:
            raise JobError(
                f"{self.place} is of a kind that can't be divided into class sub-models; build it of Conv, Linear, "
                'BatchNorm or GroupNorm, activations and pooling, or train with mode = "replicas"'
            )
        if kind == "softmax":
            return self.mix(tags, [1 if getattr(module, "dim", 1) is None else getattr(module, "dim", 1)])
        return self.operate(kind, module, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.call(target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        method = "reshape" if target == "view" else target  # tags lie in memory in another order
        return self.call(lambda self_, *rest, **named: getattr(self_, method)(*rest, **named), args, kwargs)

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not _tensors(args) and not _tensors(kwargs):
            return self.operate("move", function, args, kwargs)  # arithmetic on sizes
        kind = KINDS.get(name_of(self.node))
        if kind is None:
            raise JobError(
                f"{self.place} can't be divided into class sub-models; use layers of torch.nn (Conv, Linear, "
                'BatchNorm, GroupNorm, activations, pooling) for it, or train with mode = "replicas"'
            )
        if kind in ("reduce", "softmax"):
            axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
            axes = range(args[0].dim()) if axes is None else axes
            axes = [axes] if isinstance(axes, int) else list(axes)
            mixed = self.mix(args[0], axes)
            if kind == "softmax":
                return mixed
            keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
            return mixed.amax(axes, keepdim=bool(keep))
        return self.operate(kind, function, args, kwargs)

    def operate(self, kind: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tags = _tensors(args) + _tensors(kwargs)
        try:
            if kind == "elementwise":
                first, *others = torch.broadcast_tensors(*tags)
                for other in others:
                    here, there = _once(first, other)
                    self.join(here, there)
                return first
            if kind == "spatial":
                return self.pool(tags[0])
            return function(*args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise JobError(
                f"{self.place} works with all channels only, not with a sub-model's ({error}): channel counts are "
                f"written into the code; use torch.flatten(x, 1), or x.size(1) in place of a number, or {NEXT_STEP}"
            ) from error

    # What layers do.

    def convolve(self, target: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, tags: Tensor) -> Tensor:
        consumed = self.along(tags, 1)
        num_in, num_out, num_groups = module.in_channels, module.out_channels, module.groups
        if num_groups == 1:
            return self.spread(self.dense(target, module, consumed, num_out), 1)
        if num_groups == num_in:  # depthwise: each channel stays itself, num_out // num_in times over
            made = consumed.repeat_interleave(num_out // num_in)
        elif self.kept is None:
            known = self.channels.created.get(target)
            made = self.channels.fresh(num_out) if known is None else known
            self.channels.created[target] = made
            for side in (consumed, made):  # a group of the convolution is a unit
                blocks = side.view(num_groups, -1)
                self.join(blocks, made.view(num_groups, -1)[:, :1].expand_as(blocks), mixing=True)
        else:
            made = self.keep(self.channels.created[target])
        self.bind(target, module, {"weight": (made, None), "bias": (made,)}, made)
        return self.spread(made, 1)

    def dense(self, target: str, module: nn.Module, consumed: Tensor, num_out: int) -> Tensor:
        """Record a layer that reads all channels and makes new ones; the ids of these."""
        known = self.channels.created
        if self.kept is None and target not in known:
            known[target] = self.channels.fresh(num_out)
        made = known[target] if self.kept is None else self.keep(known[target])
        self.bind(target, module, {"weight": (made, consumed), "bias": (made,)}, made)
        return made

    def normalise(self, target: str, module: nn.Module, tags: Tensor) -> Tensor:
        """BatchNorm and its like: a number per channel. GroupNorm: the same, and a norm group is a unit."""
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            self.must_be_shared(
                target, module, tags, f"{self.place} has one slope for all channels (give it one for each)"
            )
            return tags
        ids = self.along(tags, 1)
        if isinstance(module, nn.GroupNorm):
            size = module.num_channels // module.num_groups
            blocks = ids.view(-1, size)
            self.join(blocks, blocks[:, :1].expand_as(blocks), mixing=True)
        names = ("weight", "bias", "running_mean", "running_var")
        self.bind(target, module, {name: (ids,) for name in names}, ids)
        return tags

    def must_be_shared(self, target: str, module: nn.Module, tags: Tensor, why: str) -> None:
        if self.kept is None:
            ids = _once(tags)[0].unique()
            self.channels.unsplittable.append((ids, why))
            self.bind(target, module, {}, ids)

    # Bookkeeping.

    def bind(self, target: str, module: nn.Module, axes: dict[str, tuple[Tensor | None, ...]], made: Tensor) -> None:
        """Record (or check) the ids on the axes of a layer's tensors; axes after the given ones carry no channels."""
        if self.kept is None:
            if target not in self.channels.modules and isinstance(module, (*CONVS, nn.Linear)):
                self.channels.layers.append(target)
            self.channels.modules.setdefault(target, made)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for short, tensor in tensors:
            ids = (axes.get(short, ()) + (None,) * tensor.dim())[: tensor.dim()]
            recorded = self.channels.axes.get(f"{target}.{short}")
            if recorded is None:
                self.channels.axes[f"{target}.{short}"] = ids
                continue
            for new, old in zip(ids, recorded, strict=True):  # a second call, or the check
                if new is None or old is None:
                    continue
                if self.kept is None:
                    self.join(new, old)
                elif not self.same(target, new, self.keep(old)):
                    raise JobError(
                        f"{self.place} would get other channels in a sub-model than in the whole model: something "
                        f"before it reorders or cuts channels by number; {NEXT_STEP}"
                    )

    def same(self, target: str, new: Tensor, expected: Tensor) -> bool:
        """Same channels; in a later call of a shared layer, channels that were joined with the first call's."""
        graph: fx.Graph = self.module.graph  # type: ignore[assignment]
        if self.node is next(n for n in graph.nodes if n.op == "call_module" and n.target == target):
            return torch.equal(new, expected)
        return self.channels.roots(new) == self.channels.roots(expected)

    def keep(self, ids: Tensor) -> Tensor:
        assert self.kept is not None
        return ids[self.kept[ids]]

    def join(self, a: Tensor, b: Tensor, mixing: bool = False) -> None:
        if self.kept is None and self.channels.join(a, b) and mixing:
            self.channels.mixed.append((int(a.flatten()[0]), self.place))

    def mix(self, tags: Tensor, axes: Sequence[int]) -> Tensor:
        """Join what lies along the axes; every element gets the id of the first along them."""
        for axis in axes:
            if axis % tags.dim() == 0 and tags.shape[0] > 1:
                raise JobError(f"{self.place} mixes the samples of a batch; {NEXT_STEP}")
            if tags.shape[axis] == 1 or tags.stride(axis) == 0:
                continue
            once = _once(tags)[0]
            self.join(once, once.narrow(axis, 0, 1).expand_as(once), mixing=True)
            tags = tags.narrow(axis, 0, 1).expand_as(tags)
        return tags

    def along(self, tags: Tensor, axis: int) -> Tensor:
        """The ids along one axis, all others mixed."""
        axis %= tags.dim()
        mixed = self.mix(tags[:1], [other for other in range(tags.dim()) if other != axis])
        return mixed.movedim(axis, 0).flatten(1)[:, 0]

    def spread(self, ids: Tensor, axis: int) -> Tensor:
        """Tags of the node's full shape that carry these ids along one axis."""
        shape = list(self.node.meta[SHAPE])
        axis %= len(shape)
        shape[axis] = ids.numel()
        return ids.view([-1 if other == axis else 1 for other in range(len(shape))]).expand(shape)

    def pool(self, tags: Tensor) -> Tensor:
        shape: tuple[int, ...] = self.node.meta.get(SHAPE, ())
        source = next(a.meta[SHAPE] for a in self.node.all_input_nodes if SHAPE in a.meta)
        if len(shape) != len(source) or shape[1] != source[1]:
            raise JobError(f"{self.place} adds or removes channels; {NEXT_STEP}")
        mixed = self.mix(tags, range(2, tags.dim()))
        return mixed[(slice(None), slice(None), *([slice(0, 1)] * (tags.dim() - 2)))].expand(
            *tags.shape[:2], *shape[2:]
        )


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [t for v in values for t in _tensors(v)] if isinstance(values, list | tuple) else []


def _once(*tags: Tensor) -> list[Tensor]:
    """Tensors of one shape without the repeats that all of them have by expansion."""
    once = list(tags)
    for axis in range(tags[0].dim()):
        if all(t.stride(axis) == 0 for t in tags):
            once = [t.narrow(axis, 0, min(1, t.shape[axis])) for t in once]
    return once
