"""What state directories hold of one job: figures of each peer, how the model was looked at, and what happened.

Invariant: only reads, whole lines only, and at most ``MAX_LINES`` of a directory; what is left out is in ``notes``. Of
a peer that several directories tell of, its own directory counts, and else the one that tells most.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.runtime.metrics.recorder import FILE
from p2ptrain.runtime.node import journal
from p2ptrain.runtime.node.journal import Line, Value
from p2ptrain.ui import messages_for_people
from p2ptrain.words import clean, listed

MAX_LINES = 200_000
MAX_EVENTS = 1000
MAX_PEERS = 64
ANEW = ("job", "job-kept", "job-left")
"""What a journal says when another training begins, or the same one again."""
AROUND_S = 60.0
"""What happened so long before the first figure, and after the last one, belongs to the job too."""


@dataclass(frozen=True, slots=True)
class Event:
    """What the peer of ``device`` said, at a time of its own clock."""

    time: float
    device: str
    words: str


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """``lines`` of kind ``metrics``, oldest first."""

    peer: str
    name: str
    lines: tuple[Line, ...]
    until: float = 0.0
    """When it was last heard of, where its own journal tells more than its figures."""

    @property
    def end(self) -> float:
        return max(self.lines[-1].time, self.until)

    def series(self, field: str, over: str = "time", *, trained: bool = False) -> list[tuple[float, float]]:
        """Where both are known; ``trained``: not what is only said again when the training has ended."""
        told = [line for line in self.lines if number(line.fields.get(field)) is not None]
        while trained and len(told) > 1 and _same(told[-1], told[-2], field):
            told.pop()
        found = ((line.time if over == "time" else number(line.fields.get(over)), line) for line in told)
        return [(x, number(line.fields[field]) or 0.0) for x, line in found if x is not None]

    def last(self, field: str) -> Value:
        """As it was told last; None = never."""
        return next((line.fields[field] for line in reversed(self.lines) if field in line.fields), None)

    def phases(self) -> list[tuple[float, float, str]]:
        """Begin and end of each thing that it did, one after the other."""
        found: list[tuple[float, float, str]] = []
        for line in self.lines:
            phase = str(line.fields.get("phase", ""))
            if found:
                begin, _, before = found[-1]
                found[-1] = (begin, line.time, before)
            if not found or found[-1][2] != phase:
                found.append((line.time, line.time, phase))
        return [*found[:-1], (found[-1][0], self.end, found[-1][2])] if found else []


@dataclass(frozen=True, slots=True)
class Gathered:
    """Of one job."""

    job: Mapping[str, Value]
    """As the line of kind ``job`` says."""
    peers: tuple[PeerFigures, ...]
    looks: tuple[Line, ...]
    """At the assembled model, of kind ``model`` or of a peer with ``model_accuracy``; oldest first."""
    events: tuple[Event, ...]
    notes: tuple[str, ...]

    @property
    def begin(self) -> float:
        return min((each.lines[0].time for each in self.peers), default=0.0)

    @property
    def end(self) -> float:
        return max((each.end for each in self.peers), default=0.0)

    @property
    def lines(self) -> list[Line]:
        """All figures, oldest first."""
        return sorted((line for each in self.peers for line in each.lines), key=lambda line: line.time)


def gather(folders: Sequence[Path], job: str = "") -> Gathered:
    """Of this job, or of the one that was trained last. Raises ``UserError`` where there is nothing of it."""
    read = {folder: _read(folder) for folder in folders}
    jobs = {str(line.fields.get("job")): line for lines in read.values() for line in lines if line.kind == "job"}
    newest = max((line for lines in read.values() for line in lines if line.fields.get("job")), key=_time, default=None)
    where = listed([str(folder) for folder in folders], width=200)
    if newest is None:
        raise UserError(f"{where}: no {FILE}; name the folder that a peer had as --state, or start a peer")
    chosen = job or str(newest.fields["job"])
    notes = []
    others = sorted({str(line.fields["job"]) for lines in read.values() for line in lines if "job" in line.fields})
    if chosen not in others:
        raise UserError(f"{where}: nothing of job {chosen}; there is {listed(others)}")
    if len(others) > 1:
        rest = [each for each in others if each != chosen]
        notes.append(f"These directories also tell of other jobs: {listed(rest)} (--job shows one of them).")
    for folder, lines in read.items():
        lost = sum(number(line.fields.get("lines")) or 0 for line in lines if line.kind == "lines-lost")
        if lost:
            notes.append(f"{folder}: {lost:,.0f} lines could not be written when they were due.")
        if len(lines) >= MAX_LINES:
            notes.append(f"{folder}: more than {MAX_LINES:,} lines; only the newest are shown.")
        elif journal.old_path(folder / FILE).exists() and not any(
            line.kind == "job" and line.fields.get("job") == chosen for line in lines
        ):
            notes.append(f"{folder}: the training is older than what its file has room for; its beginning is missing.")
    of_job = {f: [line for line in lines if line.fields.get("job") == chosen] for f, lines in read.items()}
    peers = _peers(of_job)
    if len(peers) > MAX_PEERS:
        notes.append(f"{len(peers)} peers; the {MAX_PEERS} with most figures are shown.")
        kept = sorted(peers, key=lambda each: len(each.lines), reverse=True)[:MAX_PEERS]
        peers = [each for each in peers if each in kept]
    looks = [line for lines in of_job.values() for line in lines if line.kind == "model"]
    looks += [line for each in peers for line in each.lines if "model_accuracy" in line.fields]
    told = jobs.get(chosen)
    found = Gathered(dict(told.fields) if told else {"job": chosen}, tuple(peers), (), (), ())
    if len(folders) > 1:
        notes.append("Times are those of each device's own clock.")
    names = {each.peer: each.name for each in peers}
    events, more = _events(of_job, names, found.begin - AROUND_S, found.end + AROUND_S)
    if more:
        notes.append(f"{more:,} older events are not shown; `p2ptrain log` on the device tells them.")
    return Gathered(found.job, found.peers, tuple(sorted(looks, key=_time)), tuple(events), tuple(notes))


def _read(folder: Path) -> list[Line]:
    return list(deque(journal.read(folder.expanduser() / FILE), maxlen=MAX_LINES))


def _peers(of_job: Mapping[Path, Sequence[Line]]) -> list[PeerFigures]:
    until = _heard_until(of_job)
    best: dict[str, tuple[int, int, list[Line]]] = {}
    for lines in of_job.values():
        counted = Counter((str(line.fields.get("peer")), bool(line.fields.get("own"))) for line in _figures(lines))
        for (peer, own), num in counted.items():
            if (int(own), num) > best.get(peer, (-1, 0, []))[:2]:
                mine = [line for line in _figures(lines) if str(line.fields.get("peer")) == peer]
                best[peer] = (int(own), num, [line for line in mine if bool(line.fields.get("own")) == own])
    found = []
    taken: Counter[str] = Counter()
    for peer, (_, _, lines) in sorted(best.items(), key=lambda each: each[1][2][0].time):
        name = clean(str(lines[-1].fields.get("name") or peer), 40)
        taken[name] += 1
        shown = name if taken[name] == 1 else f"{name} {peer[:6]}"
        found.append(PeerFigures(peer, shown, tuple(sorted(lines, key=_time)), until.get(peer, 0.0)))
    return found


def _same(one: Line, other: Line, field: str) -> bool:
    return all(one.fields.get(name) == other.fields.get(name) for name in ("step", field))


def _heard_until(of_job: Mapping[Path, Sequence[Line]]) -> dict[str, float]:
    """By peer, when its own journal tells of it last in this training, where it had not ended that by its figures."""
    found = {}
    for folder, lines in of_job.items():
        own = next((line for line in reversed(lines) if line.fields.get("own")), None)
        if own is None or own.fields.get("phase") in ("done", "failed"):
            continue
        for line in journal.read(folder.expanduser() / "journal.jsonl"):
            if line.time > own.time and line.kind in ANEW:
                break
            found[str(own.fields.get("peer"))] = line.time
    return found


def _figures(lines: Iterable[Line]) -> Iterator[Line]:
    return (line for line in lines if line.kind == "metrics" and isinstance(line.fields.get("peer"), str))


def _events(
    of_job: Mapping[Path, Sequence[Line]], names: Mapping[str, str], begin: float, end: float
) -> tuple[list[Event], int]:
    """Sentences of the devices' journals, oldest first, and how many more there are."""
    found = []
    for folder, lines in of_job.items():
        own = next((line for line in reversed(lines) if line.fields.get("own")), None)
        device = clean(str(own.fields.get("name") or folder.name) if own else folder.name, 40)
        for line in journal.read(folder.expanduser() / "journal.jsonl"):
            if begin <= line.time <= end and (words := messages_for_people.tell(line)):
                named = re.sub(r"\b[a-z2-7]{16}\b", lambda match: names.get(match[0], match[0]), words)
                found.append(Event(line.time, device, named))
    found.sort(key=lambda event: event.time)
    return found[-MAX_EVENTS:], max(0, len(found) - MAX_EVENTS)


def number(value: Value) -> float | None:
    """None for what is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _time(line: Line) -> float:
    return line.time


def local_time(at: float) -> str:
    """For people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at if 0 <= at < 2**40 else 0))
