"""The registry of models by name, and how a user's own function becomes a model.

Invariant: what ``build_model`` returns is a plain module; its tensor names are those of the architecture's own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

from p2ptrain.config import Job
from p2ptrain.errors import JobError
from p2ptrain.learning.models import mobilenetv2, resnet
from p2ptrain.learning.models.alexnet import AlexNet
from p2ptrain.learning.models.bert import BERT
from p2ptrain.learning.models.dscnn import DSCNN
from p2ptrain.learning.models.gpt import GPT
from p2ptrain.learning.models.layers import InputShape
from p2ptrain.learning.models.lenet import LeNet
from p2ptrain.learning.models.mobilenetv2 import MobileNetV2
from p2ptrain.learning.models.resnet import ResNet
from p2ptrain.learning.models.vgg import VGG
from p2ptrain.learning.own.building import READS_TOKENS, build_own, seeded

__all__ = ["MODELS", "TEXT_MODELS", "InputShape", "build_model", "current_names", "global_model"]

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


def current_names(model: str, names: Iterable[str]) -> dict[str, str]:
    """By the names that a harvested model's tensors (or layers) had when it was written, those that they have now."""
    names = list(names)
    if model in ("resnet18", "resnet20") and any(name.startswith(("stem.", "blocks.")) for name in names):
        return {name: resnet.current_name(name, 2 if model == "resnet18" else 3) for name in names}
    if model == "mobilenetv2" and any(name.startswith("features.20.") for name in names):
        return {name: mobilenetv2.current_name(name) for name in names}
    return {name: name.replace("_orig_mod.", "") for name in names}  # of models that were given compiled


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
        return build_own(name, arguments, seed)
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise JobError(f"model {name!r} is not known; use one of {known}, or your own as 'package.module:function'")
    with seeded(seed):
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
    model = build_model(
        name,
        input_shape=(channels, height, width),
        num_classes=len(job.data.classes),
        width=job.model.width,
        seed=job.seed,
    )
    if ":" in name and job.data.kind == "text":
        setattr(model, READS_TOKENS, True)
    return model
