"""What a peer does when somebody asks the whole group to stop: it ends its training in good order and passes that on.

Invariant: only who holds the join code gets this far, as any of its messages; a peer whose person has said that others
must not end it goes on. It follows once, and nothing of it is kept: started again, the peer trains on.

    trains --asked--> its last round is under way --ended as after the last round--> done
    has no plan, or is done --asked--> done at once
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2ptrain.core.effects import Effects, MessageHandler, Stopping
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.mode import ENDED, Role
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import Stop, StopAnswer, StopReply


class GroupStop:
    """Of one peer. ``may``: whether others may end it; ``role``: once there is a job."""

    def __init__(self, group: GroupView, role: Callable[[], Role | None], *, may: bool) -> None:
        self._group = group
        self._role = role
        self._may = may
        self._was_asked = False
        self.messages: Mapping[type, MessageHandler] = {
            Stop: self.received,
            StopReply: lambda *each: [],  # of those whom this peer told
        }

    @property
    def is_over(self) -> bool:
        """This peer has ended for it: who leaves now is no reason for another plan."""
        return self._was_asked and self._may and self._group.own.phase in ENDED

    def received(self, sender: PeerId, message: Stop, now: float) -> Effects:
        """The answer, and what comes of it the first time."""
        answer: StopAnswer = "ends"
        if message.job != self._group.job:
            answer = "other job"
        elif not self._may:
            answer = "refuses"
        reply = Send(sender, StopReply(answer))
        if answer == "other job" or self._was_asked:
            return [reply]
        self._was_asked = True
        words = (("peer", sender), ("name", message.name or self._group.name_of(sender)), ("answer", answer))
        told = [Send(peer, message) for peer in self._group.alive() if peer != sender]
        return [reply, Note("stop-asked", words), *told, *(self._end(message.after, now) if self._may else [])]

    def _end(self, after: int, now: float) -> Effects:
        role = self._role()
        is_idle = role is None or role.plan is None or self._group.own.phase in ("done", "failed")
        if role is None or is_idle:
            return [Stopping(at_once=True)]
        return [Stopping(at_once=False), *role.end_after(max(1, after), now)]
