"""Re-fitting the head by the whole group: averaged contributions, step by step, under a lead that anyone can replace.

The features of a sample never leave the peer that has it. In step k every participant computes a contribution (a sum
over its own samples) from the same state, the lead adds the contributions up and turns them into the next state, and
that goes to everyone: so after a step all hold the same state, and any of them can be the next lead.

    idle -> preparing    a call came (or was made): the frozen snapshots are fetched and run over the own samples
    preparing -> fitting the own features are ready
    fitting -> fitting   a state came: contribute to it; as lead: enough contributions came: combine them
    fitting -> finished  the state after the last step came; whoever still asks for it gets it
    any -> paused        nobody is left who could lead; a call of the same session goes on from here
    any -> idle          a call of another session by a lower id than the lead, or another plan

Who leads: whoever calls, the lowest id among rivals. A lead that dies, says nothing for ``lead_timeout_s``, or has no
features (it says so: ready with no samples) is followed by the lowest id left; the state with the most steps is what
it goes on from, whoever has it.

Invariant: a contribution is added only to the state it was computed from (same session, same step). The lead waits
for every live participant up to a deadline that follows the durations seen; who misses it is left out of that step.
Nothing needs to arrive at the first try: calls, states and readiness are repeated until they are answered.
What the state and the contributions are is the trainer's business; here they are bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from statistics import median

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.head_fit.run import (
    CalibrationConfig,
    CalibrationFinished,
    CombineContributions,
    ComputeContribution,
    Effect,
    PrepareFeatures,
    Run,
    session_name,
)
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import (
    CalibrationCall,
    CalibrationGradient,
    CalibrationHead,
    CalibrationReady,
    Holding,
)

MAX_SAMPLES = 2**40
"""That a peer may claim to have."""
MAX_COMBINING = 8
"""Step deadlines that a lead gives its own trainer for the next state."""
MAX_MISSED = 3
"""Steps in a row; after them nobody waits for a peer until it says something."""
_REMEMBERED = 64


class Calibration:
    """One peer's side. A session has so many ``steps``: combinations of contributions, counted from 0."""

    def __init__(self, own: PeerId, config: CalibrationConfig | None = None) -> None:
        self._own = own
        self._config = config or CalibrationConfig()
        self._alive: frozenset[PeerId] = frozenset({own})
        self._run: Run | None = None
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._durations: deque[float] = deque(maxlen=32)

    @property
    def running(self) -> bool:
        return self._run is not None and not self._run.finished and not self._run.paused

    @property
    def preparing(self) -> bool:
        """The own features are being made."""
        return self.running and self._run is not None and self._run.samples < 0

    @property
    def hopeless(self) -> bool:
        """Nobody here has features: there is nothing to wait for."""
        return self._run is not None and self._run.paused and self._run.samples == 0

    @property
    def session(self) -> str:
        return self._run.session if self._run else ""

    @property
    def step(self) -> int:
        return self._run.step if self._run else 0

    @property
    def lead(self) -> PeerId | None:
        return self._run.lead if self._run else None

    def waiting_for(self, now: float) -> str:
        """In words, for status: what this peer waits for, since when, and what happens then."""
        run = self._run
        if run is None or not self.running:
            return ""
        if run.samples < 0:
            return f"calibration: running the frozen parts over own samples ({now - run.started_at:.0f} s)"
        where = f"calibration step {run.step}/{run.steps}"
        if run.lead == self._own:
            left = max(0.0, self._deadline(run) - now)
            if not run.begun:
                missing = sorted(self._alive - set(run.ready))
                return f"calibration: features of {', '.join(missing)}; without them in {left:.0f} s"
            missing = sorted(self._expected(run) - set(run.received))
            return f"{where}: {', '.join(missing) or 'own trainer'}, {left:.0f} s left"
        return f"{where}: lead {run.lead} ({now - run.heard_at:.0f} s)"

    # --- inputs ---

    def call(
        self, epoch: int, holdings: tuple[Holding, ...], steps: int, participants: Iterable[PeerId], now: float
    ) -> list[Effect]:
        """Start as lead over these snapshots, or go on with what was paused."""
        call = CalibrationCall(epoch=epoch, holdings=holdings)
        session = session_name(epoch, holdings)
        run = self._run
        if session in self._finished or (run is not None and run.session == session and not run.paused):
            return []
        self._alive = frozenset(participants) | {self._own}
        if run is not None and run.session == session:
            run.resigned.clear()
            return self._reign(run, now) if run.samples else []
        return self._begin(session, call, steps, self._own, now)

    def received(
        self,
        sender: PeerId,
        message: CalibrationCall | CalibrationReady | CalibrationGradient | CalibrationHead,
        steps: int,
        now: float,
    ) -> list[Effect]:
        """``steps``: of the session that a call is about; of no matter otherwise.

        Raises ``RemoteError`` for what no honest peer sends.
        """
        if isinstance(message, CalibrationCall):
            return self._called(sender, message, steps, now)
        run = self._run
        if run is None or run.session != message.session:
            return []  # another session's late words
        self._check(message, run.steps)
        if isinstance(message, CalibrationHead):
            return self._state_came(sender, message, run, now)
        if run.finished:
            return self._send_state_to(run, sender)
        if isinstance(message, CalibrationReady):
            return self._others_ready(sender, message, run, now)
        if run.lead != self._own or sender not in self._alive:
            return []
        self._answer_of(sender, message.samples, run)
        if message.step != run.step:  # late; or it has a later state than we do: it answers an earlier one with that
            return self._send_state_to(run, sender) if message.step > run.step else []
        run.received[sender] = (message.samples, message.data)
        return self._combine_if_complete(run)

    def features_ready(self, session: str, samples: int, now: float) -> list[Effect]:
        """The own trainer holds the features of ``samples`` samples (0: it has none, and only listens)."""
        run = self._run
        if run is None or run.session != session or run.samples == 0 or run.finished:
            return []
        first, run.samples = run.samples < 0, samples
        run.ask_at = now + self._config.repeat_s
        if samples == 0:
            return self._resign(run, now)
        if run.lead == self._own:
            run.ready[self._own] = samples
            return self._go_on(run, now)
        effects: list[Effect] = [Send(run.lead, CalibrationReady(session=session, samples=samples))]
        return effects + (self._compute(run) if first and run.state else [])

    def contribution_ready(self, session: str, step: int, samples: int, data: bytes, now: float) -> list[Effect]:
        """The own trainer's answer to ``ComputeContribution``."""
        run = self._run
        if run is None or run.session != session or run.step != step or run.finished or samples <= 0:
            return []
        run.contribution = CalibrationGradient(session=session, step=step, samples=samples, data=data)
        if run.lead == self._own:
            run.received[self._own] = (samples, data)
            return self._combine_if_complete(run)
        run.ask_at = now + self._config.repeat_s
        return [Send(run.state_from or run.lead, run.contribution)]

    def state_ready(self, session: str, step: int, state: bytes, now: float) -> list[Effect]:
        """The own trainer's answer to ``CombineContributions``: the state after ``step`` combinations."""
        run = self._run
        if run is None or run.session != session or not run.combining or step != run.step + 1:
            return []
        self._durations.append(now - run.step_started_at)
        effects = self._enter(run, step, state, self._own, now)
        for peer in sorted(self._alive - {self._own}):
            effects.extend(self._send_state_to(run, peer))
        return effects

    def members_changed(self, alive: Iterable[PeerId], now: float) -> list[Effect]:
        """Who is alive now. If the lead died the lowest id of the rest takes over."""
        self._alive = frozenset(alive) | {self._own}
        run = self._run
        if run is None or run.finished or run.paused:
            return []
        if run.lead not in self._alive:
            return self._elect(run, now)
        return self._go_on(run, now) if run.lead == self._own else []

    def stop(self) -> None:
        """Another plan: whatever was being calibrated is no longer what the group trains."""
        self._run = None

    def next_deadline(self) -> float:
        run = self._run
        if run is None or not self.running:
            return NEVER
        if run.lead != self._own:
            return min(self._deadline(run), run.ask_at)
        calling = run.call_at if self._uncalled(run) else NEVER
        return min(self._deadline(run), calling, run.repeat_at)

    def tick(self, now: float) -> list[Effect]:
        run = self._run
        if run is None or not self.running:
            return []
        if run.lead == self._own:
            return self._tick_as_lead(run, now)
        if now >= self._deadline(run):
            run.resigned.add(run.lead)
            silent = Note("calibration-lead-silent", (("lead", run.lead), ("step", run.step)))
            return [silent, *self._elect(run, now)]
        if now < run.ask_at:
            return []
        run.ask_at = now + self._config.repeat_s
        if run.computing and run.contribution is None:
            return []  # the lead knows more than we do
        return [Send(run.lead, CalibrationReady(session=run.session, samples=run.samples))]

    # --- as lead ---

    def _tick_as_lead(self, run: Run, now: float) -> list[Effect]:
        effects: list[Effect] = []
        uncalled = self._uncalled(run)
        if uncalled and now >= run.call_at:
            run.call_at = now + self._config.repeat_s
            effects += [Send(peer, run.call) for peer in uncalled]
        if now < self._deadline(run):
            if now >= run.repeat_at:
                halves = run.step_started_at + 0.75 * self._step_timeout_s()
                run.repeat_at = halves if now < halves else NEVER
                for peer in sorted(self._expected(run) - set(run.received) - {self._own}):
                    effects += self._send_state_to(run, peer)
            return effects
        if run.samples < 0:
            late = Note("calibration-late", (("step", run.step), ("missing", self._own)))
            return [*effects, late, *self._resign(run, now)]
        if not run.begun:
            missing = sorted(self._alive - set(run.ready))
            run.missed |= dict.fromkeys(missing, MAX_MISSED)
            effects.append(Note("calibration-without", (("peers", ", ".join(missing)),)))
            return effects + self._begin_step(run, now)
        if run.combining:  # the own trainer's turn
            run.combining += 1
            self._start_clock(run, now)
            return effects + (self._resign(run, now) if run.combining > MAX_COMBINING else [])
        missing = sorted(self._expected(run) - set(run.received))
        for peer in missing:
            run.missed[peer] = run.missed.get(peer, 0) + 1
        if missing:
            effects.append(Note("calibration-late", (("step", run.step), ("missing", ", ".join(missing)))))
        if run.received:
            self._start_clock(run, now)
            return effects + self._combine(run)
        if run.missed.get(self._own, 0) >= MAX_MISSED:
            return effects + self._resign(run, now)
        run.computing = False
        return effects + self._begin_step(run, now)  # nothing at all: ask again, our own trainer included

    def _uncalled(self, run: Run) -> list[PeerId]:
        return sorted(self._alive - run.answered - {self._own})

    def _answer_of(self, sender: PeerId, samples: int, run: Run) -> None:
        run.answered.add(sender)
        run.ready[sender] = samples
        run.missed.pop(sender, None)

    def _others_ready(self, sender: PeerId, message: CalibrationReady, run: Run, now: float) -> list[Effect]:
        if run.lead != self._own:
            if message.samples > 0:  # takes us for the lead
                resigned = Send(sender, CalibrationReady(session=run.session, samples=0))
                return [resigned] if self._own in run.resigned else []
            run.resigned.add(sender)
            return self._elect(run, now) if sender == run.lead and not run.paused else []
        if sender not in self._alive:
            return []
        self._answer_of(sender, message.samples, run)
        state = self._send_state_to(run, sender) if run.begun and sender not in run.received else []
        return state + self._go_on(run, now)

    def _expected(self, run: Run) -> set[PeerId]:
        """Whose contributions a step waits for: alive, with samples, and not silent for several steps."""
        return {p for p, n in run.ready.items() if n > 0 and p in self._alive and run.missed.get(p, 0) < MAX_MISSED}

    def _go_on(self, run: Run, now: float) -> list[Effect]:
        """The first step begins once every live participant has its features; any step ends when all are there."""
        if run.begun:
            return self._combine_if_complete(run)
        if run.samples <= 0 or set(self._alive) - set(run.ready):
            return []
        return self._begin_step(run, now)

    def _begin_step(self, run: Run, now: float) -> list[Effect]:
        """Ask everyone for a contribution to the state that is here."""
        run.begun = True
        self._start_clock(run, now)
        effects: list[Effect] = []
        for peer in sorted(self._alive - {self._own}):
            effects += self._send_state_to(run, peer)
        return effects + self._compute(run)

    def _start_clock(self, run: Run, now: float) -> None:
        run.step_started_at = now
        run.repeat_at = now + 0.5 * self._step_timeout_s()

    def _combine_if_complete(self, run: Run) -> list[Effect]:
        if not run.begun or run.combining or not run.received or self._expected(run) - set(run.received):
            return []
        return self._combine(run)

    def _combine(self, run: Run) -> list[Effect]:
        run.combining = 1
        ordered = tuple(run.received[peer] for peer in sorted(run.received))
        return [CombineContributions(run.session, run.step, run.state, ordered)]

    def _send_state_to(self, run: Run, peer: PeerId) -> list[Effect]:
        return [Send(peer, CalibrationHead(run.session, run.step, run.state))] if peer != self._own else []

    def _resign(self, run: Run, now: float) -> list[Effect]:
        """Without features nobody can lead. The others are told, and whoever asks later is told again."""
        run.resigned.add(self._own)
        note = Note("calibration-resigned", (("step", run.step),))
        resignation = CalibrationReady(session=run.session, samples=0)
        sends = [Send(peer, resignation) for peer in sorted(self._alive - {self._own})]
        return [note, *sends, *(self._elect(run, now) if run.lead == self._own else [])]

    def _elect(self, run: Run, now: float) -> list[Effect]:
        """The lowest id of those that can lead."""
        candidates = self._alive - run.resigned - ({self._own} if run.samples == 0 else set())
        if not candidates:
            run.paused = True
            return [Note("calibration-paused", (("step", run.step),))]
        if min(candidates) == self._own:
            return self._reign(run, now)
        self._submit(run, min(candidates), now)
        return [Send(run.lead, CalibrationReady(session=run.session, samples=run.samples))] if run.samples >= 0 else []

    def _submit(self, run: Run, lead: PeerId, now: float) -> None:
        run.lead, run.heard_at, run.paused = lead, now, False
        run.ask_at = now + self._config.repeat_s if run.samples >= 0 else NEVER
        run.resigned.discard(lead)
        run.received.clear()
        run.answered.clear()
        run.combining = 0

    def _reign(self, run: Run, now: float) -> list[Effect]:
        """Take the lead: from the state that is here, until somebody has a later one."""
        run.lead, run.heard_at, run.paused = self._own, now, False
        run.started_at, run.call_at = now, now + self._config.repeat_s
        run.received.clear()
        run.answered.clear()
        run.missed.clear()
        run.combining = 0
        run.begun = run.step > 0
        run.ready = dict.fromkeys(self._alive - {self._own}, 1) if run.begun else {}
        run.ready |= dict.fromkeys(run.resigned & self._alive, 0)  # they said so once, perhaps to another lead
        if run.samples > 0:
            run.ready[self._own] = run.samples
        note = Note("calibration-lead", (("lead", self._own), ("step", run.step)))
        effects: list[Effect] = [note, *(Send(peer, run.call) for peer in sorted(self._alive - {self._own}))]
        return effects + (self._begin_step(run, now) if run.begun else self._go_on(run, now))

    # --- as participant ---

    @staticmethod
    def _check(message: CalibrationReady | CalibrationGradient | CalibrationHead, steps: int) -> None:
        if isinstance(message, CalibrationHead):
            if message.step > steps or bool(message.data) != (message.step > 0):
                raise RemoteError("calibration", f"a state of {len(message.data)} bytes after step {message.step}")
            return
        if not isinstance(message, CalibrationReady) and (message.samples == 0 or message.step >= steps):
            raise RemoteError("calibration", f"a contribution of {message.samples} samples to step {message.step}")
        if message.samples > MAX_SAMPLES:
            raise RemoteError("calibration", f"{message.samples} samples")

    def _called(self, sender: PeerId, message: CalibrationCall, steps: int, now: float) -> list[Effect]:
        copies = [(h.part, h.trainer) for h in message.holdings]
        if len(set(copies)) != len(copies):
            raise RemoteError("calibration", "a trainer's copy of a part is named twice")
        session = session_name(message.epoch, message.holdings)
        run = self._run
        if run is not None and not run.finished and not run.paused and run.lead in self._alive:
            if run.lead == self._own and sender > self._own:
                return [Send(sender, run.call)]  # a rival: the lower id leads
            if sender > run.lead and run.lead not in run.resigned:
                return []
        if run is None or run.session != session:
            return [] if session in self._finished else self._begin(session, message, steps, sender, now)
        if run.finished:
            return self._send_state_to(run, sender)
        if run.lead != sender or run.paused:
            self._submit(run, sender, now)
        run.heard_at = now
        if run.samples < 0:
            return []
        return [Send(sender, CalibrationReady(session=session, samples=run.samples))]

    def _begin(self, session: str, call: CalibrationCall, steps: int, lead: PeerId, now: float) -> list[Effect]:
        run = self._run = Run(session, call, lead, steps, started_at=now, heard_at=now)
        self._durations.clear()
        what = (("session", session), ("lead", lead), ("parts", len({h.part for h in call.holdings})), ("steps", steps))
        note = Note("calibration-started", what)
        effects: list[Effect] = [note]
        if lead == self._own:
            run.call_at = now + self._config.repeat_s
            effects += [Send(peer, call) for peer in sorted(self._alive - {self._own})]
        return [*effects, PrepareFeatures(session, call.holdings)]

    def _state_came(self, sender: PeerId, message: CalibrationHead, run: Run, now: float) -> list[Effect]:
        if sender == run.lead:
            run.heard_at, run.ask_at = now, now + self._config.repeat_s
        if message.step < run.step:  # its sender is behind: it goes on from ours
            return self._send_state_to(run, sender)
        if run.finished or run.paused:
            return []
        if message.step > run.step:
            as_lead = run.lead == self._own
            effects = self._enter(run, message.step, message.data, sender, now)
            if as_lead and not run.finished:
                for peer in sorted(self._alive - {self._own, sender}):
                    effects += self._send_state_to(run, peer)
            return effects
        if run.lead == self._own:
            return []
        if message.data != run.state:  # two leads in one step
            return self._enter(run, message.step, message.data, sender, now) if sender == run.lead else []
        run.state_from = sender
        if run.contribution is None:
            return self._compute(run)
        return [Send(sender, run.contribution)]

    def _enter(self, run: Run, step: int, state: bytes, source: PeerId, now: float) -> list[Effect]:
        """A state is here: contribute to it, or be done."""
        run.step, run.state, run.state_from = step, state, source
        run.contribution, run.computing = None, False
        run.received.clear()
        run.combining = 0
        run.begun = True
        self._start_clock(run, now)
        if step < run.steps:
            return self._compute(run)
        run.finished = True
        self._finished[run.session] = None
        while len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)
        return [CalibrationFinished(run.session, run.call.holdings, run.step, run.state)]

    def _compute(self, run: Run) -> list[Effect]:
        if run.samples <= 0 or run.computing:
            return []
        run.computing = True
        return [ComputeContribution(run.session, run.step, run.state)]

    # --- time ---

    def _step_timeout_s(self) -> float:
        c = self._config
        if len(self._durations) < 4:
            return c.max_step_timeout_s / 4
        typical = median(self._durations)
        spread = median(abs(d - typical) for d in self._durations)
        return min(max(typical + 6 * spread, c.min_step_timeout_s), c.max_step_timeout_s)

    def _deadline(self, run: Run) -> float:
        c = self._config
        if run.lead != self._own:
            return run.heard_at + c.lead_timeout_s + (c.prepare_timeout_s if run.samples < 0 or run.step == 0 else 0)
        if run.samples < 0 or not run.begun:
            return run.started_at + c.prepare_timeout_s
        return run.step_started_at + self._step_timeout_s()
