"""What a group trains: the job, checked, and named by a hash of its content.

A job has the tables that all modes have, and a table of its mode's own: that mode's folder says what stands in it.
``modes.jobs`` reads jobs, and checks them.

Invariant: two peers with equal ``Job.id`` train the same thing. So the hash covers every field that changes the
result, and the canonical JSON form of a job is the only thing that travels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args

from p2ptrain.data_config import AudioConfig as AudioConfig
from p2ptrain.data_config import DataConfig as DataConfig
from p2ptrain.data_config import DataKind as DataKind
from p2ptrain.errors import JobError
from p2ptrain.ids import JobId
from p2ptrain.model_config import OF_THE_MODEL, is_own_code
from p2ptrain.model_config import ModelConfig as ModelConfig

Compression = Literal["none", "fp16", "int8", "topk"]
Robust = Literal["none", "clip", "trimmed-mean", "median"]
Coding = Literal["none", "fp16", "int8"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
Schedule = Literal["sync", "async"]
Optimizer = Literal["sgd", "adamw"]
Precision = Literal["fp32", "bf16"]
Strategy = Literal["planned", "equal", "data-parallel"]

MAX_CLASSES = 4096
MAX_JOB_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Local training of every peer. A round is ``epochs_per_round`` passes over the peer's own samples."""

    rounds: int = 10
    epochs_per_round: float = 1.0
    batch_size: int = 64
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    label_smoothing: float = 0.0
    warmup: float = 0.03
    """Share of all steps over which the learning rate rises from nearly zero."""
    clip: float = 5.0
    """Longer gradients are scaled down to this norm: it only meets the first steps and outliers. 0 = as they are."""
    precision: Precision = "fp32"
    """bf16: forward passes compute in bfloat16 on devices that have it. Parameters are float32 everywhere."""
    patience: int = 0
    """After so many looks at its whole model without more right answers the group ends its training; 0 = never."""
    look_every: int = 0
    """Rounds from one look at the group's whole model to the next, while it trains; 0 = as often as costs little."""
    proximal: float = 0.0
    """FedProx' mu: half of it times the squared distance from the round's first parameters is added to the loss."""
    loss: str = ""
    """``package.module:function`` of somebody's own, as are the next two; "" = cross-entropy."""
    own_schedule: str = ""
    own_optimizer: str = ""
    LATER_KEYS: ClassVar[tuple[str, ...]] = (
        *("warmup", "clip", "precision", "patience", "look_every", "proximal"),
        *("loss", "own_schedule", "own_optimizer"),
    )
    """With their defaults they are not part of a job's id, as ids are older than they."""

    @property
    def optimizer_name(self) -> str:
        """The own one's, where there is one."""
        return self.own_optimizer or self.optimizer

    @property
    def max_norm(self) -> float:
        """Of a gradient that is taken as it is."""
        return self.clip or math.inf


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """How the group runs: when the first plan is made, and how parameters travel."""

    min_peers: int = 2
    """The first plan waits for this many peers (then a settling time)."""
    settle_s: float = 3.0
    compression: Compression = "none"
    topk_fraction: float = 0.1
    replicas: int = 2
    """Peers that have a copy of each part, beside its trainer: others train it, or keep one. One of two or three."""
    robust: Robust = "clip"
    """How much one member's contribution may move what several members make: what is far from the others' counts less
    (clip), or a mean that leaves out extremes, which costs memory for more copies; none: all count as they come."""
    OLD_KEYS: ClassVar[Mapping[str, str]] = {"custodians": "replicas"}
    LATER_KEYS: ClassVar[tuple[str, ...]] = ("robust",)


@dataclass(frozen=True, slots=True)
class ModeTable:
    """What a job says of one mode alone: a frozen dataclass of plain values, each with a default."""

    TABLE: ClassVar[str] = ""
    """Its title in a job file."""
    OLD_KEYS: ClassVar[Mapping[str, str]] = {}
    """That older job files say, and what they are called now."""

    def check(self, job: Job, where: str) -> None:
        """Check what types alone don't say. Raises ``JobError`` naming the key.

        Tables of other modes than the job's are checked too, as far as their values alone are concerned.
        """


T = TypeVar("T", bound=ModeTable)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Everything a group must agree on before it trains."""

    name: str = "job"
    mode: str = "tasks"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tables: tuple[ModeTable, ...] = ()
    """Of modes, at most one each; one that is not here says nothing but its defaults."""
    group: GroupConfig = field(default_factory=GroupConfig)

    @property
    def own_code(self) -> tuple[str, ...]:
        """What of it is code of somebody's own, by name: each device has to allow it."""
        t = self.training
        parts = [t.loss, t.own_schedule, t.own_optimizer, self.data.transform]
        named = [name for name in parts if name and name not in OF_THE_MODEL]
        return tuple([self.model.name] * is_own_code(self.model.name) + named)

    @property
    def id(self) -> JobId:
        """Hash of the canonical form."""
        return JobId(hashlib.sha256(self.to_json().encode()).hexdigest()[:16])

    def __eq__(self, other: object) -> bool:
        """A table of defaults says as much as none."""
        return self.to_json() == other.to_json() if isinstance(other, Job) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_json())

    def table(self, kind: type[T]) -> T:
        """The mode's table of this class; its defaults if the job holds none."""
        return next((table for table in self.tables if isinstance(table, kind)), None) or kind()

    def with_table(self, table: ModeTable) -> Job:
        """The job with this table in place of the one of its class."""
        others = [each for each in self.tables if type(each) is not type(table)]
        return dataclasses.replace(self, tables=tuple(sorted([*others, table], key=lambda each: each.TABLE)))

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces. Equal jobs have equal text.

        Of modes' tables it holds what differs from the defaults: a mode that gets another key leaves other jobs alone.
        """
        changed = {table.TABLE: _changed(table) for table in self.tables}
        plain = self._plain({title: values for title, values in changed.items() if values})
        for title in ("model", "data", "training", "group"):
            default = type(getattr(self, title))()
            for key in default.LATER_KEYS:
                if plain[title][key] == getattr(default, key):
                    del plain[title][key]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def to_toml(self) -> str:
        """The job as a commented-free TOML file that ``load_job`` reads back to an equal job."""
        plain = self._plain({table.TABLE: dataclasses.asdict(table) for table in self.tables})
        tables: list[tuple[str, dict[str, Any]]] = [("", {}), *_tables("", plain)]
        lines: list[str] = []
        for title, values in tables:
            if title:
                lines.append(f"\n[{title}]")
            lines.extend(f"{key} = {_toml_value(value)}" for key, value in values.items())
        return "\n".join(lines).strip() + "\n"

    def _plain(self, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """With the modes' tables, which stand beside the others."""
        plain: dict[str, Any] = {}
        for name, value in dataclasses.asdict(dataclasses.replace(self, tables=())).items():
            plain |= tables if name == "tables" else {name: value}
        return plain


def _changed(table: ModeTable) -> dict[str, Any]:
    """What differs from the defaults."""
    values = dataclasses.asdict(table)
    return {each.name: values[each.name] for each in dataclasses.fields(table) if values[each.name] != each.default}


def _tables(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    nested = [(k, v) for k, v in values.items() if isinstance(v, dict)]
    out = [(prefix, plain)]
    for key, value in nested:
        out.extend(_tables(f"{prefix}.{key}" if prefix else key, value))
    return out


def _toml_value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return f"{value:.1f}"
    text = json.dumps(value, ensure_ascii=False)  # TOML strings, booleans and numbers are written as JSON's ...
    return text.replace("\x7f", "\\u007f")  # ... but for this one control character


Limits = Iterable[tuple[str, float, float, float]]
"""Key, value, and the least and the greatest that it may be."""


def check_limits(limits: Limits, where: str) -> None:
    """Raises ``JobError`` naming the first key whose value is beyond."""
    for key, value, low, high in limits:
        if not low <= value <= high:
            raise JobError(f"{where}: {key}: {value} is outside {low:g}..{high:g}")
