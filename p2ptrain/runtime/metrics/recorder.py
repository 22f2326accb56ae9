"""Writes down what this peer and the others tell of themselves while they train, and tells it to loggers.

Invariant: nothing here waits for a disk or a logger, and none of them can end a training: what can't be written is
counted by the journal's thread, and a logger that fails is said to have failed and is not called again. A file has at
most ``MAX_BYTES``; the half before it lies beside it, as a journal's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from p2ptrain.config import Job
from p2ptrain.core.looks.figures import GroupLook, looks_of_group
from p2ptrain.errors import UserError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.loggers import Logger, a_persons_code
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.metrics.measures import Value, job_measures, measures, numbers
from p2ptrain.runtime.node.journal import Journal, Line
from p2ptrain.runtime.outlet import Outlet
from p2ptrain.wire.messages import Record

FILE = "metrics.jsonl"
MAX_BYTES = 8 << 20
LOOK_S = 1.0
OWN_EVERY_S = 5.0
OTHERS_EVERY_S = 15.0
"""Within a round. The end of a round, a new phase and a new plan are written at once."""
OF_A_ROUND = ("job", "peer", "name", "own", "phase", "epoch", "part")
MAKE_S = 60.0
"""So long a logger may take to begin."""


class Group(Protocol):
    """What is seen of the peers of a job."""

    @property
    def own_id(self) -> PeerId: ...

    @property
    def own(self) -> Record: ...

    def records(self) -> list[Record]: ...


class Recorder:
    """Of one peer, for all jobs that it trains one after the other."""

    def __init__(self, path: Path | None, loggers: Mapping[str, Callable[[], Logger]]) -> None:
        """``path``: of ``metrics.jsonl``; ``loggers``: what makes each, by name.

        Raises ``UserError`` for a logger that does not begin.
        """
        self._journal = Journal(path, max_bytes=MAX_BYTES, max_of_a_kind=None, tail_lines=0, aside=True)
        self._seen: Callable[[], tuple[Job, Group] | None] = lambda: None
        self._job = JobId("")
        self._told_round = 0
        """The last one of this peer whose loss is written down."""
        self._written: dict[PeerId, tuple[float, tuple[object, ...], Record]] = {}
        """Of each peer: when it was written down last, what makes a line due at once, and what was said."""
        self._looked_at: dict[str, int] = {}
        """On how many samples, by state of the whole model, as it was written down last."""
        self._labels: dict[PeerId, str] = {}
        """What loggers call each peer: two devices may have one name."""
        self._run = ""
        """Goes behind it: a job that goes on from a model counts steps from 0, and is a run of its own."""
        self._loggers = [LoggerThread(name, make) for name, make in loggers.items()]
        try:
            for each in self._loggers:
                each.wait_made()
        except UserError:
            self.close()
            raise

    def follow(self, seen: Callable[[], tuple[Job, Group] | None]) -> None:
        """From now on write down what this shows: the job and the group; None while there is no job."""
        self._seen = seen

    def look(self, now: float) -> None:
        """Write down what is new since the last look. ``now``: seconds since 1970."""
        if (seen := self._seen()) is None:
            return
        job, group = seen
        if job.id != self._job:
            self._job, self._written, self._told_round = job.id, {}, 0
            self._labels, self._run = {}, f" {job.id[:6]}" if job.model.init else ""
            self._journal.write(now, "job", **job_measures(job))
        self._look_at_model(looks_of_group(group.records(), job.id), group.own, now)
        for record in group.records():
            self._look_at(record, now, own=record.peer == group.own_id)

    def heard(self, line: Line) -> None:
        """A line of the own journal: the end of a round is written down at once, however short rounds are."""
        if line.kind not in ("round", "validated") or (seen := self._seen()) is None:
            return
        if seen[0].id != self._job:
            self.look(line.time)
        own = seen[1].own
        if line.kind == "round":
            self._round_ended(own, line)
        else:
            looked = {"model_accuracy": line.fields.get("accuracy"), "model_samples": line.fields.get("samples")}
            known = {name: value for name, value in looked.items() if value is not None}
            self._tell(line.time, "model", {**measures(own, own=True), **known})

    def _round_ended(self, own: Record, line: Line) -> None:
        """Where it is told late, what the own record says may be of the next round already: then only this is told."""
        ended, loss = line.fields.get("round"), line.fields.get("loss")
        if not isinstance(ended, int):
            return
        changes: dict[str, Any] = {"loss": float(loss)} if isinstance(loss, (int, float)) else {}
        if own.round <= ended:
            self._look_at(dataclasses.replace(own, round=ended, **changes), line.time, own=True, every_s=0.0)
        elif ended > self._told_round:
            known = {name: value for name, value in measures(own, own=True).items() if name in OF_A_ROUND}
            self._journal.write(line.time, "metrics", **{**known, "round": ended, **changes})
        self._told_round = max(self._told_round, ended)

    def _look_at(self, record: Record, now: float, *, own: bool, every_s: float | None = None) -> None:
        mark = (record.phase, record.round, record.epoch, record.part, record.accuracy, record.model_samples)
        at, before, said = self._written.get(record.peer, (0.0, None, None))
        moved = said is not None and (said.step, said.samples, said.loss) != (record.step, record.samples, record.loss)
        due_s = every_s if every_s is not None else OWN_EVERY_S if own else OTHERS_EVERY_S
        if mark != before or (moved and not 0 <= now - at < due_s):  # or the clock was set
            self._written[record.peer] = (now, mark, record)
            if own and record.loss:
                self._told_round = max(self._told_round, record.round)
            self._tell(now, "metrics", measures(record, own=own))

    def _look_at_model(self, looks: Sequence[GroupLook], own: Record, now: float) -> None:
        """What the group found of it while it trains: again when more have told."""
        for look in looks:
            if look.samples > self._looked_at.get(look.state, 0):
                self._looked_at[look.state] = look.samples
                figures = {"model_accuracy": round(look.accuracy, 6), "model_samples": look.samples}
                known = {name: value for name, value in measures(own, own=True).items() if name in OF_A_ROUND}
                told = {**known, "round": look.round, "step": own.step, "model_loss": round(look.loss, 6), **figures}
                self._tell(now, "model", told)
        states = {look.state for look in looks}
        self._looked_at = {state: n for state, n in self._looked_at.items() if state in states}

    def _tell(self, now: float, kind: str, values: Mapping[str, Value]) -> None:
        self._journal.write(now, kind, **values)
        peer, name = PeerId(str(values["peer"])), str(values["name"])
        if peer not in self._labels:
            # Folders of TensorBoard have these names, and some systems' take no notice of upper and lower case.
            is_taken = not name or name.casefold() in map(str.casefold, self._labels.values())
            self._labels[peer] = f"{name} {peer[:6]}".strip() if is_taken else name
        for each in self._loggers:
            each.log(self._labels[peer] + self._run, int(values["step"]), numbers(values))

    def troubles(self) -> list[Note]:
        """Of loggers that fail, or lose figures, as far as that was not told yet."""
        return [
            Note(kind, (("logger", each.name), ("why", why))) for each in self._loggers for kind, why in each.news()
        ]

    def watch(self, note: Callable[[Note], None]) -> asyncio.Future[None]:
        """Look again and again, until cancelled, and then once more; tell what goes wrong. A bug of what only writes
        down ends no training, and makes no failure of a peer that is asked to leave: it is told like all the rest."""

        def ended(watching: asyncio.Future[None]) -> None:
            if not watching.cancelled() and (error := watching.exception()) is not None:
                note(Note("metrics-failed", (("why", f"{type(error).__name__}: {error}"),)))

        watching = asyncio.ensure_future(self._watch(note))
        watching.add_done_callback(ended)
        return watching

    async def _watch(self, note: Callable[[Note], None]) -> None:
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self.look(time.time())
                for trouble in self.troubles():
                    note(trouble)
        except asyncio.CancelledError:
            self.look(time.time())
            raise

    def close(self) -> None:
        self._journal.close()
        for each in self._loggers:
            each.close()


class LoggerThread:
    """One logger, made, called and closed in one thread of its own."""

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        self.name = name
        self._outlet = Outlet(f"logger {name}")
        self._logger: Logger | None = None
        self._failure, self._is_told, self._tell_lost = "", False, 1
        self._made = threading.Event()
        self._outlet.put(lambda: self._make(make))

    def wait_made(self) -> None:
        if not self._made.wait(MAKE_S):
            raise UserError(f"logger {self.name} has not begun within {MAKE_S:.0f} s: start without it")
        if self._failure:
            raise UserError(f"logger {self.name}: {self._failure}")

    def log(self, peer: str, step: int, values: Mapping[str, float]) -> None:
        self._outlet.put(lambda: self._do(lambda logger: logger.log(peer, step, values)))

    def news(self) -> list[tuple[str, str]]:
        """The kind of trouble and what it is, once each; of lost figures again when they are ten times as many."""
        found = []
        if self._failure and not self._is_told:
            self._is_told = True
            found.append(("logger-failed", self._failure[:300]))
        if self._outlet.lost >= self._tell_lost:
            self._tell_lost = 10 * self._outlet.lost
            found.append(("logger-behind", str(self._outlet.lost)))
        return found

    def close(self) -> None:
        self._outlet.put(lambda: self._do(lambda logger: logger.close()))
        self._outlet.close()

    def _make(self, make: Callable[[], Logger]) -> None:
        try:
            with a_persons_code("it does not begin"):
                self._logger = make()
        except UserError as error:
            self._failure = str(error)
        finally:
            self._made.set()

    def _do(self, work: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            with a_persons_code("it failed"):
                work(self._logger)
        except UserError as error:
            self._logger, self._failure = None, str(error)


def named(loggers: Sequence[Callable[[], Logger]]) -> dict[str, Callable[[], Logger]]:
    """By what people call them."""
    found: dict[str, Callable[[], Logger]] = {}
    for make in loggers:
        name = getattr(getattr(make, "func", make), "__name__", type(make).__name__)
        while name in found:
            name += "+"
        found[name] = make
    return found
