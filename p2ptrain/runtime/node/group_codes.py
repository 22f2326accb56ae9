"""What a peer does about its group's join codes: follows a new one, tells others of it, remembers whom it met, and sees
to it that those get in whom the founder admits.

Invariant: a peer leaves for a new code only by its founder's notice, or because its own device keeps that code already;
what it keeps is on disk before it goes.

A peer under a code:  --notice of the founder's, with a box for it--> tells everybody here, keeps it, starts again
                      --notice without one--> ends, and says so
                      --the founder admits it--> keeps that, starts again and is in
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import JobId, PeerId, peer_id
from p2ptrain.net.group.admission import admit, door_of, lets_in
from p2ptrain.net.group.courier import Courier
from p2ptrain.net.group.founding import Founding
from p2ptrain.net.group.kept import KeptGroup, load_kept, save_kept
from p2ptrain.net.group.rotation import LeftOut, can_be_passed_on, read_notice
from p2ptrain.net.ways.endpoint import parse_endpoint, resolve
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.protocol.session.door import Door
from p2ptrain.protocol.session.effects import Knocked, NoticeTold
from p2ptrain.runtime.node.node import Node
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.disk import StorageError
from p2ptrain.runtime.store.members import APPLICANTS, Member, add_members, load_members, save_members
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Admission, Admitted, NewCode

LOOK_S = 2.0
SPREAD_S = 0.5
"""For the notice to go out to everybody here, before this peer leaves."""
MAX_APPLICANTS = 64
TOLD_AGAIN_S = 600.0
"""Who asks to be let in is told to the person again after so long."""
SEEN_S = 3600.0
"""Who was seen is not written down again sooner."""


class GroupCodes:
    """Of one running peer. ``fail`` ends it with an error for the person at the device."""

    def __init__(self, node: Node, state: StateDir, fail: Callable[[UserError], None]) -> None:
        kept = load_kept(state.path)
        self.kept = kept if kept is not None and kept.group == node.group else KeptGroup(node.group)
        self.followed: KeptGroup | None = None
        """The group under its new code: this peer is to be started again in it."""
        former = [each for each in self.kept.former if can_be_passed_on(each)]
        self.courier = Courier(node.identity, former, self._given)
        self._node = node
        self._state = state
        self._fail = fail
        self._members: dict[PeerId, Member] = {}
        """Known to the founder only, as are those that ask."""
        self._applicants: dict[PeerId, Member] = {}

    @property
    def is_founder(self) -> bool:
        return self.kept.founding is not None and self.kept.founding.founder == self._node.identity.public

    def door(self, name: str) -> Door:
        return door_of(self.kept, self._node.identity, name)

    async def run(self, peer: Peer, name: str) -> None:
        """Until cancelled. ``name``: what people call this device."""
        node = self._node
        if self.kept.group.approves and self.door(name).own is None:
            who = f"`p2ptrain group approve {node.identity.peer}` (this device, {name})"
            node.tell_trouble("the group", f"lets devices in one by one: on the device that made it, run {who}")
        self._members = load_members(self._state.path, node.group.tag) if self.is_founder else {}
        known = [address for each in self._members.values() for address in each.addresses]
        known += [address for each in self._state.load_addresses().values() for address in each]
        for host, port in map(parse_endpoint, node.network.peers if self.kept.former else ()):
            known += (await resolve(host, port))[0]
        own = set(node.addresses())
        self.courier.known(address for address in known if address not in own)
        visiting = asyncio.ensure_future(self.courier.run(lambda address: self._is_here(peer, address)))
        try:
            while self.followed is None:
                await asyncio.sleep(LOOK_S)
                self._look_at_disk(peer)
                if self.is_founder:
                    self._remember(peer)
                    self._look_for_approved(peer)
        finally:
            visiting.cancel()
            await asyncio.gather(visiting, return_exceptions=True)

    def told(self, effect: NoticeTold | Knocked, peer: Peer) -> None:
        """A notice came, or somebody asks to be let in."""
        if self.followed is not None:
            return
        try:
            if isinstance(effect, Knocked):
                self._knocked(effect)
            elif isinstance(effect.notice, NewCode):
                self._new_code(effect.notice, peer)
            else:
                self._admitted(effect.notice, peer)
        except RemoteError as error:
            wrong, key = error, effect.key
            self._node.feed(lambda now: peer.run(peer.sessions.offended(key, wrong, now), now))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _new_code(self, notice: NewCode, peer: Peer) -> None:
        meant = read_notice(notice, self._node.group, self._node.identity)
        if isinstance(meant, LeftOut):
            self._fail(UserError(_left_out(removed=meant.removed)))
        else:
            self._follow(self.kept.followed_by(meant.kept, bytes(codec.encode(notice)[0])), notice, peer)

    def _admitted(self, told: Admitted, peer: Peer) -> None:
        node, shown = self._node, told.admission
        if not node.group.approves or not lets_in(node.group, node.identity.public, shown) or shown.visit:
            raise RemoteError("admission", "it is not the word of the device that made the group")
        if self.kept.admission:
            return
        founding = Founding(shown.founder, shown.nonce)
        kept = self.followed = dataclasses.replace(self.kept, founding=founding, admission=shown.word)
        node.on_disk(lambda: self._keep(kept, peer.job_id), self._was_admitted)

    def _was_admitted(self, _: object, error: BaseException | None) -> None:
        why = "" if error is None else str(error)
        self._node.note(Note("let-in", (("why_not_kept", why),)))
        self._node.finish()

    def _knocked(self, effect: Knocked) -> None:
        """Only the founder can do anything about it: the others don't let it in, and that is all."""
        node, peer = self._node, peer_id(effect.key)
        if not self.is_founder:
            return
        if peer in self._members:
            word = admit(node.identity, node.group, effect.key)
            assert self.kept.founding is not None
            shown = Admission(node.identity.public, self.kept.founding.nonce, effect.key, word)
            node.transport.send(effect.address, "control", codec.encode(Admitted(shown)))
            return
        now = time.time()
        known = self._applicants.pop(peer, None)
        self._applicants[peer] = Member(effect.key, effect.name, now, (effect.address,))
        if len(self._applicants) > MAX_APPLICANTS:
            del self._applicants[next(iter(self._applicants))]
        if known is None or known.name != effect.name or now - known.seen > TOLD_AGAIN_S:
            told = Note("asks-to-be-let-in", (("peer", peer), ("name", effect.name), ("address", effect.address)))
            asking, path, tag = dict(self._applicants), self._state.path, node.group.tag

            def written(done: object, error: BaseException | None) -> None:
                node.note(told)  # only now: whoever reads it may let that one in
                self._was_written(done, error)

            node.on_disk(lambda: save_members(path, tag, asking, APPLICANTS), written)
        else:
            self._applicants[peer] = dataclasses.replace(self._applicants[peer], seen=known.seen)

    def _look_for_approved(self, peer: Peer) -> None:
        """`p2ptrain group approve` makes members of them: they are called at once."""
        if not self._applicants:
            return
        members = load_members(self._state.path, self._node.group.tag)
        for each in self._applicants.keys() & members.keys():
            self._members[each] = members[each]
            for address in self._applicants.pop(each).addresses:
                self._node.feed(lambda now, at=address: peer.propose(at, now))  # type: ignore[misc]

    def _look_at_disk(self, peer: Peer) -> None:
        """This very device may have made the new code (``p2ptrain group rotate``)."""
        try:
            kept = load_kept(self._state.path)
        except UserError:
            return
        former = next((each for each in kept.former if each.group == self._node.group), None) if kept else None
        if kept is None or former is None or self.followed is not None:
            return
        notice = codec.decode([former.notice], "control")[1] if can_be_passed_on(former) else None
        self._follow(kept, notice if isinstance(notice, NewCode) else None, peer)

    def _follow(self, kept: KeptGroup, notice: NewCode | None, peer: Peer) -> None:
        """``None``: what is kept of it is damaged, so the others have to hear of it from somebody else."""
        node = self._node
        self.followed = kept
        if notice is not None:
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
        path, tag = self._state.path, self._node.group.tag
        self._node.on_disk(lambda: add_members(path, tag, found), self._was_written)

    def _was_written(self, _: object, error: BaseException | None) -> None:
        if isinstance(error, StorageError):  # a full disk: they are written when they are seen again
            self._members = {peer: dataclasses.replace(each, seen=0.0) for peer, each in self._members.items()}
            self._applicants = {peer: dataclasses.replace(each, seen=0.0) for peer, each in self._applicants.items()}
        elif error is not None:
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
