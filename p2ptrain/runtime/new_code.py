"""The founder's side of a new code: who stays, the step into it on this device, and telling everybody.

Invariant: the new code is on this device's disk before anybody hears of it, and who is said to be in under it was seen
there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.net.group.admission import door_of
from p2ptrain.net.group.kept import KeptGroup, load_kept, save_kept
from p2ptrain.net.group.rotation import new_code
from p2ptrain.net.keys import Identity, load_or_make_identity
from p2ptrain.protocol.machine import Send
from p2ptrain.protocol.session.door import Door
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.runtime.store.kept import load_groups
from p2ptrain.runtime.store.members import APPLICANTS, MAX_MEMBERS, Member, add_members, load_members, save_members
from p2ptrain.runtime.store.state_dir import carry_job
from p2ptrain.wire import codec
from p2ptrain.wire.messages import NewCode

LOOK_S = 8.0
ARRIVAL_S = 60.0
AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """What is about to happen, for a person to agree to."""

    kept: KeptGroup
    identity: Identity = field(repr=False)
    stay: dict[PeerId, Member]
    removed: dict[PeerId, Member]
    here: frozenset[PeerId]
    """Those of them that run now."""
    approves: bool


async def plan_rotation(
    state: Path, remove: Sequence[str], network: NetworkConfig, *, approve: bool = False, wait_s: float = LOOK_S
) -> Rotation:
    """Who stays, and who goes: by name or peer id. ``approve``: from now on devices are let in one by one.

    Raises ``UserError``.
    """
    kept, identity = founders_group(state)
    members = load_members(state, kept.group.tag)
    met, told_us = await _who_is_here(kept, identity, network, wait_s)
    members |= {peer: each for peer, each in met.items() if peer not in members or each.name}
    members.pop(identity.peer, None)
    removed: dict[PeerId, Member] = {}
    for name in remove:
        removed |= _named(name, members, identity)
    stay = {peer: each for peer, each in members.items() if peer not in removed}
    if len(stay) >= MAX_MEMBERS:
        raise UserError(
            f"{len(stay)} devices would stay, and a new code travels to {MAX_MEMBERS - 1} at most: make a new one with "
            "`p2ptrain group new`, and enter it on each of them"
        )
    here = frozenset(told_us & members.keys())
    return Rotation(kept, identity, stay, removed, here, approve or kept.group.approves)


def keep_rotation(state: Path, rotation: Rotation) -> tuple[KeptGroup, NewCode]:
    """Make the code and keep it: from now on this device is in the group under it. Raises ``UserError``.

    Two notices of one code would part the group: some would follow the one, and some the other.
    """
    if load_kept(state) != rotation.kept:
        raise UserError("the group of this device has become another one meanwhile: run the command again")
    stay = {peer: each.key for peer, each in rotation.stay.items()}
    kept, identity = rotation.kept, rotation.identity
    new, notice = new_code(kept, identity, stay, rotation.removed, approves=rotation.approves)
    new = kept.followed_by(new, bytes(codec.encode(notice)[0]))
    save_members(state, new.group.tag, rotation.stay)
    job = load_groups(state).get(kept.group.tag)
    if job is not None:
        carry_job(state, new.group.tag, job)
    save_kept(state, new)
    return new, notice


async def spread(
    rotation: Rotation,
    new: KeptGroup,
    notice: NewCode,
    network: NetworkConfig,
    *,
    wait_s: float = ARRIVAL_S,
    say: Callable[[PeerId], None] = lambda peer: None,
) -> set[PeerId]:
    """Tell everybody that is here, until all that stay have been seen under the new code; who was."""
    identity = rotation.identity
    removed, arrived = rotation.here & rotation.removed.keys(), set[PeerId]()
    told_at: dict[PeerId, float] = {}
    under_old = ObserverNode(rotation.kept.group, network, _door(rotation.kept, identity))
    under_new = ObserverNode(new.group, network, _door(new, identity))
    try:
        await under_old.start()
        await under_new.start()
        deadline = under_old.now() + wait_s
        while (now := under_old.now()) < deadline and not (
            rotation.here - removed <= arrived and removed <= told_at.keys()
        ):
            for peer in under_old.observer.sessions.peers():
                if now - told_at.get(peer, -AGAIN_S) >= AGAIN_S:
                    told_at[peer] = now
                    under_old.feed(lambda at, to=peer: under_old.observer.run([Send(to, notice)], at))  # type: ignore[misc]
            for peer in sorted((under_new.observer.answered & rotation.stay.keys()) - arrived):
                arrived.add(peer)
                say(peer)
            await asyncio.sleep(0.05)
    finally:
        await under_old.close()
        await under_new.close()
    return arrived


def asking(state: Path) -> dict[PeerId, Member]:
    """Who asks this device, which has made the group, to be let in. Raises ``UserError``."""
    kept, _ = founders_group(state)
    if not kept.group.approves:
        raise UserError(
            "the code of this group lets devices in by itself; `p2ptrain group rotate --approve` changes that"
        )
    members = load_members(state, kept.group.tag)
    waiting = load_members(state, kept.group.tag, APPLICANTS)
    return {peer: each for peer, each in waiting.items() if peer not in members}


def approve(state: Path, names: Sequence[str]) -> dict[PeerId, Member]:
    """Let them in, by name or peer id. Raises ``UserError``."""
    kept, identity = founders_group(state)
    waiting, chosen = asking(state), dict[PeerId, Member]()
    for name in names:
        chosen |= _named(name, waiting, identity, "nobody of that name asks to be let in; those that do are")
    if chosen:
        add_members(state, kept.group.tag, chosen)
    return chosen


def founders_group(state: Path) -> tuple[KeptGroup, Identity]:
    """The group of this device, which has made its code. Raises ``UserError``."""
    kept = load_kept(state)
    if kept is None:
        raise UserError("this device is in no group: make one with `p2ptrain group new`")
    anew = "make a new code with `p2ptrain group new`, and enter it with `p2ptrain group join` on those that stay"
    if kept.group.is_open:
        raise UserError(f"an open group has no code to change: {anew}")
    identity = load_or_make_identity(state)
    if kept.founding is None:
        raise UserError(
            "only the device that made the code can do this, and this one has not (or an older version made it there); "
            f"run it there, or {anew}"
        )
    if kept.founding.founder != identity.public:
        raise UserError(
            f"only the device that made the code can do this (peer {kept.founding.peer}): run it there; if it is lost, "
            f"{anew}"
        )
    return kept, identity


def _named(
    name: str,
    members: dict[PeerId, Member],
    identity: Identity,
    unknown: str = "no member of that name was met here; known are",
) -> dict[PeerId, Member]:
    if name == identity.peer:
        raise UserError(f"{name} is this device, which made the group: it can't remove itself")
    if name in members:
        return {PeerId(name): members[PeerId(name)]}
    found = {peer: each for peer, each in members.items() if each.name == name}
    known = ", ".join(f"{each.name} ({peer})" for peer, each in sorted(members.items(), key=lambda m: m[1].name))
    if not found:
        raise UserError(f"{name}: {unknown} {known or 'nobody'}")
    if len(found) > 1:
        raise UserError(f"{name}: {len(found)} members have that name; say which by its id: {', '.join(sorted(found))}")
    return found


def _door(kept: KeptGroup, identity: Identity) -> Callable[[bytes], Door]:
    return lambda visitor: door_of(kept, identity, visitor=visitor)


async def _who_is_here(
    kept: KeptGroup, identity: Identity, network: NetworkConfig, wait_s: float
) -> tuple[dict[PeerId, Member], frozenset[PeerId]]:
    """Members that answer for themselves now; nobody is an answer, too."""
    import time

    from p2ptrain.errors import NobodyError

    node = ObserverNode(kept.group, network, _door(kept, identity))
    try:
        await node.start()
        try:
            await node.look_around(wait_s)
        except NobodyError:
            return {}, frozenset()
        observer, found = node.observer, {}
        for peer in observer.answered:
            key, record = observer.sessions.key_of(peer), observer.records.get(peer)
            if key is not None and record is not None:
                found[peer] = Member(key, record.name, time.time(), record.addresses)
        return found, frozenset(found)
    finally:
        await node.close()
