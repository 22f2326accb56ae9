"""``torchvision:NAME`` and ``timm:NAME``: classifiers of pictures, with weights drawn from the job's seed.

Invariant: nothing is downloaded, and a name is looked up in the package's own list before anything is called by it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import nn

from p2ptrain.errors import JobError
from p2ptrain.learning.data.source import Shape, closest
from p2ptrain.learning.own.blame import own_code

MADE_FOR = 224
"""Pixels a side, of most of these models."""
SMALL = 96
"""Below so many pixels a side, their first layers leave little for the others."""
_WITHOUT_AUX = ("googlenet", "inception_v3")
"""Of torchvision: models that give other outputs too while they train, unless told."""


def package(name: str, needed_by: str) -> ModuleType:
    """The package, imported. Raises ``JobError`` that says how to come by it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) and error.name == name else f" ({error})"
        raise JobError(f"{needed_by} needs {name}, which can't be imported here{reason}: pip install {name}") from None
    except (RuntimeError, OSError) as error:  # built for another torch
        raise JobError(
            f"{needed_by} needs {name}, which does not go with this torch ({str(error).splitlines()[0][:150]}): "
            "install the one that is made for it, as pytorch.org says"
        ) from None


def check_listed(name: str, known: Iterable[str], where: str) -> None:
    """Refuse a name that the package does not list. Raises ``JobError``."""
    listed = list(known)
    if name not in listed:
        raise JobError(f"{where} has no model {name[:80]!r}{closest(name, listed)}; it has {len(listed)} others")


def check(model: str) -> None:
    """Whether the installed package has such a model. Raises ``JobError``."""
    word, _, name = model.partition(":")
    if word == "timm":
        check_listed(name, package("timm", f"model {model}").list_models(), "timm")
    else:
        models = package("torchvision", f"model {model}").models
        check_listed(name, models.list_models(module=models), "torchvision")


def build(model: str, input_shape: Shape, num_classes: int) -> nn.Module:
    """With fresh weights. Raises ``JobError`` for what is not installed, not known, or not for such pictures."""
    check(model)
    word, _, name = model.partition(":")
    doing = f"model {model!r} can't be built for samples of shape {list(input_shape)}"
    with own_code(doing, advice="take another model, or another --input-shape"):
        if word == "timm":
            return _of_timm(name, input_shape, num_classes)
        return _of_torchvision(name, input_shape, num_classes)


def note(model: str, input_shape: Shape) -> str:
    """What to know of a model for pictures of this size, or ""."""
    if min(input_shape[1:]) >= SMALL:
        return ""
    instead = " The built-in resnet18 has a first layer for small ones." if model.endswith(":resnet18") else ""
    return (
        f"{model} is made for pictures of some {MADE_FOR} pixels a side; of {input_shape[1]} x {input_shape[2]} its "
        f"last layers see few.{instead or ' --input-shape makes them larger.'}"
    )


def _of_timm(name: str, input_shape: Shape, num_classes: int) -> nn.Module:
    timm: Any = package("timm", f"model timm:{name}")
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = {"img_size": tuple(input_shape[1:])} if getattr(settings, "fixed_input_size", False) else {}
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=input_shape[0], **sized
    )
    return model


def _of_torchvision(name: str, input_shape: Shape, num_classes: int) -> nn.Module:
    models: Any = package("torchvision", f"model torchvision:{name}").models
    channels, height, width = input_shape
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        if height != width:
            raise JobError(f"model torchvision:{name} takes square pictures, not {height} x {width}: --input-shape")
        options["image_size"] = height
    elif name.startswith("maxvit"):
        options["input_size"] = (height, width)
    elif name in _WITHOUT_AUX:
        options |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    if channels != 3:
        _take_channels(model, channels, name)
    return model


def _take_channels(model: nn.Module, channels: int, name: str) -> None:
    """Put a first convolution of so many channels in place of the one of three."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != 3 or layer.groups != 1:
                break
            fresh = nn.Conv2d(
                channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            parent, _, short = path.rpartition(".")
            setattr(model.get_submodule(parent), short, fresh)
            return
    raise JobError(
        f"model torchvision:{name} takes three channels, and the samples have {channels}: --input-shape 3,H,W makes "
        "colour of grey pictures"
    )
