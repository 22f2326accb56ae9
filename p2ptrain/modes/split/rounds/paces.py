"""How fast the own helper is, as its owner sees it: what a peer says of its own speed is held against that.

An owner waits for its helper whenever a micro-batch is there and its gradients are not back. A round's waits count as
far as they are longer than all that the plan has for its batches. What an owner itself is slow at is no wait, so a busy
owner says nothing.

    as planned --waited ``FAR`` times as long as planned, and ``LATE_S``--> suspected: the planned
        pace is said, and both ends measure the link again
    suspected --still so ``LINK_S`` later--> told, in the own record; and again whenever it is ``WORSE``
    any --a round is over in time, or another plan--> as planned

A helper's first answer under a plan may take ``START_S``, and what its blocks take to travel: then it does not count.
What one owner says counts if it has half of the helper's work, or with others that have: so no lone peer speaks ill of
a helper of many.

Invariant: told is a pace that explains the waits, less what the link took longer than was granted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from p2ptrain.core.effects import Effects, Reconsider
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import SendStageMessage
from p2ptrain.core.stages.considered import pace_s
from p2ptrain.core.stages.figures import UNKNOWN_LINK_BYTES_PER_S, link_figures
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.plan import SplitBody, body_of
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import rounded
from p2ptrain.planning.split.units import Unit
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.streams.streams import Delivered
from p2ptrain.wire.messages import Record

FAR, LATE_S = 2.0, 5.0
"""Times as long as planned, and so much longer: what is less shows in how long rounds take (``Progress``)."""
AGREES = 1.25
"""A pace is as planned up to so many times of it."""
WORSE = 1.5
LINK_S = 5.0
UNDER_WAY = 0.25
"""Of what the helper has not answered yet, what it may have done: it has shown nothing so far, and a plan by too good a
figure would be dropped as well."""
START_S = 30.0
"""Memory is taken, kernels are made ready, the job's samples are read."""
LOOK_S = 1.0


@dataclass(slots=True)
class _Waits:
    """Of one round."""

    open: set[tuple[int, int, str]] = field(default_factory=set)
    """Step, micro-batch and way of what is not answered yet."""
    since: float = NEVER
    """When the first of these was handed over."""
    seconds: float = 0.0
    """Of those before."""
    batches: int = 0
    step: int = -1
    answered: int = 0
    """Micro-batches of this step."""
    uncounted: float = 0.0
    """Batches for which no waits count."""
    sent_bytes: int = 0
    came_bytes: int = 0


class Paces:
    """As one peer sees them. ``measure``: have the links to these measured again."""

    def __init__(
        self,
        group: GroupView,
        model: Callable[[], ModelProfile | None],
        measure: Callable[[Iterable[PeerId], float], Effects],
    ) -> None:
        self._group = group
        self._model, self._measure = model, measure
        self._plan: Plan | None = None
        self._name = ""
        self._unit: Unit | None = None
        """The own one, where it has a helper."""
        self._waits = _Waits()
        self._grace_s = 0.0
        """Of the waits until the helper has answered for the first time."""
        self._has_answered = False
        self._is_training = False
        self._suspected_at = NEVER
        self._told = 0.0
        """Times as slow as planned."""
        self._look_at = NEVER
        self._seen: frozenset[tuple[PeerId, float]] = frozenset()
        self._measured: frozenset[PeerId] = frozenset()

    # --- the own helper ---

    def begin(self, plan: Plan, name: str) -> None:
        """This plan, with that hash, holds; the own record says nothing of a helper."""
        self._plan, self._name = plan, name
        body = body_of(plan)
        unit = body.split.unit_of(self._group.own_id)
        self._unit = unit if unit is not None and unit.helper else None
        self._grace_s = START_S + (_moving_s(body, unit.helper) if unit is not None and unit.helper else 0.0)
        self._waits, self._has_answered, self._measured = _Waits(), False, frozenset()
        self._rest()
        self._told = 0.0

    def _rest(self) -> None:
        self._is_training, self._suspected_at, self._look_at = False, NEVER, NEVER

    def round_begun(self, now: float) -> None:
        self._waits, self._is_training = _Waits(), True
        self._suspected_at, self._look_at = NEVER, now + LOOK_S if self._unit is not None else NEVER

    def round_over(self, now: float) -> Effects:
        """The own unit is through."""
        is_late = self._is_late(now)
        said = self._tell(self._slower(now), now) if is_late else self._take_back(now)
        self._rest()
        return said

    def sent(self, event: SendStageMessage, now: float) -> None:
        """By the own trainer."""
        waits, unit = self._waits, self._unit
        if unit is None or event.to != unit.helper or event.work not in ("forward", "backward"):
            return
        if event.work == "forward" and event.step != waits.step:
            waits.batches += waits.step >= 0
            waits.step, waits.answered = event.step, 0
        if not waits.open:
            waits.since = now
        waits.open.add((event.step, event.unit, event.work))
        waits.sent_bytes += len(event.message)

    def came(self, event: Delivered, now: float) -> None:
        """From another peer."""
        waits, unit = self._waits, self._unit
        if unit is None or event.sender != unit.helper or event.work not in ("forward", "backward"):
            return
        was_open = bool(waits.open)
        waits.came_bytes += len(event.data)
        waits.open.discard((event.step, event.unit, "forward"))
        if event.work == "backward":
            waits.open.discard((event.step, event.unit, "backward"))
            waits.answered = max(waits.answered, event.unit + 1) if event.step == waits.step else waits.answered
        if was_open and not waits.open:
            self._close(now)
        elif not self._has_answered:
            self._close(now)
            waits.since = now
        if not self._has_answered:
            self._has_answered, waits.uncounted = True, 0.0 if waits.seconds else self._done(unit)[0]

    def _close(self, now: float) -> None:
        waits = self._waits
        waits.seconds = self._waited_s(now)
        waits.since = NEVER

    def _waited_s(self, now: float) -> float:
        waits = self._waits
        under_way = now - waits.since if waits.since != NEVER else 0.0
        if not self._has_answered and under_way <= self._grace_s:
            return 0.0
        return waits.seconds + under_way

    def _done(self, unit: Unit) -> tuple[float, float]:
        """Batches that the helper has answered, and with what it may be at."""
        waits = self._waits
        at = min((number + 1 for step, number, _ in waits.open if step == waits.step), default=waits.answered)
        return waits.batches + waits.answered / unit.micro_batches, waits.batches + at / unit.micro_batches

    def _is_late(self, now: float) -> bool:
        unit, plan = self._unit, self._plan
        if unit is None or plan is None or not self._is_training:
            return False
        split = body_of(plan).split
        planned_s = split.exchange_s + min(unit.round_s, unit.batch_s * (1 + self._done(unit)[0]))
        return self._waited_s(now) - self._link_s(unit) > FAR * planned_s + LATE_S

    def _slower(self, now: float) -> float:
        """How many times as slow as planned."""
        unit, plan = self._unit, self._plan
        if unit is None or plan is None or unit.batch_s <= 0:
            return 1.0
        tails_s = sum(each.helper_s for each in body_of(plan).split.units_of(unit.helper or ""))
        tails_s *= unit.batch_s / unit.round_s if unit.round_s else 0.0  # while one batch of this unit is trained
        answered, under_way = self._done(unit)
        batches = answered + UNDER_WAY * (under_way - answered) - self._waits.uncounted
        batches = max(batches, UNDER_WAY / unit.micro_batches)
        over_s = self._waited_s(now) - self._link_s(unit) - unit.batch_s * batches
        return max(1.0, 1 + over_s / (batches * max(tails_s, 1e-9)))

    def _link_s(self, unit: Unit) -> float:
        """What stage messages took longer than planned as the link carries less than was granted."""
        own, helper = self._group.own, self._group.record(PeerId(unit.helper or ""))
        rates = [link.bytes_per_s for link in own.links if link.peer == unit.helper]
        rates += [link.bytes_per_s for link in (helper.links if helper is not None else ()) if link.peer == own.peer]
        rate, waits = max(min(rates, default=NEVER), 1.0), self._waits
        ways = ((waits.sent_bytes, unit.up_bytes_per_s), (waits.came_bytes, unit.down_bytes_per_s))
        return max(max(0.0, num_bytes / rate - num_bytes / granted) for num_bytes, granted in ways)

    def tick(self, now: float) -> Effects:
        if now < self._look_at:
            return []
        self._look_at = now + LOOK_S
        if not self._is_late(now):
            self._suspected_at = NEVER
            return []
        if self._suspected_at == NEVER:
            self._suspected_at = now
            measured = self._measure([PeerId(self._unit.helper)], now) if self._unit and self._unit.helper else []
            return [*measured, *(self._tell(1.0, now) if not self._told else [])]  # the other end may have to measure
        if now < self._suspected_at + LINK_S:
            return []
        return self._tell(self._slower(now), now)

    def next_deadline(self) -> float:
        return self._look_at

    def _tell(self, slower: float, now: float) -> Effects:
        unit, body = self._unit, body_of(self._plan) if self._plan is not None else None
        pace = self._planned(body, unit.helper) if unit is not None and unit.helper and body is not None else 0.0
        if unit is None or not pace or slower < WORSE * self._told:
            return []
        self._told = slower
        said = self._group.say(now, helper_s=min(rounded(pace * slower), 1e9))
        if slower <= AGREES:
            return said
        fields = (("peer", unit.helper or ""), ("name", self._group.name_of(PeerId(unit.helper or ""))))
        return [Note("helper-slow", (*fields, ("slower", round(slower, 1)))), *said]

    def _take_back(self, now: float) -> Effects:
        self._told = 0.0
        return self._group.say(now, helper_s=0.0) if self._group.own.helper_s else []

    def _planned(self, body: SplitBody, helper: str) -> float:
        """Seconds of a sample of the whole model, by the plan; 0 = not known."""
        model, plan = self._model(), self._plan
        figures = next((each for each in body.figures if each.peer == helper), None)
        if model is None or plan is None or figures is None:
            return 0.0
        snapshot = next(each for each in plan.peers if each.peer == helper)
        return pace_s(model, snapshot, figures)

    # --- everybody's ---

    def look(self, now: float) -> Effects:
        """What others say may have changed. To those that this peer helps, too slowly, it measures the link."""
        before, self._seen = self._seen, frozenset(self.counted().items())
        helped = body_of(self._plan).split.units_of(self._group.own_id) if self._plan is not None else ()
        unhappy = {unit.owner for unit in helped if self._said(unit.owner)}
        new = [PeerId(owner) for owner in sorted(unhappy - self._measured)]
        self._measured = frozenset(map(PeerId, unhappy))
        measured = self._measure(new, now) if new else []
        return measured if self._seen == before else [*measured, Reconsider()]

    def counted(self) -> dict[PeerId, float]:
        """By helper, seconds that a sample of the whole model takes it, of those that are slower than planned."""
        found: dict[PeerId, float] = {}
        body = body_of(self._plan) if self._plan is not None else None
        for helper in body.split.helpers if body is not None else ():
            assert body is not None
            units = body.split.units_of(helper)
            paces = sorted(((self._said(unit.owner), unit.helper_s) for unit in units), reverse=True)
            whole, load = sum(load for _, load in paces), 0.0
            for pace, part in paces:
                load += part
                if 2 * load >= whole:
                    if pace and pace > AGREES * self._planned(body, helper) > 0:
                        found[PeerId(helper)] = pace
                    break
        return found

    def _said(self, owner: str) -> float:
        record: Record | None = self._group.record(PeerId(owner))
        return record.helper_s if record is not None and record.plan == self._name else 0.0


def _moving_s(body: SplitBody, helper: str) -> float:
    """Until it has its blocks of the state that the plan begins with, with all else that is fetched in its way."""
    rate = link_figures(body.figures)[0].get(PeerId(helper), UNKNOWN_LINK_BYTES_PER_S)
    return 3 * sum(piece.num_bytes for piece in body.start) / rate
