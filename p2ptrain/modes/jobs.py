"""Jobs of the modes that there are: read from a file, or from what came from the network, and checked.

Invariant: what is read here is complete and has passed every check, wherever it came from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2ptrain.config import MAX_JOB_BYTES, Job, ModeTable
from p2ptrain.errors import JobError, RemoteError
from p2ptrain.ids import hash_file, is_sha256
from p2ptrain.modes.checks import check_job as check_job
from p2ptrain.modes.reading import job_of
from p2ptrain.modes.registry import MODES
from p2ptrain.protocol.session.abuse import JOB_UNREAD
from p2ptrain.words import clean


def mode_tables() -> dict[str, type[ModeTable]]:
    """What each mode's table holds, by title."""
    return {mode.config.TABLE: mode.config for mode in MODES.values()}


def load_job(path: Path | str) -> Job:
    """Read a job file. Errors name the file, the key and what was expected."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file; `p2ptrain job new` writes one") from None
    except UnicodeDecodeError:
        raise JobError(f"{path}: not a readable TOML job file: it is not saved as UTF-8; save it so, or anew") from None
    except OSError as error:
        raise JobError(f"{path}: not a readable TOML job file ({error})") from None
    return job_from_text(text, path)


def job_from_text(text: str, path: Path) -> Job:
    """What a job file with this text says at ``path``, from where a checkpoint is looked for. Raises ``JobError``."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}: not a readable TOML job file ({error})") from None
    job = job_from_mapping(raw, where=str(path))
    if job.model.init and not is_sha256(job.model.init):
        checkpoint = _checkpoint(path, job.model.init)
        if not checkpoint.is_file():
            raise JobError(f"{path}: model.init: no such file: {checkpoint}")
        init, size = hash_file(checkpoint), checkpoint.stat().st_size
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, init=init, init_bytes=size))
    return job


def init_path(path: Path | str) -> Path | None:
    """The checkpoint that a job file names, if it names one by its path."""
    path = Path(path)
    init = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("model", {}).get("init", "")
    return _checkpoint(path, init) if init and not is_sha256(init) else None


def _checkpoint(job_file: Path, init: str) -> Path:
    return (job_file.parent / os.path.expanduser(init)).resolve()


def job_from_json(text: str, where: str = "job from the group") -> Job:
    """Parse and check the canonical form, as it comes from the network."""
    if len(text) > MAX_JOB_BYTES:
        raise JobError(f"{where}: larger than {MAX_JOB_BYTES} bytes")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise JobError(f"{where}: not a table")
    return job_from_mapping(raw, where)


def job_told(data: bytes) -> Job:
    """What a peer tells as its job. Raises ``RemoteError``, with the reason ``JOB_UNREAD`` for what may be one."""
    text = data.decode("utf-8", errors="replace")
    try:
        return job_from_json(text)
    except (JobError, RecursionError) as error:
        why = str(error).removeprefix("job from the group: ").partition(";")[0]
        raise RemoteError(JOB_UNREAD if _has_tables(text) else "job", clean(why, 120)) from None


def _has_tables(text: str) -> bool:
    try:
        plain = json.loads(text) if len(text) <= MAX_JOB_BYTES else None
    except (ValueError, RecursionError):
        return False
    return isinstance(plain, dict) and {"data", "mode", "model", "training"} <= plain.keys()


def job_from_mapping(raw: Mapping[str, Any], where: str) -> Job:
    """Build a job from nested tables, refusing unknown keys and wrong types, and check it as a whole."""
    job = job_of(raw, where)
    check_job(job, where)
    return job


def table_of(job: Job, title: str) -> Any:
    """One of the job's tables by its title, a mode's too; the job itself for ""."""
    if title in mode_tables():
        return job.table(mode_tables()[title])
    return getattr(job, title) if title else job


def with_settings(job: Job, title: str, **values: Any) -> Job:
    """The job with other values in that table."""
    table = dataclasses.replace(table_of(job, title), **values)
    if isinstance(table, Job):
        return table
    return job.with_table(table) if title in mode_tables() else dataclasses.replace(job, **{title: table})
