"""The lead's side of a head fitting: who has features, whose contributions are here, and when to go on.

Invariant: the contributions here are all to the state of the run. It waits for every live participant that has samples
up to a deadline; who misses it is left out of that step, and after ``MAX_MISSED`` in a row until it says something.

    calling --every live participant has its features, or the deadline--> collecting (asks for contributions)
    collecting --all expected ones are here, or the deadline--> combining (the own trainer's turn)
    combining --the next state--> collecting
"""

from __future__ import annotations

from p2ptrain.ids import PeerId
from p2ptrain.protocol.head_fit.run import CombineContributions, Effect, HeadFitConfig, Run
from p2ptrain.protocol.machine import NEVER, Note, Send

MAX_COMBINING = 8
"""Step deadlines that a lead gives its own trainer for the next state."""
MAX_MISSED = 3
"""Steps in a row; after them nobody waits for a peer until it says something."""


class Lead:
    """From when this peer takes the lead of ``run`` until it has it no more. ``alive``: the own id is one of them."""

    def __init__(self, run: Run, own: PeerId, config: HeadFitConfig, alive: frozenset[PeerId], now: float) -> None:
        self.alive = alive
        self.begun = run.step > 0
        """Contributions to the first step have been asked for, or a later step is under way."""
        self.combining = 0
        """For how many step deadlines the own trainer has been making the next state."""
        self.step_started_at = 0.0
        self.is_cut = False
        """A deadline of this step passed, and the clock began anew: it does not tell how long the step takes."""
        self._run = run
        self._own = own
        self._config = config
        self._call_at = now + config.repeat_s
        self._repeat_at = NEVER
        self._answered: set[PeerId] = set()
        self._ready: dict[PeerId, int] = dict.fromkeys(alive - {own}, 1) if self.begun else {}
        """Samples of each; of those who were there under an earlier lead, 1 until they say more."""
        self._ready |= dict.fromkeys(run.resigned & alive, 0)  # they said so once, perhaps to another lead
        if run.samples > 0:
            self._ready[own] = run.samples
        self._received: dict[PeerId, tuple[int, bytes]] = {}
        self._missed: dict[PeerId, int] = {}

    def waiting_for(self, now: float) -> str:
        left = max(0.0, self.deadline() - now)
        if not self.begun:
            return f"head fit: features of {', '.join(self._unready())}; without them in {left:.0f} s"
        where = f"head fit step {self._run.step}/{self._run.steps}"
        return f"{where}: {', '.join(self._missing()) or 'own trainer'}, {left:.0f} s left"

    def deadline(self) -> float:
        """When it goes on without what is missing."""
        if self._run.samples < 0 or not self.begun:
            return self._run.started_at + self._config.prepare_timeout_s
        return self.step_started_at + self._run.patience.timeout_s()

    def next_deadline(self) -> float:
        calling = self._call_at if self._uncalled() else NEVER
        return min(self.deadline(), calling, self._repeat_at)

    # --- events ---------------------------------------------------------------------------------------------------

    def call(self) -> list[Effect]:
        """Tell everyone what is fitted, and who leads."""
        return [Send(peer, self._run.call) for peer in self._others()]

    def peer_ready(self, sender: PeerId, samples: int, now: float) -> list[Effect]:
        """It has its features (or none), and perhaps not this state."""
        if sender not in self.alive:
            return []
        self._answer_of(sender, samples)
        state = self._run.state_to(sender) if self.begun and sender not in self._received else []
        return [*state, *self.go_on(now)]

    def own_ready(self, now: float) -> list[Effect]:
        self._ready[self._own] = self._run.samples
        return self.go_on(now)

    def contribution_came(self, sender: PeerId, step: int, samples: int, data: bytes) -> list[Effect]:
        if sender not in self.alive:
            return []
        self._answer_of(sender, samples)
        if step != self._run.step:  # late; or it has a later state than we do: it answers an earlier one with that
            return self._run.state_to(sender) if step > self._run.step else []
        return self._receive(sender, samples, data)

    def own_contribution(self, samples: int, data: bytes) -> list[Effect]:
        self._missed.pop(self._own, None)
        return self._receive(self._own, samples, data)

    def entered_step(self, now: float) -> None:
        """The run has another state."""
        self._received.clear()
        self.combining = 0
        self.is_cut = False
        self.begun = True
        self._start_clock(now)

    def send_state(self, *, but: PeerId | None = None) -> list[Effect]:
        """The state that is here, to everyone."""
        return [effect for peer in self._others() if peer != but for effect in self._run.state_to(peer)]

    def go_on(self, now: float) -> list[Effect]:
        """The first step begins once every live participant has its features; any step ends when all are there."""
        if self.begun:
            return self._combine_if_complete()
        if self._run.samples <= 0 or self._unready():
            return []
        return self.begin_step(now)

    def begin_step(self, now: float) -> list[Effect]:
        """Ask everyone for a contribution to the state that is here."""
        self.begun = True
        self._start_clock(now)
        return [*self.send_state(), *self._run.compute()]

    def tick(self, now: float) -> tuple[list[Effect], bool]:
        """What to do, and whether after that this peer can't lead any more."""
        run = self._run
        effects: list[Effect] = []
        uncalled = self._uncalled()
        if uncalled and now >= self._call_at:
            self._call_at = now + self._config.repeat_s
            effects += [Send(peer, run.call) for peer in uncalled]
        if now < self.deadline():
            if now >= self._repeat_at:
                halves = self.step_started_at + 0.75 * run.patience.timeout_s()
                self._repeat_at = halves if now < halves else NEVER
                for peer in self._missing():
                    if peer != self._own:
                        effects += run.state_to(peer)
            return effects, False
        if run.samples < 0:
            return [*effects, Note("head-fit-late", (("step", run.step), ("missing", self._own)))], True
        if not self.begun:
            missing = self._unready()
            self._missed |= dict.fromkeys(missing, MAX_MISSED)
            effects.append(Note("head-fit-without", (("peers", ", ".join(missing)),)))
            return effects + self.begin_step(now), False
        self.is_cut = True
        if self.combining:  # the own trainer's turn
            self.combining += 1
            self._start_clock(now)
            return effects, self.combining > MAX_COMBINING
        missing = self._missing()
        for peer in missing:
            self._missed[peer] = self._missed.get(peer, 0) + 1
        if missing:
            effects.append(Note("head-fit-late", (("step", run.step), ("missing", ", ".join(missing)))))
        if self._received:
            self._start_clock(now)
            return effects + self._combine(), False
        if self._missed.get(self._own, 0) >= MAX_MISSED:
            return effects, True
        run.computing = False
        return effects + self.begin_step(now), False  # nothing at all: ask again, our own trainer included

    # --- inside ---------------------------------------------------------------------------------------------------

    def _others(self) -> list[PeerId]:
        return sorted(self.alive - {self._own})

    def _uncalled(self) -> list[PeerId]:
        return sorted(self.alive - self._answered - {self._own})

    def _unready(self) -> list[PeerId]:
        return sorted(self.alive - set(self._ready))

    def _expected(self) -> set[PeerId]:
        """Whose contributions a step waits for: alive, with samples, and not silent for several steps."""
        return {p for p, n in self._ready.items() if n > 0 and p in self.alive and self._missed.get(p, 0) < MAX_MISSED}

    def _missing(self) -> list[PeerId]:
        return sorted(self._expected() - set(self._received))

    def _answer_of(self, sender: PeerId, samples: int) -> None:
        self._answered.add(sender)
        self._ready[sender] = samples
        self._missed.pop(sender, None)

    def _start_clock(self, now: float) -> None:
        self.step_started_at = now
        self._repeat_at = now + 0.5 * self._run.patience.timeout_s()

    def _receive(self, peer: PeerId, samples: int, data: bytes) -> list[Effect]:
        self._received[peer] = (samples, data)
        return self._combine_if_complete()

    def _combine_if_complete(self) -> list[Effect]:
        if not self.begun or self.combining or not self._received or self._missing():
            return []
        return self._combine()

    def _combine(self) -> list[Effect]:
        self.combining = 1
        peers = tuple(sorted(self._received))
        ordered = tuple(self._received[peer] for peer in peers)
        return [CombineContributions(self._run.session, self._run.step, self._run.state, ordered, peers)]
