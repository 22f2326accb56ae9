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

Invariant: a contribution is added only to the state it was computed from (same session, same step). Nothing needs to
arrive at the first try: calls, states and readiness are repeated until they are answered.
What the lead waits for, and how long: ``lead``. What the state and the contributions are is the trainer's business;
here they are bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.head_fit.lead import Lead
from p2ptrain.protocol.head_fit.run import (
    Effect,
    HeadFitConfig,
    HeadFitFinished,
    PrepareFeatures,
    Run,
    session_name,
)
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.patience import Patience
from p2ptrain.wire.messages import (
    HeadFitCall,
    HeadFitGradient,
    HeadFitReady,
    HeadFitState,
    SnapshotRef,
)

MAX_SAMPLES = 2**40
"""That a peer may claim to have."""
_REMEMBERED = 64


class HeadFitMachine:
    """One peer's side. A session has so many ``steps``: combinations of contributions, counted from 0."""

    def __init__(self, own: PeerId, config: HeadFitConfig | None = None) -> None:
        self._own = own
        self._config = config or HeadFitConfig()
        self._alive: frozenset[PeerId] = frozenset({own})
        self._run: Run | None = None
        self._leading: Lead | None = None
        """While this peer is the lead of the run."""
        self._finished: OrderedDict[str, None] = OrderedDict()

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
            return f"head fit: running the frozen parts over own samples ({now - run.started_at:.0f} s)"
        if self._leading is not None:
            return self._leading.waiting_for(now)
        return f"head fit step {run.step}/{run.steps}: lead {run.lead} ({now - run.heard_at:.0f} s)"

    # --- inputs ---

    def call(
        self, epoch: int, holdings: tuple[SnapshotRef, ...], steps: int, participants: Iterable[PeerId], now: float
    ) -> list[Effect]:
        """Start as lead over these snapshots, or go on with what was paused."""
        call = HeadFitCall(epoch=epoch, holdings=holdings)
        session = session_name(epoch, holdings)
        run = self._run
        if session in self._finished or (run is not None and run.session == session and not run.paused):
            return []
        self._are_alive(participants)
        if run is not None and run.session == session:
            run.resigned.clear()
            return self._reign(run, now) if run.samples else []
        return self._begin(session, call, steps, self._own, now)

    def received(
        self,
        sender: PeerId,
        message: HeadFitCall | HeadFitReady | HeadFitGradient | HeadFitState,
        steps: int,
        now: float,
    ) -> list[Effect]:
        """``steps``: of the session that a call is about; of no matter otherwise.

        Raises ``RemoteError`` for what no honest peer sends.
        """
        if isinstance(message, HeadFitCall):
            return self._called(sender, message, steps, now)
        run = self._run
        if run is None or run.session != message.session:
            return []  # another session's late words
        _check(message, run.steps)
        if isinstance(message, HeadFitState):
            return self._state_came(sender, message, run, now)
        if run.finished:
            return run.state_to(sender)
        leading = self._leading
        if isinstance(message, HeadFitReady):
            if leading is None:
                return self._took_us_for_lead(sender, message, run, now)
            return leading.peer_ready(sender, message.samples, now)
        return leading.contribution_came(sender, message.step, message.samples, message.data) if leading else []

    def features_ready(self, session: str, samples: int, now: float) -> list[Effect]:
        """The own trainer holds the features of ``samples`` samples (0: it has none, and only listens)."""
        run = self._run
        if run is None or run.session != session or run.samples == 0 or run.finished:
            return []
        first, run.samples = run.samples < 0, samples
        run.ask_at = now + self._config.repeat_s
        if samples == 0:
            return self._resign(run, now)
        if self._leading is not None:
            return self._leading.own_ready(now)
        effects: list[Effect] = [Send(run.lead, HeadFitReady(session=session, samples=samples))]
        return effects + (run.compute() if first and run.state else [])

    def contribution_ready(self, session: str, step: int, samples: int, data: bytes, now: float) -> list[Effect]:
        """The own trainer's answer to ``ComputeContribution``."""
        run = self._run
        if run is None or run.session != session or run.step != step or run.finished or samples <= 0:
            return []
        run.contribution = HeadFitGradient(session=session, step=step, samples=samples, data=data)
        if self._leading is not None:
            return self._leading.own_contribution(samples, data)
        run.ask_at = now + self._config.repeat_s
        return [Send(run.state_from or run.lead, run.contribution)]

    def state_ready(self, session: str, step: int, state: bytes, now: float) -> list[Effect]:
        """The own trainer's answer to ``CombineContributions``: the state after ``step`` combinations."""
        run, leading = self._run, self._leading
        if run is None or leading is None or run.session != session or not leading.combining or step != run.step + 1:
            return []
        if not leading.is_cut:
            run.patience.add(now - leading.step_started_at)
        return [*self._enter(run, step, state, self._own, now), *leading.send_state()]

    def members_changed(self, alive: Iterable[PeerId], now: float) -> list[Effect]:
        """Who is alive now. If the lead died the lowest id of the rest takes over."""
        self._are_alive(alive)
        run, leading = self._run, self._leading
        if run is None or run.finished or run.paused:
            return []
        if run.lead not in self._alive:
            return self._elect(run, now)
        return leading.go_on(now) if leading is not None else []

    def _are_alive(self, peers: Iterable[PeerId]) -> None:
        self._alive = frozenset(peers) | {self._own}
        if self._leading is not None:
            self._leading.alive = self._alive

    def stop(self) -> None:
        """Another plan: whatever head was being fitted is no longer what the group trains."""
        self._run = self._leading = None

    def next_deadline(self) -> float:
        run = self._run
        if run is None or not self.running:
            return NEVER
        return self._leading.next_deadline() if self._leading is not None else min(self._deadline(run), run.ask_at)

    def tick(self, now: float) -> list[Effect]:
        run = self._run
        if run is None or not self.running:
            return []
        if self._leading is not None:
            effects, is_over = self._leading.tick(now)
            return [*effects, *self._resign(run, now)] if is_over else effects
        if now >= self._deadline(run):
            run.resigned.add(run.lead)
            silent = Note("head-fit-lead-silent", (("lead", run.lead), ("step", run.step)))
            return [silent, *self._elect(run, now)]
        if now < run.ask_at:
            return []
        run.ask_at = now + self._config.repeat_s
        if run.computing and run.contribution is None:
            return []  # the lead knows more than we do
        return [Send(run.lead, HeadFitReady(session=run.session, samples=run.samples))]

    # --- who leads ---

    def _took_us_for_lead(self, sender: PeerId, message: HeadFitReady, run: Run, now: float) -> list[Effect]:
        """Or it says that it can't lead."""
        if message.samples > 0:
            resigned = Send(sender, HeadFitReady(session=run.session, samples=0))
            return [resigned] if self._own in run.resigned else []
        run.resigned.add(sender)
        return self._elect(run, now) if sender == run.lead and not run.paused else []

    def _resign(self, run: Run, now: float) -> list[Effect]:
        """Without features nobody can lead. The others are told, and whoever asks later is told again."""
        run.resigned.add(self._own)
        note = Note("head-fit-resigned", (("step", run.step),))
        resignation = HeadFitReady(session=run.session, samples=0)
        sends = [Send(peer, resignation) for peer in sorted(self._alive - {self._own})]
        return [note, *sends, *(self._elect(run, now) if run.lead == self._own else [])]

    def _elect(self, run: Run, now: float) -> list[Effect]:
        """The lowest id of those that can lead."""
        candidates = self._alive - run.resigned - ({self._own} if run.samples == 0 else set())
        if not candidates:
            run.paused = True
            return [Note("head-fit-paused", (("step", run.step),))]
        if min(candidates) == self._own:
            return self._reign(run, now)
        self._submit(run, min(candidates), now)
        return [Send(run.lead, HeadFitReady(session=run.session, samples=run.samples))] if run.samples >= 0 else []

    def _submit(self, run: Run, lead: PeerId, now: float) -> None:
        run.lead, run.heard_at, run.paused = lead, now, False
        run.ask_at = now + self._config.repeat_s if run.samples >= 0 else NEVER
        run.resigned.discard(lead)
        self._leading = None

    def _reign(self, run: Run, now: float) -> list[Effect]:
        """Take the lead: from the state that is here, until somebody has a later one."""
        run.lead, run.heard_at, run.paused = self._own, now, False
        run.started_at = now
        leading = self._leading = Lead(run, self._own, self._config, self._alive, now)
        note = Note("head-fit-lead", (("lead", self._own), ("step", run.step)))
        return [note, *leading.call(), *(leading.begin_step(now) if leading.begun else leading.go_on(now))]

    # --- as participant ---

    def _called(self, sender: PeerId, message: HeadFitCall, steps: int, now: float) -> list[Effect]:
        copies = [(h.part, h.trainer) for h in message.holdings]
        if len(set(copies)) != len(copies):
            raise RemoteError("head-fit", "a trainer's copy of a part is named twice")
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
            return run.state_to(sender)
        if run.lead != sender or run.paused:
            self._submit(run, sender, now)
        run.heard_at = now
        if run.samples < 0:
            return []
        return [Send(sender, HeadFitReady(session=session, samples=run.samples))]

    def _begin(self, session: str, call: HeadFitCall, steps: int, lead: PeerId, now: float) -> list[Effect]:
        patience = Patience(self._config.min_step_timeout_s, self._config.max_step_timeout_s)
        run = self._run = Run(session, call, lead, steps, patience, started_at=now, heard_at=now)
        self._leading = None
        what = (("session", session), ("lead", lead), ("parts", len({h.part for h in call.holdings})), ("steps", steps))
        note = Note("head-fit-started", what)
        effects: list[Effect] = [note]
        if lead == self._own:
            self._leading = Lead(run, self._own, self._config, self._alive, now)
            effects += self._leading.call()
        return [*effects, PrepareFeatures(session, call.holdings)]

    def _state_came(self, sender: PeerId, message: HeadFitState, run: Run, now: float) -> list[Effect]:
        if sender == run.lead:
            run.heard_at, run.ask_at = now, now + self._config.repeat_s
        if message.step < run.step:  # its sender is behind: it goes on from ours
            return run.state_to(sender)
        if run.finished or run.paused:
            return []
        if message.step > run.step:
            effects = self._enter(run, message.step, message.data, sender, now)
            if self._leading is not None and not run.finished:
                effects += self._leading.send_state(but=sender)
            return effects
        if self._leading is not None:
            return []
        if message.data != run.state:  # two leads in one step
            return self._enter(run, message.step, message.data, sender, now) if sender == run.lead else []
        run.state_from = sender
        if run.contribution is None:
            return run.compute()
        return [Send(sender, run.contribution)]

    def _enter(self, run: Run, step: int, state: bytes, source: PeerId, now: float) -> list[Effect]:
        """A state is here: contribute to it, or be done."""
        run.step, run.state, run.state_from = step, state, source
        run.contribution, run.computing = None, False
        if self._leading is not None:
            self._leading.entered_step(now)
        if step < run.steps:
            return run.compute()
        run.finished = True
        self._finished[run.session] = None
        while len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)
        return [HeadFitFinished(run.session, run.call.holdings, run.step, run.state)]

    def _deadline(self, run: Run) -> float:
        """For a lead that is not heard."""
        preparing = run.samples < 0 or run.step == 0
        return run.heard_at + self._config.lead_timeout_s + (self._config.prepare_timeout_s if preparing else 0)


def _check(message: HeadFitReady | HeadFitGradient | HeadFitState, steps: int) -> None:
    """Raises ``RemoteError`` for what no honest peer says in a session of so many steps."""
    if isinstance(message, HeadFitState):
        if message.step > steps or bool(message.data) != (message.step > 0):
            raise RemoteError("head-fit", f"a state of {len(message.data)} bytes after step {message.step}")
        return
    if not isinstance(message, HeadFitReady) and (message.samples == 0 or message.step >= steps):
        raise RemoteError("head-fit", f"a contribution of {message.samples} samples to step {message.step}")
    if message.samples > MAX_SAMPLES:
        raise RemoteError("head-fit", f"{message.samples} samples")
