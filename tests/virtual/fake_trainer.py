"""A trainer of a few numbers: answers the commands of ``core.commands`` as the real one does, in virtual time.

A part is a vector; a round pulls it towards the peer's own goal and adds the peer's samples to its masses. Snapshots
and payloads are safetensors bytes, so they pass the same store, wire and checks as real ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable

import numpy as np
from model_looker import ModelLooker

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.modes.registry import read_plan
from p2ptrain.modes.tasks.commands import (
    Combine,
    Combined,
    Contribute,
    Contributed,
    ExtractFeatures,
    FeaturesExtracted,
    FinishRound,
    Follow,
    MakePayload,
    Merge,
    Merged,
    PayloadMade,
    Reclaim,
    Retain,
)
from p2ptrain.wire import tensorfile

COMMAND_S = 0.002
STEPS_PER_ROUND = 4
FIT_RATE = 0.3

At = Callable[[float, Callable[[], None]], None]
"""Do something after so many seconds."""


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a test makes of one trainer."""

    counts: tuple[int, ...]
    round_s: float = 0.5
    dimensions: int = 8
    load_s: float = 0.2
    feature_s: float = 0.05
    pull: float = 0.2
    """How far a round goes towards the own goal; 0 in the second half of the rounds, so that gossip can settle."""
    dies_at_round: int = -1
    """It dies whenever it gets there."""
    num_val: int = 0
    """Validation samples."""
    bad_user: bool = False
    """It dies at once, and the person at the device can mend it."""

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> FakeTrainer:
        return FakeTrainer(name, self, at, say)


class FakeTrainer:
    """Commands in by ``handle``, events out through ``say``; ``at`` is its clock."""

    def __init__(self, name: str, traits: Traits, at: At, say: Callable[[object], None]) -> None:
        self.name = name
        self.traits = traits
        self.x = np.zeros(0)
        self.masses: dict[str, float] = {}
        self.round = 0
        self.began = 0
        """After that round it went on, or began."""
        self.samples = 0
        self.part = -1
        self.trained = 0
        """Samples, in this life: what it added to its masses."""
        self.reclaimed = 0.0
        self.follows: list[tuple[int, int, bool]] = []
        """(part, round it began at, from its own snapshot) of every ``Follow``."""
        self.features: dict[int, np.ndarray] = {}
        self._copies: list[tuple[float, np.ndarray]] = []
        self.dead = self.ends = False
        self._at, self._say = at, say
        self.looker = ModelLooker(traits.num_val, say)
        self._plan: Plan | None = None
        self._job: Job | None = None
        self._session = ""
        self._run = 0
        self._goal = np.random.default_rng(list(name.encode())).normal(0, 1, traits.dimensions)

    @property
    def finished(self) -> bool:
        return self.round >= self._rounds() or (self.ends and self.round > self.began)

    @property
    def num_samples(self) -> int:
        return sum(self.traits.counts)

    def kill(self) -> None:
        self.dead = True

    def handle(self, command: object) -> None:
        """One command, a little later, in order."""
        self._at(COMMAND_S, lambda: None if self.dead else self._carry_out(command))

    def _carry_out(self, command: object) -> None:
        match command:
            case c.Configure():
                self._job = job_from_json(command.job, "job")
                self._at(self.traits.load_s, self._loaded)
            case Follow():
                self._follow(command)
            case FinishRound():
                self.ends = True
            case Retain():
                self._plan = read_plan(command.plan)
            case MakePayload():
                self._make_payload(command)
            case Merge():
                self._merge(command)
            case Reclaim():
                for shard, mass in command.masses:
                    self.reclaimed += mass
                    self.masses[shard] = self.masses.get(shard, 0.0) + mass
            case ExtractFeatures():
                self._extract(command)
            case Contribute():
                self._contribute(command)
            case Combine():
                self._combine(command)
            case c.LookAtModel():
                self.looker.copy_came(command)
            case c.TakeSnapshot():
                self._say_snapshot(round_finished=False)
            case _:
                raise AssertionError(command)

    def _loaded(self) -> None:
        if self.dead:
            return
        if self.traits.bad_user:
            self.dead = True
            self._say(c.TrainerFailed("no samples in that folder", user_error=True))
        else:
            self._say(c.Ready(self.traits.counts, num_val=self.traits.num_val))

    # --- training ---

    def _rounds(self) -> int:
        assert self._job is not None
        return self._job.training.rounds

    def _follow(self, command: Follow) -> None:
        plan = read_plan(command.plan)
        x, masses, first, samples = np.zeros(self.traits.dimensions), {}, 0, 0
        if command.snapshot:
            try:
                x, masses, first, samples = self._restore(command, plan)
            except RemoteError as error:
                self._say(c.SnapshotRefused(str(error)))
                return
        self._plan, self.part, self.x, self.round, self.samples = plan, command.part, x.copy(), first, samples
        shards = plan.parts[command.part].shards
        self.began = first
        self.masses = {shard: masses.get(shard, 0.0) if command.own else 0.0 for shard in shards}
        self.follows.append((command.part, first, command.own))
        self._run += 1
        self._say(c.Following(self.part, self.round, self._rounds()))
        if self.round >= self._rounds():
            self._say_snapshot(round_finished=True)
        else:
            self._next_round()

    def _restore(self, command: Follow, plan: Plan) -> tuple[np.ndarray, dict[str, float], int, int]:
        header = tensorfile.read_untrusted(command.snapshot)
        metadata = header.metadata
        arrays = tensorfile.read(command.snapshot).arrays()
        if metadata.get("part") != str(command.part) or metadata.get("partition") != plan.partition:
            raise RemoteError("snapshot", "of another part")
        if set(arrays) != {"model.x"} or arrays["model.x"].shape != (self.traits.dimensions,):
            raise RemoteError("snapshot", "of another model")
        masses = {str(k): float(v) for k, v in json.loads(metadata.get("masses", "{}")).items()}
        return arrays["model.x"], masses, int(metadata["round"]), int(metadata["samples"])

    def _next_round(self) -> None:
        run = self._run
        self._at(self.traits.round_s, lambda: self._end_round(run))

    def _end_round(self, run: int) -> None:
        if self.dead or run != self._run:
            return
        if self.round == self.traits.dies_at_round:
            self.dead = True
            self._say(c.TrainerFailed("killed (out of memory?)", user_error=False))
            return
        if 2 * self.round < self._rounds():
            self.x += self.traits.pull * (self._goal - self.x)
        for shard in self.masses:
            self.masses[shard] += self.num_samples
        self.samples += self.num_samples
        self.trained += self.num_samples
        self.round += 1
        loss = float(np.square(self.x - self._goal).mean())
        self._say(c.Progress(self.round, self.round * STEPS_PER_ROUND, self.samples, loss, 100.0))
        self._say_snapshot(round_finished=True)
        if not self.finished:
            self._next_round()

    def snapshot(self) -> bytes:
        assert self._plan is not None
        metadata = {
            "part": str(self.part),
            "partition": self._plan.partition,
            "round": str(self.round),
            "samples": str(self.samples),
            "masses": json.dumps(self.masses),
            "by": self.name,
        }
        return tensorfile.pack({"model.x": self.x}, metadata)

    def _say_snapshot(self, *, round_finished: bool) -> None:
        if self._plan is not None:
            finished = self.finished
            step = self.round * STEPS_PER_ROUND
            self._say(
                c.SnapshotTaken(
                    self.part, self.round, step, self.samples, 0.5, round_finished, finished, self.snapshot()
                )
            )

    # --- gossip ---

    def _make_payload(self, command: MakePayload) -> None:
        halves = {shard: self.masses[shard] / 2 for shard in command.shards if self.masses.get(shard, 0.0) > 0}
        for shard, half in halves.items():
            self.masses[shard] -= half
        which = {"exchange": str(command.exchange), "to": command.partner}
        payload = tensorfile.pack({"x": self.x}, which) if halves else b""
        self._say(PayloadMade(command.exchange, tuple(halves.items()), payload))

    def _merge(self, command: Merge) -> None:
        error = ""
        try:
            tensorfile.read_untrusted(command.payload)
            arrays = tensorfile.read(command.payload).arrays()
            if set(arrays) != {"x"} or arrays["x"].shape != self.x.shape:
                raise RemoteError("gossip", "of another shape")
            for shard, mass in command.masses:
                total = self.masses[shard] + mass
                self.x = self.x + mass / total * (arrays["x"] - self.x) if total > 0 else self.x
                self.masses[shard] = total
        except (RemoteError, KeyError) as problem:
            error = str(problem)
        self._say(Merged(command.exchange, command.sender, error))

    # --- head fit: the mean of numbers that depend on the own samples and on the frozen parts ---

    def _extract(self, command: ExtractFeatures) -> None:
        if command.plan:
            self._plan = read_plan(command.plan)
        assert self._plan is not None, "features before a plan"
        if self._session != command.session:
            self._session, self.features, self._copies = command.session, {}, []
        try:
            tensorfile.read_untrusted(command.snapshot)
            arrays = tensorfile.read(command.snapshot).arrays()
            if command.part in self.features or "model.x" not in arrays or command.part >= len(self._plan.parts):
                raise RemoteError("head-fit", "part")
        except RemoteError as error:
            self._session = ""
            self._say(c.SnapshotRefused(str(error)))
            return
        self._copies.append((command.weight, np.asarray(arrays["model.x"])))
        if command.last_copy:
            weights, copies = zip(*self._copies, strict=True)
            self.features[command.part] = np.average(copies, axis=0, weights=weights)
            self._copies = []
        if command.last:
            event = FeaturesExtracted(command.session, self.num_samples)
            self._at(self.traits.feature_s, lambda: None if self.dead else self._say(event))

    def own_features(self) -> np.ndarray:
        """[samples, parts]: the mean of each part's numbers, moved by the peer's goal."""
        row = np.array([self.features[part].mean() for part in sorted(self.features)]) + self._goal.mean()
        return np.tile(row, (self.num_samples, 1))

    def _contribute(self, command: Contribute) -> None:
        if self._session != command.session:
            return
        try:
            state = _read_state(command.state, len(self.features)) if command.step else None
        except RemoteError as error:
            self._say(c.SnapshotRefused(str(error)))
            return
        sums = contribution(command.step, state, self.own_features())
        self._say(Contributed(command.session, command.step, self.num_samples, tensorfile.pack({"sums": sums})))

    def _combine(self, command: Combine) -> None:
        if self._session != command.session:
            return
        parts = len(self.features)
        sound: list[tuple[int, np.ndarray]] = []
        for samples, data in command.contributions:
            try:
                sound.append((samples, _read(data, "sums", parts)))
            except RemoteError as error:
                self._say(c.SnapshotRefused(str(error)))
        if not sound:
            return
        state = _read_state(command.state, parts) if command.step else None
        after = combination(command.step, state, sound)
        self._say(Combined(command.session, command.step + 1, tensorfile.pack({"head": after})))


def contribution(step: int, state: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Step 0: the sum; then the gradient of half the squared distance, summed."""
    return rows.sum(0) if state is None or step == 0 else len(rows) * state - rows.sum(0)


def combination(step: int, state: np.ndarray | None, sums: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """Step 0: twice the mean; then one step down."""
    pairs = list(sums)
    mean = np.sum([each for _, each in pairs], axis=0) / sum(samples for samples, _ in pairs)
    return 2 * mean if state is None or step == 0 else state - FIT_RATE * mean


def _read(data: bytes, name: str, size: int) -> np.ndarray:
    tensorfile.read_untrusted(data)
    arrays = tensorfile.read(data).arrays()
    if set(arrays) != {name} or arrays[name].shape != (size,) or arrays[name].dtype != np.float64:
        raise RemoteError("head-fit", f"{sorted(arrays)[:3]}")
    return arrays[name]


def _read_state(data: bytes, size: int) -> np.ndarray:
    return _read(data, "head", size)
