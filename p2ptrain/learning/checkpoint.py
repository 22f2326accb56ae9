"""The harvested model on disk: one ``.safetensors`` file that also works without p2ptrain.

The tensors carry the names of the plain module, so ``load_state_dict`` takes them as they are. What the numbers mean
rides along as metadata, each value a string (lists and tables as JSON).

Invariant: a file is whole or not there (written beside, synced, renamed), and nothing read from one runs code: a
user's own model function is called only by a caller who says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from p2ptrain.config import AudioConfig, DataConfig, DataKind, Job
from p2ptrain.errors import JobError, UserError
from p2ptrain.lasting import sync, sync_folder
from p2ptrain.learning.models import check_reads, current_names, model_for
from p2ptrain.learning.own.outputs import check_outputs
from p2ptrain.learning.snapshots import put_state, save_whole
from p2ptrain.model_config import is_own_code

FORMAT = "p2ptrain-model-1"
ATTRIBUTION = "attribution/"
"""Tensors with this prefix are scores of channels by class, not part of the module."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a file says of its model."""

    model: str
    width: float
    data: DataConfig
    job_id: str = ""
    lineage: tuple[Mapping[str, Any], ...] = ()
    """Who trained which part how far: a table for every part."""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: str = ""
    """What a model of transformers is built from."""
    seed: int = 0
    """That the model was built with: what its code draws beside its tensors is drawn again when it is loaded."""

    @property
    def completeness(self) -> str:
        """complete, half-way or incomplete, as the harvest found it; "" = an older file, which does not say."""
        return self.extra.get("completeness", "")


def save_model(path: Path, state: Mapping[str, Tensor], job: Job, extra: Mapping[str, object] | None = None) -> None:
    """Write the model, atomically. ``extra``: more metadata; values that are not strings are stored as JSON."""
    metadata = {
        "format": FORMAT,
        "model": job.model.name,
        "width": repr(job.model.width),
        "input_shape": json.dumps(job.data.input_shape),
        "classes": json.dumps(job.data.classes, ensure_ascii=False),
        "mean": json.dumps(job.data.mean),
        "std": json.dumps(job.data.std),
        "kind": job.data.kind,
        "audio": json.dumps(dataclasses.asdict(job.data.audio)),
        "white": json.dumps(job.data.white),
        "vocabulary": json.dumps(job.data.vocabulary),
        "config": job.model.config,
        "seed": str(job.seed),
        "job_id": job.id,
    }
    for key, value in (extra or {}).items():
        metadata[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    _write(path, {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in state.items()}, metadata)


def copy_with_classes(source: Path, target: Path, classes: Sequence[str]) -> None:
    """The same model in a file that says what its classes are called, in their order."""
    with safe_open(source, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    _write(target, tensors, {**metadata, "classes": json.dumps(classes, ensure_ascii=False)})


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            save_whole(tensors, name, metadata)
            with open(name, "r+b") as file:
                sync(file.fileno())
            with contextlib.suppress(OSError):  # a USB stick has no modes
                os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files private; a model is an ordinary file
            os.replace(name, path)
            with contextlib.suppress(OSError):  # nor can some network drives do this for folders
                sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise UserError(f"{path}: can't write the model ({error}); give a path on a disk with room for it") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], ModelCard]:
    """The tensors of the module, the attribution scores by layer (if any), and what the file says of itself."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `p2ptrain harvest` writes one") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error}); harvest or copy it again") from None
    scores = {n.removeprefix(ATTRIBUTION): t for n, t in tensors.items() if n.startswith(ATTRIBUTION)}
    state = {n: t for n, t in tensors.items() if not n.startswith(ATTRIBUTION)}
    return state, scores, _card(path, metadata)


def load_model(path: Path, *, allow_user_code: bool = False) -> tuple[nn.Module, ModelCard]:
    """The model in eval mode, and its card. A user's own function is only called if the caller allows it."""
    state, _, card = read_model(path)
    names = current_names(card.model, state)
    state = {names[name]: tensor for name, tensor in state.items()}
    if is_own_code(card.model) and not allow_user_code:
        raise UserError(
            f"{path}: the model is a function of your own ({card.model}), which would run on this device; look at it, "
            f"put it on the Python path, and allow it with --allow-model {card.model}"
        )
    try:
        check_reads(card.model, card.data)
        model = model_for(card.model, card.data, width=card.width, config=card.config, seed=card.seed)
        put_state(model, state)
        model.eval()
        check_outputs(model, card.data, f"model {card.model}")
    except JobError as error:
        raise UserError(f"{path}: {error}") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path}: the tensors do not fit model {card.model!r} ({reason}); harvest it again") from None
    return model, card


def _card(path: Path, metadata: Mapping[str, str]) -> ModelCard:
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: no p2ptrain model (format {metadata.get('format', 'none')!r}, expected {FORMAT!r}); give a file "
            "that `p2ptrain harvest` wrote"
        )
    about_data = {"input_shape", "classes", "mean", "std", "kind", "audio", "white", "vocabulary"}
    known = {"format", "model", "width", "config", "seed", "job_id", "lineage"} | about_data
    try:
        data = DataConfig(
            classes=tuple(str(c) for c in _list(metadata, "classes")),
            input_shape=tuple(int(n) for n in _list(metadata, "input_shape")),
            kind=_kind(metadata["kind"]),
            mean=tuple(float(m) for m in _list(metadata, "mean")),
            std=tuple(float(s) for s in _list(metadata, "std")),
            audio=AudioConfig(**json.loads(metadata["audio"])),
            white=float(json.loads(metadata.get("white", "0"))),  # none in models of before there was this key
            vocabulary=int(json.loads(metadata.get("vocabulary", "0"))),
            val=0.0,  # a model is judged on all that its user gives; what to hold out is a matter of training
        )
        if len(data.input_shape) != 3 or not data.classes:
            raise ValueError("input_shape must be three numbers, and there must be classes")
        seed = int(metadata.get("seed", "0"))  # none in models of before there was this key
        if not 0 <= seed < 2**63:
            raise ValueError("seed must be from 0 to 2^63 - 1")
        return ModelCard(
            model=metadata["model"],
            width=float(metadata["width"]),
            data=data,
            job_id=metadata.get("job_id", ""),
            lineage=tuple(_list(metadata, "lineage")) if "lineage" in metadata else (),
            extra={key: value for key, value in metadata.items() if key not in known},
            config=metadata.get("config", ""),
            seed=seed,
        )
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: damaged metadata ({detail}); harvest or copy the model again") from None


def _kind(text: str) -> DataKind:
    for kind in get_args(DataKind):
        if kind == text:
            return cast(DataKind, kind)
    raise ValueError(f"kind {text!r}")


def _list(metadata: Mapping[str, str], key: str) -> list[Any]:
    value = json.loads(metadata[key])
    if not isinstance(value, list):
        raise ValueError(f"{key} is not a list")
    return value
