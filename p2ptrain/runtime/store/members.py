"""The devices that the founder of a group has met, so that a new code can be made for those, too, that are off; and
those that ask to be let in, where the founder admits them one by one. Who is a member there was admitted.

    members.json, applicants.json in the founder's state directory: by group tag, {peer: {key, name, seen, addresses}}

Invariant: only whom the founder's own device met is in it, by the key that the transport authenticated; the newest
``MAX_MEMBERS`` of the newest ``MAX_GROUPS`` groups. What can't be read is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2ptrain.ids import GroupTag, PeerId, peer_id
from p2ptrain.runtime.store.disk import Disk
from p2ptrain.runtime.store.json_files import json_bytes, load_json
from p2ptrain.wire.messages import MAX_STAYING

MEMBERS, APPLICANTS = "members.json", "applicants.json"
MAX_MEMBERS = MAX_STAYING
MAX_GROUPS = 8


@dataclass(frozen=True, slots=True)
class Member:
    key: bytes
    """Public, Z85."""
    name: str
    seen: float
    """Seconds since 1970."""
    addresses: tuple[str, ...] = ()
    """Where it was then."""


def load_members(state: Path, tag: GroupTag, name: str = MEMBERS) -> dict[PeerId, Member]:
    """Of this group."""
    return _read(_load(state / name).get(tag))


def add_members(state: Path, tag: GroupTag, members: Mapping[PeerId, Member], name: str = MEMBERS) -> None:
    """Beside those of this group that are known. Raises ``StorageError``."""
    save_members(state, tag, load_members(state, tag, name) | dict(members), name)


def save_members(state: Path, tag: GroupTag, members: Mapping[PeerId, Member], name: str = MEMBERS) -> None:
    """Of this group, in place of those before. Raises ``StorageError``."""
    newest = dict(sorted(members.items(), key=lambda each: each[1].seen)[-MAX_MEMBERS:])
    plain = {
        peer: {"key": m.key.decode(), "name": m.name, "seen": m.seen, "addresses": list(m.addresses)}
        for peer, m in newest.items()
    }
    others = [[each, its] for each, its in _load(state / name).items() if each != tag][-(MAX_GROUPS - 1) :]
    Disk().write_file(state / name, json_bytes([*others, [tag, plain]]))


def _load(path: Path) -> dict[str, object]:
    try:
        raw = load_json(path)
    except OSError:
        return {}
    pairs = [each for each in raw if isinstance(each, list) and len(each) == 2] if isinstance(raw, list) else []
    return {tag: plain for tag, plain in pairs if isinstance(tag, str)}


def _read(plain: object) -> dict[PeerId, Member]:
    found = {}
    for peer, each in plain.items() if isinstance(plain, dict) else ():
        match each:
            case {"key": str(key), "name": str(name), "seen": int() | float() as seen, "addresses": list(addresses)}:
                if peer_id(key.encode()) == peer:
                    found[PeerId(peer)] = Member(key.encode(), name, float(seen), tuple(map(str, addresses)))
    return found
