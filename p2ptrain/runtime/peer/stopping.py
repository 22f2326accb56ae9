"""How a peer's part of a group's training ends before the job's last round, in good order: as somebody asks the whole
group to stop, or as its model got no better for as many looks as ``training.patience`` says.

    trains --asked, looks say that it is enough, or most members end--> its last round is under way
    its last round is under way --ended as after the last round--> done
    has no plan, or is done --asked--> done at once

Invariant: only who holds the join code gets this far, as any of its messages; a peer whose person has said that others
must not end it goes on, unless its own samples say the same. Nothing of it is kept: started again, the peer trains on.
Where all train the rounds together, they end after the same one: the first that any of them says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from p2ptrain.config import Job
from p2ptrain.core.effects import Effects, MessageHandler, Stopping
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.looks.figures import best_of, looks_of_group
from p2ptrain.core.looks.patience import Patience, Standstill, patience_note
from p2ptrain.core.mode import ENDED, Role
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import Record, Stop, StopAnswer, StopReply


class GroupStop:
    """Of one peer. ``may``: whether others may end it; ``role``: once there is a job."""

    def __init__(self, group: GroupView, role: Callable[[], Role | None], *, may: bool) -> None:
        self._group = group
        self._role = role
        self._may = may
        self._was_asked = False
        self._after = 0
        """The round after which this peer's training ends; 0 = that of the job's last one."""
        self._ending: frozenset[PeerId] = frozenset()
        """Who said at the last look that it ends: what is said of a process that is gone passes by until the next."""
        self._patience: Patience | None = None
        self.messages: Mapping[type, MessageHandler] = {
            Stop: self.received,
            StopReply: lambda *each: [],  # of those whom this peer told
        }

    def begin(self, job: Job) -> None:
        """The job is known."""
        if job.training.patience and not patience_note(job):
            self._patience = Patience(job, self._group.own_id)

    @property
    def is_over(self) -> bool:
        """This peer has ended for it: who leaves now is no reason for another plan."""
        return self._after > 0 and self._group.own.phase in ENDED

    # --- somebody asks ---

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
        asked = self._asked(max(1, message.after), now) if self._may else []
        return [reply, Note("stop-asked", words), *told, *asked]

    def _asked(self, after: int, now: float) -> Effects:
        role, own = self._role(), self._group.own
        if role is None or role.plan is None or own.phase in ("done", "failed"):
            self._after = after
            return [Stopping(at_once=True)]
        return [Stopping(at_once=False), *self._end(role, after, now)]

    def _end(self, role: Role, after: int, now: float) -> Effects:
        """After that round, or sooner if that is said already."""
        self._after = min(after, self._after or after)
        return role.end_after(self._after, now)

    # --- the group's model, and what the others say ---

    def look(self, now: float) -> Effects:
        """Now and then: whether the group ends, or ends sooner than this peer knew."""
        role, own = self._role(), self._group.own
        if role is None or role.plan is None or own.phase in (*ENDED, "failed"):
            return []
        members = self._group.records()
        told = {r.peer: r for r in members if r.ends_after and r.peer != own.peer and r.phase != "done"}
        ending = [record for peer, record in told.items() if peer in self._ending]
        self._ending = frozenset(told)
        first = min((record.ends_after for record in ending), default=0)
        if self._after:
            return self._end(role, first, now) if 0 < first < self._after else []
        if self._patience is None:
            return []
        self._patience.heard(members, now)
        found = self._patience.standstill(now)
        if found is not None and self._is_enough(found):
            after = first or 1 + round_under_way(members, own, self._patience.rounds)
            return [Note("patience-over", self._why(members)), *self._end(role, after, now)]
        lookers = found.tellers if found is not None else frozenset()
        is_theirs = 2 * len(ending) > len(members) or (len(lookers) == 1 and lookers <= {r.peer for r in ending})
        if not self._may or not ending or not is_theirs:
            return []
        names = self._group.names_of(record.peer for record in ending)
        return [Note("ends-with-others", (("names", names), *self._why(members))), *self._end(role, first, now)]

    def _is_enough(self, found: Standstill) -> bool:
        """Whether looks say so, and not those of one other member alone."""
        if self._patience is None or (len(found.tellers) == 1 and self._group.own_id not in found.tellers):
            return False
        return (found.looks if self._may else min(found.looks, found.own)) >= self._patience.looks

    def _why(self, members: Sequence[Record]) -> tuple[tuple[str, str | int | float], ...]:
        """For people: after how many looks, and which state was best."""
        best = best_of(looks_of_group(members, self._group.job))
        if best is None or self._patience is None:
            return ()
        figures = ("accuracy", round(best.accuracy, 4)), ("samples", best.samples)
        return ("looks", self._patience.looks), ("best", best.round), *figures


def round_under_way(members: Sequence[Record], own: Record, rounds: int) -> int:
    """So many of the job's are over, for who is furthest; that one alone says to be far ahead of all others does not
    count."""
    others = sorted(r.round for r in members if r.round < rounds and r.peer != own.peer)
    most, second = (*reversed(others), own.round, own.round)[:2]
    return max(own.round, min(most, 1 + max(second, own.round)))
