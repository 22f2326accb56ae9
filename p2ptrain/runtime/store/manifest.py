"""What is worth keeping of a job but the tensors, and how it is written and read.

Invariant: what was read keeps every bound below, or there is none and it is said why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from p2ptrain.core.plan import MAX_EPOCH
from p2ptrain.core.replicas import NUM_OWN_SNAPSHOTS
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, is_sha256
from p2ptrain.runtime.store.json_files import json_bytes, load_json
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import Bound, from_plain, to_plain

MANIFEST_VERSION = 1
MAX_LINEAGE = 64
MANIFESTS = ("manifest.json", "manifest.old.json")
"""In a job's folder: the one in force, and the one before."""
_OLD_HEAD_PART = 4096
_NEW_NAMES = {"custody": "replicas"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is worth keeping of a job but the tensors."""

    version: Annotated[int, Bound(MANIFEST_VERSION, MANIFEST_VERSION)] = MANIFEST_VERSION
    job: Annotated[str, Bound(0, 256 << 10)] = ""
    """The job's canonical JSON."""
    plan: Annotated[str, Bound(0, 1 << 20)] = ""
    """The plan's canonical JSON."""
    epoch: Annotated[int, Bound(0, MAX_EPOCH)] = 0
    lineage: Annotated[tuple[Annotated[str, Bound(0, 256)], ...], Bound(0, MAX_LINEAGE)] = ()
    """Where the snapshots come from, a line each, oldest first; the newest ``MAX_LINEAGE``."""
    snapshots: Annotated[tuple[SnapshotRef, ...], Bound(0, NUM_OWN_SNAPSHOTS)] = ()
    """Snapshots of the own part, oldest first."""
    replicas: Annotated[tuple[SnapshotRef, ...], Bound(0, 4096)] = ()
    """Snapshots that are kept for others."""

    def blobs(self) -> frozenset[BlobId]:
        return frozenset(holding.blob for holding in (*self.snapshots, *self.replicas))

    def init(self) -> frozenset[BlobId]:
        """The checkpoint that the job starts from, if it names one: without it no peer can start again by itself."""
        try:
            name = json.loads(self.job)["model"]["init"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return frozenset()
        return frozenset({BlobId(name)}) if isinstance(name, str) and is_sha256(name) else frozenset()


def manifest_bytes(manifest: Manifest) -> bytes:
    return json_bytes(to_plain(manifest))


def load_manifest(path: Path) -> tuple[Manifest | None, str]:
    """The manifest, or why there is none ("" = no such file)."""
    if not path.exists():
        return None, ""
    try:
        return from_plain(Manifest, _with_new_names(load_json(path))), ""
    except RemoteError as error:
        return None, error.detail


def _with_new_names(plain: object) -> object:
    """As it is written now, what older software has written. What is no manifest stays as it is."""
    if not isinstance(plain, dict):
        return plain
    renamed = {_NEW_NAMES.get(key, key): value for key, value in plain.items()}
    for key in ("snapshots", "replicas"):
        if isinstance(renamed.get(key), list):
            renamed[key] = [_with_kind(each) for each in renamed[key]]
    return renamed


def _with_kind(plain: object) -> object:
    """Older software told a head by its part's number, and signed none."""
    if not isinstance(plain, dict):
        return plain
    plain = {"key": "", "signature": "", **plain}
    if "kind" in plain:
        return plain
    return plain | ({"kind": "head", "part": 0} if plain.get("part") == _OLD_HEAD_PART else {"kind": "part"})
