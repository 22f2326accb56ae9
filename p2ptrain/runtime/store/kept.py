"""What a state directory keeps of jobs, looked at without its lock: by a peer that starts, and by a harvest.

Invariant: nothing here writes, and what can't be read is as if it were not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import JobError, RemoteError
from p2ptrain.ids import BlobId, GroupTag, JobId
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.modes.registry import read_plan
from p2ptrain.runtime.store.json_files import load_json
from p2ptrain.runtime.store.manifest import MANIFESTS, Manifest, load_manifest

GROUPS = "groups.json"
"""In a state directory: the job that each group, by its tag, had last."""
MODEL = "model.safetensors"
"""In a job's folder: the assembled model, from when the group was done."""
NUM_HEX = 16


@dataclass(frozen=True, slots=True)
class KeptJob:
    """A job with a folder of its own in a state directory."""

    folder: Path
    job: Job
    manifest: Manifest

    @property
    def plan(self) -> Plan | None:
        """The last one, if it can be read."""
        try:
            return read_plan(self.manifest.plan) if self.manifest.plan else None
        except RemoteError:
            return None

    @property
    def round(self) -> int:
        """Of the newest own snapshot; 0 = none."""
        return max((holding.round for holding in self.manifest.snapshots), default=0)

    @property
    def model(self) -> Path | None:
        """The assembled model, if it was written here."""
        path = self.folder / MODEL
        return path if path.is_file() else None

    def blob(self, blob: BlobId) -> bytes | None:
        """A blob's bytes. Whoever uses them checks them."""
        try:
            return (self.folder / "blobs" / blob).read_bytes()
        except OSError:
            return None


def is_job(name: str) -> bool:
    """Whether it may be the name of a job's folder."""
    return len(name) == NUM_HEX and all(c in "0123456789abcdef" for c in name)


def load_groups(state: Path) -> dict[GroupTag, JobId]:
    """The last job of each group that was here, the latest group last."""
    try:
        raw = load_json(state / GROUPS)
    except OSError:
        return {}
    if not isinstance(raw, list):
        return {}
    pairs = [pair for pair in raw if isinstance(pair, list) and len(pair) == 2]
    return {GroupTag(tag): JobId(job) for tag, job in pairs if isinstance(tag, str) and is_job(str(job))}


def read_job(folder: Path) -> KeptJob | None:
    """The job of this folder."""
    for name in MANIFESTS:
        try:
            manifest = load_manifest(folder / name)[0]
            if manifest is not None and manifest.job:
                return KeptJob(folder, job_from_json(manifest.job, where=str(folder)), manifest)
        except (JobError, OSError):
            continue
    return None


def why_unread(state: Path) -> str:
    """Why a job that has a folder here can't be read, for people; "" where there is none such."""
    try:
        folders = sorted(path for path in state.iterdir() if is_job(path.name))
        for folder in folders:
            if read_job(folder) is None and (folder / MANIFESTS[0]).exists():
                why = load_manifest(folder / MANIFESTS[0])[1] or "the job in it is not one of this version"
                return (
                    f"{folder / MANIFESTS[0]} can't be read ({why}): it is damaged, or of another version of p2ptrain, "
                    "which reads it"
                )
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{error.filename or state} can't be read ({error.strerror or error})"
    return ""


def why_none(state: Path) -> str:
    """Why there is no ``newest_job``."""
    return why_unread(state) or f"{state}: no state directory with a job in it"


def kept_job(state: Path, tag: GroupTag) -> KeptJob | None:
    """The job that this group had last, as far as this directory knows."""
    job = load_groups(state).get(tag)
    return read_job(state / job) if job is not None else None


def newest_job(state: Path) -> KeptJob | None:
    """The job that was used last, whatever its group."""
    return next(iter(all_jobs(state)), None)


def all_jobs(state: Path) -> list[KeptJob]:
    """Those that can be read, the last used first."""
    groups = load_groups(state)
    try:
        named = [state / job for job in reversed(list(groups.values()))]
        others = [path for path in state.iterdir() if is_job(path.name) and path not in named]
        folders = [*named, *sorted(others, key=lambda path: (-path.stat().st_mtime, path.name))]
    except OSError:
        return []
    return [kept for folder in folders if (kept := read_job(folder)) is not None]
