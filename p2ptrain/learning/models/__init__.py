"""The registry of models by name, and how a user's own function becomes a model.

Invariant: what ``build_model`` returns is a plain module; its tensor names are those of the architecture's own layers.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from p2ptrain.config import Job
from p2ptrain.errors import JobError
from p2ptrain.learning.models.alexnet import AlexNet
from p2ptrain.learning.models.bert import BERT
from p2ptrain.learning.models.dscnn import DSCNN
from p2ptrain.learning.models.gpt import GPT
from p2ptrain.learning.models.layers import InputShape
from p2ptrain.learning.models.lenet import LeNet
from p2ptrain.learning.models.mobilenetv2 import MobileNetV2
from p2ptrain.learning.models.resnet import ResNet
from p2ptrain.learning.models.vgg import VGG

__all__ = ["MODELS", "TEXT_MODELS", "InputShape", "build_model", "global_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": partial(VGG, depth=11, batch_norm=False),
    "vgg11_bn": partial(VGG, depth=11, batch_norm=True),
    "vgg13": partial(VGG, depth=13, batch_norm=False),
    "vgg13_bn": partial(VGG, depth=13, batch_norm=True),
    "vgg16": partial(VGG, depth=16, batch_norm=False),
    "vgg16_bn": partial(VGG, depth=16, batch_norm=True),
    "resnet18": partial(ResNet, stages=(64, 128, 256, 512), blocks_per_stage=2),
    "resnet20": partial(ResNet, stages=(16, 32, 64), blocks_per_stage=3),
    "mobilenetv2": MobileNetV2,
    "dscnn": DSCNN,
    "bert_small": BERT,
    "gpt_mini": GPT,
}
TEXT_MODELS = frozenset({"bert_small", "gpt_mini"})
"""Those that read token numbers; the others read pictures and log-mels."""


# What a bug in a user's function raises; JobError passes through.
MODEL_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build_model(
    name: str, *, input_shape: InputShape, num_classes: int, width: float = 1.0, seed: int | None = None
) -> nn.Module:
    """A registered model, or ``package.module:function`` called with those of the three arguments that it takes.

    With a seed the initial weights are the same everywhere and torch's global generator stays as it was.
    """
    input_shape = tuple(int(size) for size in input_shape)  # type: ignore[assignment]
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise JobError(f"input shape {input_shape}: expected channels, height and width, each at least 1")
    if num_classes < 1:
        raise JobError(f"num_classes is {num_classes}: a model needs at least one class")
    if not 0 < width < float("inf"):
        raise JobError(f"width is {width}: it must be a number above 0; 1.0 is the original width")
    arguments = {"input_shape": input_shape, "num_classes": num_classes, "width": width}
    if ":" in name:
        return _build_own(name, arguments, seed)
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise JobError(f"model {name!r} is not known; use one of {known}, or your own as 'package.module:function'")
    with _seeded(seed):
        return MODELS[name](**arguments)


def global_model(job: Job, *, allow_user_code: bool) -> nn.Module:
    """The job's model with its initial weights. A user's own code is only imported where this device allows it."""
    name = job.model.name
    if ":" in name and not allow_user_code:
        raise JobError(
            f"the job's model is your group's own code ({name}), which would run on this device; look at it, put it on "
            f"the Python path, and start with --allow-model {name}"
        )
    if name in MODELS and (name in TEXT_MODELS) != (job.data.kind == "text"):
        fitting = sorted(TEXT_MODELS) if job.data.kind == "text" else [n for n in MODELS if n not in TEXT_MODELS]
        raise JobError(f"model {name} can't read {job.data.kind} data; take one of {', '.join(fitting)}")
    channels, height, width = job.data.input_shape
    return build_model(
        name,
        input_shape=(channels, height, width),
        num_classes=len(job.data.classes),
        width=job.model.width,
        seed=job.seed,
    )


def _build_own(name: str, arguments: dict[str, object], seed: int | None) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    with _working_directory_on_path():
        try:
            module = importlib.import_module(module_name)
        except (ImportError, SyntaxError, ValueError) as error:
            raise JobError(
                f"model {name!r}: module {module_name!r} can't be imported ({error}); start p2ptrain in the directory "
                f"that holds it, or install it, and see that `python -c 'import {module_name}'` works there"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise JobError(
                f"model {name!r}: module {module_name!r} ({module.__file__}) has no function {function_name!r}; "
                "define it there, or correct the name after the colon"
            )
        accepted = _accepted(name, function, arguments)
        with _seeded(seed):
            try:
                model = function(**accepted)
            except MODEL_BUGS as error:
                raise _failed(name, accepted, error) from error
    if not isinstance(model, nn.Module):
        raise JobError(
            f"model {name!r}: function {function_name!r} in {module_name!r} returned {type(model).__name__}; "
            "it must return a torch.nn.Module"
        )
    return model


def _accepted(name: str, function: Callable[..., object], arguments: dict[str, object]) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind is not p.VAR_POSITIONAL
        and (p.name not in arguments or p.kind is p.POSITIONAL_ONLY)
    ]
    if unknown:
        raise JobError(
            f"model {name!r}: the function needs {', '.join(unknown)}, which p2ptrain does not give; it gives "
            f"{', '.join(arguments)} by keyword, so give the others a default value"
        )
    return {p.name: arguments[p.name] for p in keywords if p.name in arguments}


def _failed(name: str, accepted: dict[str, object], error: Exception) -> JobError:
    given = ", ".join(f"{key}={value!r}" for key, value in accepted.items())
    return JobError(f"model {name!r} failed when called with ({given}): {type(error).__name__}: {error}; correct it")


@contextlib.contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerators' generators too
        yield
