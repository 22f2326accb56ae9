"""A freshly initialised model of which only some tensors exist: the others stay on the meta device.

Invariant: the tensors that exist are, bit for bit, those that building the whole model gives. The random numbers of the
others are drawn as well, one tensor at a time, and dropped.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from p2ptrain.errors import JobError

FACTORIES = frozenset({"empty", "empty_strided", "zeros", "ones", "full", "eye"})
RANDOM = torch.Tag.nondeterministic_seeded
"""What torch says of operations that draw random numbers."""
META = torch.device("meta")
_DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]


def partial_model(build: Callable[[], nn.Module], names: Collection[str]) -> nn.Module:
    """What ``build`` returns, with only the named parameters and buffers off the meta device.

    ``build`` must give the same weights whenever it is called, as ``build_model`` does with a seed. Where it makes
    tensors in a way that can't be followed, it is called once more in full, and the other tensors are dropped then.
    """
    with contextlib.suppress(RuntimeError, NotImplementedError, JobError):  # code that looks at its numbers, or mixes
        first, watch = _Building(frozenset()), _RealConstants()
        tensors = named_tensors(_build(build, first, watch))
        if watch.meta_is_named:  # what is drawn on that device costs no random numbers
            return _dropped(build(), names)
        made = {name: first.made.get(_storage(tensors[name])) for name in names if tensors[name].is_meta}
        if None not in made.values():
            model = _build(build, _Building(frozenset(i for i in made.values() if i is not None)), _RealConstants())
            built = named_tensors(model)
            if not any(built[name].is_meta for name in names):
                return model
    return _dropped(build(), names)


def without_numbers(build: Callable[[], nn.Module]) -> tuple[nn.Module, bool]:
    """What ``build`` returns, on the meta device; no random numbers are drawn for it. And whether its code named that
    device itself: then it may be there when it is built in full, too."""
    watch = _RealConstants()
    return _build(build, contextlib.nullcontext(), watch), watch.meta_is_named


def blank_model(model: nn.Module, names: Collection[str]) -> nn.Module | None:
    """A copy of ``model`` with the named tensors on the CPU and without values; the others are the very same.

    None where a module keeps tensors beside its parameters and buffers: nobody would give those their values.
    """
    tensors = named_tensors(model)
    wanted = {id(tensors[name]) for name in names}
    memo: dict[int, Any] = {}
    for tensor in tensors.values():
        fresh = torch.empty_like(tensor, device="cpu") if id(tensor) in wanted else tensor
        is_parameter = fresh is not tensor and isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
    if any(_holds_tensors(value) for module in model.modules() for value in vars(module).values()):
        return None
    return copy.deepcopy(model, memo)


def _holds_tensors(value: object) -> bool:
    """One that is no parameter and no buffer: those are in tables of their own."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(each, Tensor) for each in value)
    return isinstance(value, Tensor)


class _Building(TorchDispatchMode):
    """Counts the tensors that are made on the meta device, and makes those with the wanted numbers on the CPU."""

    def __init__(self, wanted: frozenset[int]) -> None:
        super().__init__()
        self.made: dict[int, int] = {}
        """By storage: the number of the tensor that was made with it."""
        self._wanted = wanted
        self._num_made = 0
        self._alive: list[Tensor] = []  # so that no storage's address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_random = RANDOM in func.tags
        if is_random and any(isinstance(each, Tensor) and each.is_meta for each in args):
            return _drawn_for_nothing(func, args, kwargs)
        if kwargs.get("device") != META or not (is_random or func.overloadpacket.__name__ in FACTORIES):
            return func(*args, **kwargs)
        number, self._num_made = self._num_made, self._num_made + 1
        wanted = number in self._wanted
        if wanted or is_random:
            kwargs["device"] = torch.device("cpu")
        tensor = func(*args, **kwargs)
        tensor = tensor if wanted else tensor.to(META)
        self.made[_storage(tensor)] = number
        self._alive.append(tensor)
        return tensor


def _drawn_for_nothing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Draw as many random numbers as for tensors that exist, and leave those on the meta device without any."""
    real = [torch.zeros_like(each, device="cpu") if isinstance(each, Tensor) else each for each in args]
    drawn = func(*real, **kwargs)
    if not isinstance(drawn, Tensor):
        raise NotImplementedError(str(func))
    return args[0] if drawn is real[0] else drawn.to(META)


class _RealConstants(TorchFunctionMode):
    """What is made of numbers in the code is made on the CPU: small, and often looked at while a model is built. What
    goes to the CPU has no numbers to take there, and would be there already in a full build."""

    made = frozenset({torch.tensor, torch.as_tensor, torch.scalar_tensor, torch.arange, torch.linspace, torch.logspace})

    def __init__(self) -> None:
        super().__init__()
        self.meta_is_named = False
        """Whether code asked for that device by itself, and not for that of another tensor: as far as one can see. Text
        made of another tensor's device counts, and so does ``Module.to``, which reads it anew."""
        self._asked: list[object] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            self._asked.append(device := func(*args, **kwargs))
            return device
        # What is around this comes later.
        named = [each for each in (*args, kwargs.get("device")) if _kind(each) == META.type]
        self.meta_is_named |= any(all(each is not asked for asked in self._asked) for each in named)
        if func in self.made and kwargs.get("device") is None:
            kwargs["device"] = torch.device("cpu")
        if func in (Tensor.to, Tensor.cpu) and args[0].is_meta:
            args = tuple(META if _kind(each) == "cpu" else each for each in args)
            kwargs |= {"device": META} if _kind(kwargs.get("device")) == "cpu" else {}
            return args[0] if func == Tensor.cpu else func(*args, **kwargs)
        return func(*args, **kwargs)


def _kind(value: object) -> str:
    """Of the device that it names; "" if it names none."""
    return value.type if isinstance(value, torch.device) else value.partition(":")[0] if isinstance(value, str) else ""


def _build(
    build: Callable[[], nn.Module], building: contextlib.AbstractContextManager[Any], watch: _RealConstants
) -> nn.Module:
    with META, watch, building:
        return build()


def _dropped(model: nn.Module, names: Collection[str]) -> nn.Module:
    for prefix, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            if f"{prefix}.{short}".lstrip(".") not in names:
                setattr(module, short, nn.Parameter(parameter.detach().to(META), parameter.requires_grad))
        for short, buffer in module.named_buffers(recurse=False):
            if f"{prefix}.{short}".lstrip(".") not in names:
                setattr(module, short, buffer.to(META))
    return model


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have, those included that are no part of the state."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
