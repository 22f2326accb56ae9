"""What a group trains: the job, checked, and named by a hash of its content.

A job has the tables that all modes have, and a table of its mode's own: that mode's folder says what stands in it. So
whoever reads a job says which modes there are (``modes.jobs`` does).

Invariant: two peers with equal ``Job.id`` train the same thing. So the hash covers every field that changes the
result, the canonical JSON form of a job is the only thing that travels, and a job that came from the network passes
the same checks as one from a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from p2ptrain.data_config import AudioConfig as AudioConfig
from p2ptrain.data_config import DataConfig as DataConfig
from p2ptrain.data_config import DataKind as DataKind
from p2ptrain.errors import JobError
from p2ptrain.ids import JobId, is_sha256
from p2ptrain.model_config import MAX_PATTERN, MAX_PATTERNS, OF_THE_MODEL, is_own_code
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


class KnownMode(Protocol):
    """What is asked of a mode to read a job of it."""

    @property
    def config(self) -> type[ModeTable]: ...

    @property
    def old_names(self) -> Mapping[str, str]:
        """Names of modes and titles of tables that older job files say, and what they are called now."""
        ...


KnownModes = Mapping[str, KnownMode]
"""What is known of each mode, by the names that a job may say."""


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


def job_from_mapping(raw: Mapping[str, Any], where: str, modes: KnownModes) -> Job:
    """Build a job from nested tables, refusing unknown keys and wrong types, and check it as a whole."""
    raw = _renamed(raw, where, modes)
    mode = raw.get("mode", Job().mode)
    if not isinstance(mode, str) or mode not in modes:
        raise JobError(f"{where}: mode: {mode!r} is not one of {', '.join(modes)}")
    kinds = {each.config.TABLE: each.config for each in modes.values()}
    own = {each.name for each in dataclasses.fields(Job)} - {"tables"}
    _refuse_unknown(raw, own | kinds.keys(), where, "")
    job: Job = _build(Job, {key: value for key, value in raw.items() if key in own}, where, "")
    for title, kind in kinds.items():
        if title in raw:
            job = job.with_table(_convert(kind, raw[title], where, title))
    check_job(job, where, modes)
    return job


def _renamed(raw: Mapping[str, Any], where: str, modes: KnownModes) -> dict[str, Any]:
    """With the names of today."""
    names = {old: new for mode in modes.values() for old, new in mode.old_names.items()}
    tables = _with_new_names(raw, names, where, "")
    mode = tables.get("mode")
    return tables | {"mode": names[mode]} if isinstance(mode, str) and mode in names else tables


def _with_new_names(raw: Mapping[str, Any], names: Mapping[str, str], where: str, prefix: str) -> dict[str, Any]:
    for old, new in names.items():
        if old in raw and new in raw:
            raise JobError(
                f"{where}: {prefix}{old}: the old name of {prefix}{new}, which is there too; keep one of them"
            )
    return {names.get(key, key): value for key, value in raw.items()}


def _refuse_unknown(raw: Iterable[str], known: Collection[str], where: str, prefix: str) -> None:
    for key in raw:
        if key not in known:
            raise JobError(f"{where}: {prefix}{key}: unknown key; known here: {', '.join(sorted(known))}")


def _build(cls: Any, raw: Mapping[str, Any], where: str, prefix: str) -> Any:
    hints = get_type_hints(cls)
    raw = _with_new_names(raw, getattr(cls, "OLD_KEYS", {}), where, prefix)
    _refuse_unknown(raw, {f.name for f in dataclasses.fields(cls)}, where, prefix)
    values = {key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in raw.items()}
    return cls(**values)


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise JobError(f"{where}: {key}: expected a table")
        return _build(hint, value, where, f"{key}.")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise JobError(f"{where}: {key}: {value!r} is not one of {', '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise JobError(f"{where}: {key}: expected a list")
        return tuple(_convert(get_args(hint)[0], v, where, f"{key}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise JobError(f"{where}: {key}: expected {hint.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise JobError(f"{where}: {key}: {value} is not a finite number")
    if isinstance(value, str) and len(value) > 4096:
        raise JobError(f"{where}: {key}: longer than 4096 characters")
    return value


Limits = Iterable[tuple[str, float, float, float]]
"""Key, value, and the least and the greatest that it may be."""


def check_limits(limits: Limits, where: str) -> None:
    """Raises ``JobError`` naming the first key whose value is beyond."""
    for key, value, low, high in limits:
        if not low <= value <= high:
            raise JobError(f"{where}: {key}: {value} is outside {low:g}..{high:g}")


def check_job(job: Job, where: str, modes: KnownModes) -> None:
    """Check what types alone don't say. Raises ``JobError`` naming the key."""
    t, g, d = job.training, job.group, job.data
    limits = (
        ("seed", job.seed, 0, 2**63 - 1),
        ("model.width", job.model.width, 0.01, 16),
        ("model.init_bytes", job.model.init_bytes, 0, 2**34),
        ("data.val", d.val, 0, 0.5),
        ("data.white", d.white, 0, 2**32),
        ("data.vocabulary", d.vocabulary, 1 if d.kind == "tokens" else 0, 2**20 if d.kind == "tokens" else 0),
        ("training.rounds", t.rounds, 1, 1_000_000),
        ("training.epochs_per_round", t.epochs_per_round, 0.001, 10_000),
        ("training.batch_size", t.batch_size, 1, 65_536),
        ("training.learning_rate", t.learning_rate, 1e-9, 100),
        ("training.momentum", t.momentum, 0, 0.9999),
        ("training.weight_decay", t.weight_decay, 0, 1),
        ("training.label_smoothing", t.label_smoothing, 0, 0.9),
        ("training.warmup", t.warmup, 0, 0.9),
        ("training.clip", t.clip, 0, 1e6),
        ("training.proximal", t.proximal, 0, 1e3),
        ("training.patience", t.patience, 0, 1_000_000),
        ("training.look_every", t.look_every, 0, 1_000_000),
        ("group.min_peers", g.min_peers, 1, 1000),
        ("group.settle_s", g.settle_s, 0, 3600),
        ("group.topk_fraction", g.topk_fraction, 0.0001, 1),
        ("group.replicas", g.replicas, 0, 16),
    )
    check_limits(limits, where)
    for key, name in (
        *(("training.loss", t.loss), ("training.own_schedule", t.own_schedule)),
        *(("training.own_optimizer", t.own_optimizer), ("data.transform", d.transform)),
    ):
        if name and not is_own_code(name):
            raise JobError(
                f"{where}: {key}: {name[:80]!r}: expected a function of your own, as package.module:function"
            )
    if len(job.model.freeze) > MAX_PATTERNS or not all(0 < len(each) <= MAX_PATTERN for each in job.model.freeze):
        raise JobError(f"{where}: model.freeze: expected at most {MAX_PATTERNS} names of layers")
    if t.loss and t.label_smoothing:
        raise JobError(f"{where}: training.label_smoothing: is of cross-entropy, and training.loss is another; set 0")
    if d.transform and d.reads_tokens:
        raise JobError(f"{where}: data.transform: changes pictures and recordings, and the data are {d.kind}")
    if t.patience and not d.val:
        raise JobError(f"{where}: training.patience: needs validation samples, and data.val = 0 holds out none")
    if g.robust in ("trimmed-mean", "median") and g.compression == "topk":
        raise JobError(
            f'{where}: group.robust: "{g.robust}" needs whole copies, and group.compression = "topk" sends a part of '
            'each; use "clip", or another compression'
        )
    if not 2 <= len(d.classes) <= MAX_CLASSES:
        others = "; if other devices have more, name all with --classes cat,dog" if len(d.classes) == 1 else ""
        raise JobError(f"{where}: data.classes: expected 2 to {MAX_CLASSES} class names, got {len(d.classes)}{others}")
    if len(set(d.classes)) != len(d.classes):
        raise JobError(f"{where}: data.classes: a class is named twice")
    if len(d.input_shape) != 3 or not all(1 <= n <= 4096 for n in d.input_shape):
        what = f"[1, 1, {d.kind} in a sample]" if d.reads_tokens else "[channels, height, width]"
        raise JobError(f"{where}: data.input_shape: expected {what}, each from 1 to 4096, got {list(d.input_shape)}")
    for key, values in (("mean", d.mean), ("std", d.std)):
        if len(values) != d.input_shape[0]:
            raise JobError(f"{where}: data.{key}: expected {d.input_shape[0]} numbers, one a channel")
    if any(s <= 0 for s in d.std):
        raise JobError(f"{where}: data.std: must be above zero")
    if job.mode not in modes:
        raise JobError(f"{where}: mode: {job.mode!r} is not one of {', '.join(modes)}")
    if len({table.TABLE for table in job.tables}) != len(job.tables):
        raise JobError(f"{where}: tables: two of the same mode")
    own = job.table(modes[job.mode].config)
    for table in (own, *(each for each in job.tables if each is not own)):
        table.check(job, where)
    if job.model.init and where == "job from the group" and not is_sha256(job.model.init):
        raise JobError(f"{where}: model.init: not a sha256")
