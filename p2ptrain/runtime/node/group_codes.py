"""What a peer does about its group's join codes: follows a new one, tells others of it, and remembers whom it met.

Invariant: a peer leaves for a new code only by its founder's notice, or because its own device keeps that code already;
what it keeps is on disk before it goes.

A peer under a code:  --notice of the founder's, with a box for it--> tells everybody here, keeps it, starts again
                      --notice without one--> ends, and says so
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.net.discovery import resolve
from p2ptrain.net.group.courier import Courier
from p2ptrain.net.group.kept import KeptGroup, load_kept, save_kept
from p2ptrain.net.group.rotation import LeftOut, read_notice
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.protocol.session.effects import NewCodeTold
from p2ptrain.runtime.node.node import Node, parse_endpoint
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.blobs import StorageError
from p2ptrain.runtime.store.members import Member, load_members, save_members
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.wire import codec
from p2ptrain.wire.messages import NewCode

LOOK_S = 2.0
SPREAD_S = 0.5
"""For the notice to go out to everybody here, before this peer leaves."""
SEEN_S = 3600.0
"""Who was seen is not written down again sooner."""


class GroupCodes:
    """Of one running peer. ``fail`` ends it with an error for the person at the device."""

    def __init__(self, node: Node, state: StateDir, fail: Callable[[UserError], None]) -> None:
        kept = load_kept(state.path)
        self.kept = kept if kept is not None and kept.group == node.group else KeptGroup(node.group)
        self.followed: KeptGroup | None = None
        """The group under its new code: this peer is to be started again in it."""
        self.courier = Courier(node.identity, self.kept.former, self._given)
        self._node = node
        self._state = state
        self._fail = fail
        self._members: dict[PeerId, Member] = {}

    @property
    def is_founder(self) -> bool:
        return self.kept.founding is not None and self.kept.founding.founder == self._node.identity.public

    async def run(self, peer: Peer) -> None:
        """Until cancelled."""
        node = self._node
        self._members = load_members(self._state.path, node.group.tag) if self.is_founder else {}
        known = [address for each in self._members.values() for address in each.addresses]
        known += [address for each in self._state.load_addresses().values() for address in each]
        for host, port in map(parse_endpoint, node.network.peers if self.kept.former else ()):
            known += await resolve(host, port)
        own = set(node.addresses())
        self.courier.known(address for address in known if address not in own)
        visiting = asyncio.ensure_future(self.courier.run(lambda address: self._is_here(peer, address)))
        try:
            while self.followed is None:
                await asyncio.sleep(LOOK_S)
                self._look_at_disk(peer)
                if self.is_founder:
                    self._remember(peer)
        finally:
            visiting.cancel()
            await asyncio.gather(visiting, return_exceptions=True)

    def told(self, effect: NewCodeTold, peer: Peer) -> None:
        """A notice came."""
        node = self._node
        if self.followed is not None:
            return
        try:
            meant = read_notice(effect.notice, node.group, node.identity)
        except RemoteError as error:
            wrong = error
            node.feed(lambda now: peer.run(peer.sessions.offended(effect.key, wrong, now), now))
            return
        if isinstance(meant, LeftOut):
            self._fail(UserError(_left_out(removed=meant.removed)))
        else:
            self._follow(self.kept.followed_by(meant.kept, codec.encode(effect.notice)[0]), effect.notice, peer)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _look_at_disk(self, peer: Peer) -> None:
        """This very device may have made the new code (``p2ptrain group rotate``)."""
        try:
            kept = load_kept(self._state.path)
        except UserError:
            return
        former = next((each for each in kept.former if each.group == self._node.group), None) if kept else None
        if kept is None or former is None or self.followed is not None:
            return
        try:
            _, notice = codec.decode([former.notice], "control")
        except RemoteError:
            return
        if isinstance(notice, NewCode):
            self._follow(kept, notice, peer)

    def _follow(self, kept: KeptGroup, notice: NewCode, peer: Peer) -> None:
        node = self._node
        self.followed = kept
        node.feed(lambda now: peer.run([Send(each, notice) for each in peer.sessions.peers()], now))
        node.on_disk(lambda: self._keep(kept, peer.job_id), self._was_kept)

    def _keep(self, kept: KeptGroup, job: str) -> None:
        """First what the new group needs here, then the step into it."""
        if job:
            self._state.save_job(kept.group.tag, JobId(job))
        on_disk = load_kept(self._state.path)
        if on_disk is None or on_disk.group == self._node.group:
            save_kept(self._state.path, kept)

    def _was_kept(self, _: object, error: BaseException | None) -> None:
        node = self._node
        why = "" if error is None else str(error)
        node.note(Note("new-code", (("why_not_kept", why),)))
        node.later(SPREAD_S, node.finish)

    def _remember(self, peer: Peer) -> None:
        """Whom this device has met itself."""
        now = time.time()
        found = {}
        for each in peer.group.alive():
            key, record, before = peer.sessions.key_of(each), peer.records.get(each), self._members.get(each)
            if key is None or record is None:
                continue
            seen = Member(key, record.name, now, record.addresses)
            if before is None or dataclasses.replace(before, seen=now) != seen or now - before.seen > SEEN_S:
                found[each] = seen
        if not found:
            return
        self._members |= found
        members, path, tag = dict(self._members), self._state.path, self._node.group.tag
        self._node.on_disk(lambda: save_members(path, tag, members), self._was_remembered)

    def _was_remembered(self, _: object, error: BaseException | None) -> None:
        if error is not None:
            self._members = {peer: dataclasses.replace(each, seen=0.0) for peer, each in self._members.items()}
            if not isinstance(error, StorageError):
                raise error

    def _is_here(self, peer: Peer, address: str) -> bool:
        return any(peer.sessions.address_of(each) == address for each in peer.sessions.peers())

    def _given(self, address: str) -> None:
        self._node.note(Note("new-code-passed-on", (("address", address),)))


def _left_out(*, removed: bool) -> str:
    if removed:
        return (
            "this device was removed from the group by the device that made it; what it has learnt stays in its state "
            "directory (`p2ptrain harvest --from` takes it from there)"
        )
    return (
        "the group has a new join code, which was not sent to this device; ask for it where the group was made, and "
        "enter it with `p2ptrain group join`"
    )
