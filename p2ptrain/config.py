"""What a group trains: the job, read from TOML, checked, and named by a hash of its content.

Invariant: two peers with equal ``Job.id`` train the same thing. So the hash covers every field that changes the
result, the canonical JSON form of a job is the only thing that travels, and a job that came from the network passes
the same checks as one from a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from p2ptrain.errors import JobError
from p2ptrain.ids import JobId

DataKind = Literal["image", "audio", "text"]
Mode = Literal["tasks", "replicas", "slices"]
"""What a plan can be of."""
JobMode = Literal["auto", "tasks", "replicas", "slices"]
"""auto: the group takes tasks or replicas, when it makes its first plan."""
Targets = Literal["auto", "all", "rest", "own"]
Combine = Literal["auto", "own", "sum"]
Calibrate = Literal["auto", "always", "never"]
Compression = Literal["none", "fp16", "int8", "topk"]
Coding = Literal["none", "fp16", "int8"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
Schedule = Literal["sync", "async"]
Optimizer = Literal["sgd", "adamw"]
Strategy = Literal["planned", "equal", "data-parallel"]

MAX_CLASSES = 4096
MAX_JOB_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The global model. ``name`` is a built-in model or ``package.module:function``."""

    name: str = "lenet"
    width: float = 1.0
    init: str = ""
    """sha256 of a ``.safetensors`` checkpoint to start from ("" = random from the seed); a path in a job file."""
    init_bytes: int = 0
    """Its size; filled in with the hash."""


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """How recordings become log-mel images: ``[1, num_mels, num_frames]``."""

    sample_rate: int = 8000
    seconds: float = 1.0
    window_s: float = 0.032
    hop_s: float = 0.016
    num_mels: int = 40


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The data contract: class names in order, input shape ``(channels, height, width)``, normalisation per channel."""

    classes: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = ()
    kind: DataKind = "image"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: bool = False
    """Random crops and flips (images) or shifts (audio) while training."""
    audio: AudioConfig = field(default_factory=AudioConfig)
    val: float = 0.1
    """Share of the training samples held out for validation, where the data set has no validation split of its own; 0 =
    none."""


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


@dataclass(frozen=True, slots=True)
class TasksConfig:
    """Class sub-models. ``num_groups`` 0 = one group a peer, as many as are there when the first plan is made."""

    num_groups: int = 0
    trunk: int = 0
    targets: Targets = "auto"
    combine: Combine = "auto"
    own_fraction: float = 0.0
    """Share of each batch drawn from the sub-model's own classes; 0 = as the data fall."""
    calibrate: Calibrate = "auto"
    calibration_steps: int = 300
    passes: float = 1.0
    """Passes of a sub-model over the samples, in place of one of the whole model: at most those that are as much work.
    0 = that many, but a round ends early when the own validation samples say more bring nothing (``round_end``)."""


@dataclass(frozen=True, slots=True)
class SlicesConfig:
    """Depth slices: a batch passes the stages in ``micro_batches`` equal parts."""

    micro_batches: int = 8
    schedule: Schedule = "sync"
    """sync: gradients as on a single device; async: no flush between batches, older weights for a few of them."""
    strategy: Strategy = "planned"
    """Baselines: "equal" = as many blocks for every peer, in the order of their ids, but for a first one with samples;
    "data-parallel" = the whole model on every peer with samples."""
    activations: Coding = "none"
    """Compression of what goes from stage to stage, ..."""
    gradients: Coding = "none"
    """... and of what comes back."""
    replan_gain: float = 0.1
    """A running pipeline gives way to one that is predicted to be faster by more than this share."""
    snapshot_steps: int = 0
    """Batches from one snapshot to the next; 0 = a round."""


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """How the group runs: when the first plan is made, and how parameters travel."""

    min_peers: int = 2
    """The first plan waits for this many peers (then a settling time)."""
    settle_s: float = 3.0
    compression: Compression = "none"
    topk_fraction: float = 0.1
    custodians: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a group must agree on before it trains."""

    name: str = "job"
    mode: JobMode = "tasks"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    slices: SlicesConfig = field(default_factory=SlicesConfig)
    group: GroupConfig = field(default_factory=GroupConfig)

    @property
    def id(self) -> JobId:
        """Hash of the canonical form."""
        return JobId(hashlib.sha256(self.to_json().encode()).hexdigest()[:16])

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces. Equal jobs have equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def to_toml(self) -> str:
        """The job as a commented-free TOML file that ``load_job`` reads back to an equal job."""
        tables: list[tuple[str, dict[str, Any]]] = [("", {}), *_tables("", dataclasses.asdict(self))]
        lines: list[str] = []
        for title, values in tables:
            if title:
                lines.append(f"\n[{title}]")
            lines.extend(f"{key} = {_toml_value(value)}" for key, value in values.items())
        return "\n".join(lines).strip() + "\n"


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
    return json.dumps(value, ensure_ascii=False)  # TOML strings, booleans and numbers are written as JSON's


def load_job(path: Path) -> Job:
    """Read a job file. Errors name the file, the key and what was expected."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file; `p2ptrain job new` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise JobError(f"{path}: not a readable TOML job file ({error})") from None
    job = job_from_mapping(raw, where=str(path))
    if job.model.init and not _is_sha256(job.model.init):
        checkpoint = (path.parent / job.model.init).resolve()
        if not checkpoint.is_file():
            raise JobError(f"{path}: model.init: no such file: {checkpoint}")
        with checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = checkpoint.stat().st_size
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, init=digest, init_bytes=size))
    return job


def init_path(path: Path) -> Path | None:
    """The checkpoint that a job file names, if it names one by its path."""
    init = tomllib.loads(path.read_text(encoding="utf-8")).get("model", {}).get("init", "")
    return (path.parent / init).resolve() if init and not _is_sha256(init) else None


def job_from_json(text: str, where: str = "job from the group") -> Job:
    """Parse and check the canonical form, as it comes from the network."""
    if len(text) > MAX_JOB_BYTES:
        raise JobError(f"{where}: larger than {MAX_JOB_BYTES} bytes")
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise JobError(f"{where}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise JobError(f"{where}: not a table")
    return job_from_mapping(raw, where)


def job_from_mapping(raw: Mapping[str, Any], where: str) -> Job:
    """Build a job from nested tables, refusing unknown keys and wrong types, and check it as a whole."""
    job: Job = _build(Job, raw, where, "")
    if job.mode == "slices" and "val" not in raw.get("data", {}):  # as in files that are older than the key
        job = dataclasses.replace(job, data=dataclasses.replace(job.data, val=0.0))
    check_job(job, where)
    return job


def _build(cls: Any, raw: Mapping[str, Any], where: str, prefix: str) -> Any:
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            raise JobError(f"{where}: {prefix}{key}: unknown key; known here: {', '.join(sorted(known))}")
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


def check_job(job: Job, where: str = "job") -> None:
    """Check what types alone don't say. Raises ``JobError`` naming the key."""
    t, k, z, g, d = job.training, job.tasks, job.slices, job.group, job.data
    limits: list[tuple[str, float, float, float]] = [
        ("model.width", job.model.width, 0.01, 16),
        ("model.init_bytes", job.model.init_bytes, 0, 2**34),
        ("data.val", d.val, 0, 0.5),
        ("training.rounds", t.rounds, 1, 1_000_000),
        ("training.epochs_per_round", t.epochs_per_round, 0.001, 10_000),
        ("training.batch_size", t.batch_size, 1, 65_536),
        ("training.learning_rate", t.learning_rate, 1e-9, 100),
        ("training.momentum", t.momentum, 0, 0.9999),
        ("training.weight_decay", t.weight_decay, 0, 1),
        ("training.label_smoothing", t.label_smoothing, 0, 0.9),
        ("tasks.num_groups", k.num_groups, 0, MAX_CLASSES),
        ("tasks.trunk", k.trunk, 0, 1000),
        ("tasks.own_fraction", k.own_fraction, 0, 1),
        ("tasks.calibration_steps", k.calibration_steps, 1, 100_000),
        ("tasks.passes", k.passes, 0, 1000),
        ("slices.micro_batches", z.micro_batches, 1, 4096),
        ("slices.replan_gain", z.replan_gain, 0.01, 10),
        ("slices.snapshot_steps", z.snapshot_steps, 0, 1_000_000),
        ("group.min_peers", g.min_peers, 1, 1000),
        ("group.settle_s", g.settle_s, 0, 3600),
        ("group.topk_fraction", g.topk_fraction, 0.0001, 1),
        ("group.custodians", g.custodians, 0, 16),
    ]
    for key, value, low, high in limits:
        if not low <= value <= high:
            raise JobError(f"{where}: {key}: {value} is outside {low:g}..{high:g}")
    if not 2 <= len(d.classes) <= MAX_CLASSES:
        raise JobError(f"{where}: data.classes: expected 2 to {MAX_CLASSES} class names, got {len(d.classes)}")
    if len(set(d.classes)) != len(d.classes):
        raise JobError(f"{where}: data.classes: a class is named twice")
    if len(d.input_shape) != 3 or not all(1 <= n <= 4096 for n in d.input_shape):
        raise JobError(f"{where}: data.input_shape: expected [channels, height, width], got {list(d.input_shape)}")
    for key, values in (("mean", d.mean), ("std", d.std)):
        if len(values) != d.input_shape[0]:
            raise JobError(f"{where}: data.{key}: expected {d.input_shape[0]} numbers, one a channel")
    if any(s <= 0 for s in d.std):
        raise JobError(f"{where}: data.std: must be above zero")
    if job.mode == "slices":
        _check_micro_batches(t.batch_size, z.micro_batches, where)
        if d.val > 0:
            raise JobError(
                f"{where}: data.val: {d.val:g}, but a pipeline does not look at validation samples; set it to 0"
            )
    else:
        _check_tasks(job, where)
    if job.model.init and where == "job from the group" and not _is_sha256(job.model.init):
        raise JobError(f"{where}: model.init: not a sha256")


def _check_micro_batches(batch_size: int, num: int, where: str) -> None:
    if batch_size % num:
        below, above = batch_size // num * num, (batch_size // num + 1) * num
        raise JobError(
            f"{where}: training.batch_size: {batch_size} is not a multiple of slices.micro_batches = {num}; "
            f"take {f'{below} or {above}' if below else above}, or another number of micro-batches"
        )


def _check_tasks(job: Job, where: str) -> None:
    """What class sub-models ask of the data, and of each other's settings."""
    k, d = job.tasks, job.data
    if d.kind == "text" and job.mode == "tasks":
        raise JobError(
            f'{where}: mode: "tasks" divides a classifier of pictures or audio, and the data are text; use "replicas" '
            'or "slices"'
        )
    if d.kind == "text" and k.calibrate == "always":
        raise JobError(f'{where}: tasks.calibrate: it re-fits classifiers of pictures or audio, not text; use "auto"')
    if 0 < k.passes < 1:
        raise JobError(f"{where}: tasks.passes: {k.passes:g} is less than one pass; 0 = as many as bring something")
    if k.num_groups > len(d.classes):
        raise JobError(f"{where}: tasks.num_groups: {k.num_groups} groups for {len(d.classes)} classes")
    if k.combine == "sum" and k.targets in ("rest", "own"):
        raise JobError(f'{where}: tasks.combine: "sum" needs tasks.targets = "all"')


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
