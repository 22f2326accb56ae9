"""Which model a job trains: what the job says of it, and whose code its name stands for.

    lenet                        built in
    torchvision:resnet18         code of an installed package, by a name that this package itself lists
    timm:resnet18
    hf:BertForSequenceClassification
    package.module:function      somebody's own code

Invariant: a name is somebody's own code unless it is known to be none, so nothing new runs by accident.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

MAX_PATTERNS, MAX_PATTERN = 64, 200
INSTALLED = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}
"""By the word before the colon, the package that has such models."""

LIGHTNING_LOSS, LIGHTNING_OPTIMIZER = "lightning:training_step", "lightning:configure_optimizers"
"""As a job's loss and optimizer: methods of its model, which is allowed with it."""
OF_THE_MODEL = frozenset((LIGHTNING_LOSS, LIGHTNING_OPTIMIZER))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The global model. ``name``: built in, of an installed package, or ``package.module:function``."""

    name: str = "lenet"
    width: float = 1.0
    init: str = ""
    """sha256 of a ``.safetensors`` checkpoint to start from ("" = random from the seed); a path in a job file."""
    init_bytes: int = 0
    """Its size; filled in with the hash."""
    config: str = ""
    """Of a model of transformers: what it is built from, a JSON object of plain values."""
    freeze: tuple[str, ...] = ()
    """Layers that are not trained: names, or names with wildcards."""
    LATER_KEYS: ClassVar[tuple[str, ...]] = ("config", "freeze")
    """With their defaults they are not part of a job's id, as ids are older than they."""


def is_own_code(model: str) -> bool:
    """Whether a model's name is code of somebody's own, which runs only where it is allowed."""
    return ":" in model and package_of(model) == ""


def refused_code(names: Iterable[str], allowed: str) -> list[str]:
    """Of code of somebody's own, what may not run here. ``allowed``: names with commas between them."""
    return [name for name in names if name not in allowed.split(",")]


def flags_to_allow(names: Iterable[str], model: str) -> list[str]:
    """What lets such code run on a device, on its command line. ``model``: the job's, with an option of its own."""
    return [f"--allow-{'model' if name == model else 'code'} {name}" for name in names]


def package_of(model: str) -> str:
    """The package that a model's name is one of; "" for built-in ones, and for somebody's own."""
    word, colon, _ = model.partition(":")
    return INSTALLED.get(word, "") if colon else ""
