"""The registry of models by name, and how a user's own function becomes a model.

Invariant: what ``build_model`` returns is a plain module; its tensor names are those of the architecture's own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

from p2ptrain.config import DataConfig, Job
from p2ptrain.errors import JobError
from p2ptrain.learning.installed import hugging_face, vision
from p2ptrain.learning.models import mobilenetv2, resnet
from p2ptrain.learning.models.alexnet import AlexNet
from p2ptrain.learning.models.bert import BERT
from p2ptrain.learning.models.dscnn import DSCNN
from p2ptrain.learning.models.freezing import freeze
from p2ptrain.learning.models.gpt import GPT
from p2ptrain.learning.models.layers import InputShape
from p2ptrain.learning.models.lenet import LeNet
from p2ptrain.learning.models.mobilenetv2 import MobileNetV2
from p2ptrain.learning.models.resnet import ResNet
from p2ptrain.learning.models.vgg import VGG
from p2ptrain.learning.own.building import READS_TOKENS, build_own, finished, seeded
from p2ptrain.model_config import is_own_code, package_of

__all__ = [
    "MODELS",
    "TEXT_MODELS",
    "InputShape",
    "build_model",
    "current_names",
    "global_model",
    "model_for",
]

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
    name: str,
    *,
    input_shape: InputShape,
    num_classes: int,
    width: float = 1.0,
    seed: int | None = None,
    vocabulary: int = 0,
    config: str = "",
) -> nn.Module:
    """A registered model, one of an installed package, or ``package.module:function`` called with those of the three
    arguments that it takes.

    ``vocabulary``: of token numbers; 0 = they are bytes. ``config``: what a model of transformers is built from.
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
    if is_own_code(name):
        return build_own(name, arguments, seed)
    if package_of(name):
        if width != 1:
            raise JobError(f"model.width: {width:g}, and models of {package_of(name)} have one width; set 1")
        with seeded(seed):
            if package_of(name) == "transformers":
                return finished(name, hugging_face.build(name, config, num_classes, padded=vocabulary > 0), input_shape)
            return finished(name, vision.build(name, input_shape, num_classes), input_shape)
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise JobError(f"model {name!r} is not known; use one of {known}, or your own as 'package.module:function'")
    if vocabulary and name in TEXT_MODELS:
        arguments["vocabulary"] = vocabulary
    with seeded(seed):
        return MODELS[name](**arguments)


def global_model(job: Job, *, allow_user_code: bool) -> nn.Module:
    """The job's model with its initial weights. A user's own code is only imported where this device allows it."""
    name = job.model.name
    if is_own_code(name) and not allow_user_code:
        raise JobError(
            f"the job's model is your group's own code ({name}), which would run on this device; look at it, put it on "
            f"the Python path, and start with --allow-model {name}"
        )
    check_reads(name, job.data)
    model = model_for(name, job.data, width=job.model.width, config=job.model.config, seed=job.seed)
    if job.model.freeze:
        freeze(model, job.model.freeze)
    return model


def model_for(name: str, data: DataConfig, *, width: float = 1.0, config: str = "", seed: int = 0) -> nn.Module:
    """A model of these classes and samples. A user's own code is called: ask first."""
    channels, height, side = data.input_shape
    model = build_model(
        name,
        input_shape=(channels, height, side),
        num_classes=len(data.classes),
        width=width,
        seed=seed,
        vocabulary=data.vocabulary,
        config=config,
    )
    if ":" in name and data.reads_tokens:
        setattr(model, READS_TOKENS, True)
    return model


def check_reads(name: str, data: DataConfig) -> None:
    """Refuse a model that is known to read other data. Raises ``JobError``."""
    if is_own_code(name):
        return
    if package := package_of(name):
        if (package == "transformers") != data.reads_tokens:
            what = "pictures" if package != "transformers" else "text"
            raise JobError(f"model {name} reads {what}, and the data are {data.kind}; take another model")
    elif name in MODELS:
        fitting = {"text": sorted(TEXT_MODELS), "tokens": ["bert_small"]}.get(data.kind)
        fitting = fitting or [each for each in MODELS if each not in TEXT_MODELS]
        if name not in fitting:
            raise JobError(f"model {name} can't read {data.kind} data; take one of {', '.join(fitting)}")
