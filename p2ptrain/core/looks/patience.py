"""Whether a group's training has brought what it can: for so many looks its whole model got no more right than before.

What members tell of their looks is remembered here, as a record tells of a few only. A look counts when most of those
who look have told of the same state, and the others have too, passed it over, or had their time; so has who trains and
has told of no look so far, as its first may be under way. Looks are compared over the same members and the same
samples, so whoever comes late with samples of its own has the count begin anew.

Invariant: bounded, and no single member's whim. A standstill is one by what all of them found, and also by what all but
any one of them found. Who lies about its looks, or lags behind, can put the end off, but not bring it about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from p2ptrain.config import Job
from p2ptrain.core.looks.figures import is_sound
from p2ptrain.core.looks.looks import rounds_between
from p2ptrain.core.mode import ENDED
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER
from p2ptrain.wire.messages import LookFigure, Record

REMEMBERED = 256
"""Looks: the newest ones."""
LATE_S = 60.0
"""For so long a look waits for those who have not told of it, once most have; and, once anybody has told of it, for
those in training who have told of none."""


@dataclass(frozen=True, slots=True)
class Standstill:
    """How many looks in a row, the newest included, got no more right than the best before them."""

    looks: int
    """By what all ``tellers`` found together, and by what all but any one of them found: the fewest."""
    own: int
    """By the own samples alone; 0 where this peer did not look."""
    tellers: frozenset[PeerId]


def most_looks(job: Job) -> int:
    """That can be had, and remembered, before the job's last round ends."""
    return min((job.training.rounds - 1) // rounds_between(job), REMEMBERED) if job.data.val else 0


def patience_note(job: Job) -> str:
    """Why ``training.patience`` can't end this job early, for people; "" where it can, or is not set."""
    patience, most = job.training.patience, most_looks(job)
    if not patience or patience < most:
        return ""
    looks = f"looks at its whole model {most} time{'s' if most > 1 else ''} at most" if most else "never looks at it"
    return (
        f"training.patience = {patience} can't end this training early: the group {looks} before its last round "
        f"(training.rounds = {job.training.rounds}, training.look_every = {job.training.look_every})"
    )


class Patience:
    """Of one job, as one of its members sees it."""

    def __init__(self, job: Job, own: PeerId) -> None:
        self.looks = job.training.patience
        """So many without more right answers are enough."""
        self._own = own
        self._every, self.rounds = rounds_between(job), job.training.rounds
        self._told: dict[int, dict[PeerId, LookFigure]] = {}
        """By round and peer."""
        self._most_since: dict[int, float] = {}
        """By round: since when most have told of it."""
        self._first_told: dict[int, float] = {}
        """By round: since when anybody has told of it."""
        self._lookers: dict[PeerId, int] = {}
        """Members that train and have looked: the last round of which they told."""
        self._silent = False
        """Whether there are members that train and have told of no look: slow ones, or without validation samples."""
        self._found: Standstill | None = None
        self._found_until = NEVER
        """Nothing changes before that, unless there is news."""
        self._is_stale = True

    def heard(self, members: Iterable[Record], now: float) -> None:
        """What all members say of themselves now."""
        former, was_silent = self._lookers, self._silent
        before, self._lookers, self._silent = former.keys(), {}, False
        news: set[int] = set()
        for record in members:
            sound = [look for look in record.looks if self._counts(look)]
            for look in sound:
                told = self._told.setdefault(look.round, {})
                if told.get(record.peer) != look:
                    told[record.peer] = look
                    news.add(look.round)
                    self._first_told.setdefault(look.round, now)
            if sound and record.phase not in (*ENDED, "failed"):
                self._lookers[record.peer] = max(look.round for look in sound)
            self._silent |= record.phase == "training" and not sound
        for round in sorted(self._told)[:-REMEMBERED]:
            del self._told[round], self._first_told[round]
            self._most_since.pop(round, None)
        for round in news if before == self._lookers.keys() else list(self._told):
            if round in self._told and self._is_most(self._agreeing(round)):
                self._most_since.setdefault(round, now)
        self._is_stale |= bool(news) or former != self._lookers or was_silent != self._silent

    def standstill(self, now: float) -> Standstill | None:
        """At the newest look that counts, or at the one before if that stood still longer: others may have ended by
        then. None: none counts."""
        if self._is_stale or now >= self._found_until:
            self._found, self._is_stale = self._newest(now), False
            waits = (at + LATE_S for times in (self._most_since, self._first_told) for at in times.values())
            self._found_until = min((until for until in waits if until > now), default=NEVER)
        return self._found

    def _newest(self, now: float) -> Standstill | None:
        found: list[Standstill] = []
        for round in sorted(self._most_since, reverse=True):
            told = self._agreeing(round)
            late = [peer for peer, last in self._lookers.items() if peer not in self._told[round] and last <= round]
            is_complete = not late or now >= self._most_since[round] + LATE_S
            is_complete = is_complete and (not self._silent or now >= self._first_told[round] + LATE_S)
            if is_complete and self._is_most(told):  # else who told of it has gone
                found.append(self._at(round, told))
            if len(found) == 2:
                break
        return max(found, key=lambda each: each.looks, default=None)

    def _counts(self, look: LookFigure) -> bool:
        return is_sound(look) and look.round % self._every == 0 and 0 < look.round < self.rounds

    def _is_most(self, peers: Iterable[PeerId]) -> bool:
        num = sum(peer in self._lookers for peer in peers)
        return 2 * num > len(self._lookers)

    def _agreeing(self, round: int) -> Mapping[PeerId, LookFigure]:
        """Who looked at the state of a round that most looked at."""
        by_state: dict[str, dict[PeerId, LookFigure]] = {}
        for peer, look in self._told.get(round, {}).items():
            by_state.setdefault(look.state, {})[peer] = look
        return max(by_state.values(), key=lambda each: (len(each), min(f.state for f in each.values())), default={})

    def _at(self, newest: int, told: Mapping[PeerId, LookFigure]) -> Standstill:
        tellers = [peer for peer in told if peer in self._lookers]
        looks: list[dict[PeerId, int]] = []
        """By look, what those of them got right who looked at the same samples as at the newest."""
        for round in sorted(round for round in self._told if round <= newest):
            found = self._agreeing(round)
            looks.append({p: found[p].correct for p in tellers if p in found and found[p].samples == told[p].samples})
        sums = [sum(look.values()) for look in looks]

        def without(peer: PeerId) -> int:
            num, both = len(tellers) - bool(peer), zip(looks, sums, strict=True)
            return _since_best([s - look.get(peer, 0) for look, s in both if len(look) - (peer in look) == num])

        own = _since_best([look[self._own] for look in looks if self._own in look]) if self._own in tellers else 0
        fewest = min(map(without, (PeerId(""), *(tellers if len(tellers) > 1 else ()))))
        return Standstill(fewest, own, frozenset(tellers))


def _since_best(correct: Sequence[int]) -> int:
    """Looks since more was got right than ever before."""
    return len(correct) - 1 - correct.index(max(correct))
