"""A status snapshot as a table for people and as JSON for programs: who is here, what each does and waits for.

Invariant: reads a snapshot and nothing else; every number in the table is in the JSON too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from p2ptrain.config import Job
from p2ptrain.core.coverage import is_beyond, within
from p2ptrain.core.harvest import looks_of, works_of
from p2ptrain.core.looks.figures import GroupLook, best_of, looks_of_group
from p2ptrain.core.plan import Part, Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import MODES, mode_of
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.runtime.report import look_lines, work_line, work_text, works_plain
from p2ptrain.ui import group_map
from p2ptrain.wire.messages import NO_PART, MemberState, Record
from p2ptrain.words import clean, counted, listed, mbit_s, percent, scaled, table, told_apart

TITLES = ("peer", "device", "does", "round", "step", "loss", "val", "samples/s", "sent", "part")
RIGHT = (3, 4, 5, 6, 7, 8)
MOST_ROWS = 32
"""Of a larger room those that there is something to say of come first, and the others are counted."""
MOST_LINES = 48
"""Of the plan."""
GONE = ("dead", "left")
HARMLESS = frozenset({"session", "replay", "echo", "self", "goodbye", "old-epoch"})
"""Refusals that a peer's coming, going or restart brings about. They are in the JSON."""
_REFUSED = {
    "proof": "without the join code",
    "version": "of another wire version",
    "banned": "of peers that are shut out",
    "full": "because too many peers are here",
    "twin": "of a second device with the same identity",
    "other-job": "about another job",
    "unread": "unread, of peers that are shut out",
    "unexpected": "that nobody asked for",
    "hung-up": "(connections) too many at once, or too much unread",
    "record-unsigned": "in another's name, unsigned",
    "rumour-unsigned": "of another's coming or going, unsigned",
    "record-unmet": "about peers that nobody here has met",
    "job-unread": "with a job that this version of p2ptrain can't read",
    "job-code": "with a job whose code was not allowed here",
    "gossip-mass-cut": "cut to the samples that were recorded",
}


class Snapshot(Protocol):
    """What an observer found."""

    @property
    def job(self) -> Job | None: ...
    @property
    def plan(self) -> Plan | None: ...
    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def states(self) -> Mapping[PeerId, MemberState]: ...
    @property
    def refused(self) -> Mapping[PeerId, Mapping[str, int]]: ...
    @property
    def troubles(self) -> Mapping[str, str]: ...
    @property
    def sent(self) -> Mapping[PeerId, Mapping[str, int]]: ...
    @property
    def figures(self) -> Mapping[PeerId, Mapping[str, float]]: ...


def is_here(snapshot: Snapshot, record: Record) -> bool:
    return snapshot.states.get(record.peer, "alive") not in GONE


def _elsewhere(snapshot: Snapshot, record: Record) -> bool:
    """It has another job than the one that is shown: rounds, plan and parts of this one are not its."""
    return snapshot.job is not None and record.job not in ("", snapshot.job.id)


def members(snapshot: Snapshot) -> list[Record]:
    """Of those that are here the ones that have the job that is shown, or none yet."""
    return [each for each in snapshot.records if is_here(snapshot, each) and not _elsewhere(snapshot, each)]


def headline(snapshot: Snapshot) -> str:
    """Job, mode and plan in a line or two."""
    job, plan = snapshot.job, snapshot.plan
    there = [record for record in snapshot.records if is_here(snapshot, record)]
    if job is None:
        ids = sorted({record.job for record in there if record.job})
        told = "none of them has told its job yet" if len(there) != 1 else "it has told no job yet"
        if ids:
            told = f"a job ({listed(ids)}) that has not come here, or is for another version of p2ptrain"
        return f"{counted(len(there), 'peer')}; {told}"
    lines = [
        f"job {clean(job.name, 40)} ({job.id}): {clean(job.model.name, 60)}, mode {_mode(snapshot)}, "
        f"{len(job.data.classes)} classes, {job.training.rounds} rounds; peers here: {len(there)}"
    ]
    if plan is None:
        has_one = any(record.plan and record.job == job.id for record in there)
        lines.append("the group has a plan, which has not come here yet" if has_one else "no plan yet")
    else:
        lines.append(f"plan {plan.hash[:8]}, epoch {epoch_words(plan.epoch)}, parts: {len(plan.parts)}")
        planned = mode_of(job).words.plan_lines(plan, job)
        lines += [f"  {with_names(snapshot, line)}" for line in planned[:MOST_LINES]]
        lines += [f"  and {len(planned) - MOST_LINES} lines more"] if len(planned) > MOST_LINES else []
        rounds = job.training.rounds
        lines += [f"  {line}" for line in mode_of(job).words.kept_lines(plan, job, within(rounds, members(snapshot)))]
        for record in members(snapshot):
            if beyond := sum(is_beyond(ref, rounds) for ref in record.holdings):
                words = f"{counted(beyond, 'snapshot')} that {with_names(snapshot, record.peer)} tells of"
                lines.append(f"  left out: {words}, of rounds after {rounds}, the job's last")
        lines += [f"  {clean(line, 400)}" for line in look_lines(looks_of(snapshot.records, job.id))]
        lone = unstaffed(snapshot)
        for part in lone[:MOST_ROWS]:
            lines.append(f"  nobody trains part {part.index} ({mode_of(job).words.part_name(plan, job, part.index)})")
        lines += [f"  nor {len(lone) - MOST_ROWS} other parts"] if len(lone) > MOST_ROWS else []
    note = mode_of(job).words.look_note(plan) if plan is not None else ""
    lines += [f"  {line}" for line in model_lines(looks_of_group(snapshot.records, job.id), note)]
    lines += [f"  {line}" for line in work_line(works_of(snapshot.records, job.id))]
    return "\n".join(lines)


def model_lines(looks: Sequence[GroupLook], note: str = "") -> list[str]:
    """How good the whole model was when the group looked at it last, and where it was best."""
    best = best_of(looks)
    if best is None:
        return []
    last, which = looks[-1], ""
    who = f"{last.num_peers} device{'s' if last.num_peers > 1 else ''}"
    if best.round != last.round:
        which = f"; best so far after round {best.round}: {percent(best.accuracy)} of {best.samples:,}"
    told = f"{percent(last.accuracy)} of {last.samples:,} validation samples of {who} right"
    return [f"the whole model, put together after round {last.round}{note}: {told}{which}"]


def _look(look: GroupLook | None) -> dict[str, Any] | None:
    if look is None:
        return None
    sums = {"round": look.round, "samples": look.samples, "peers": look.num_peers}
    return {**sums, "accuracy": look.accuracy, "loss": look.loss, "state": look.state}


def _mode(snapshot: Snapshot) -> str:
    """The job's; where the group chose it, that."""
    asked = snapshot.job.mode if snapshot.job else ""
    return f"{snapshot.plan.mode} ({asked})" if snapshot.plan and asked not in ("", snapshot.plan.mode) else asked


def unstaffed(snapshot: Snapshot) -> list[Part]:
    """Parts whose trainers are all gone or have failed, or that never had one."""
    here = {record.peer for record in members(snapshot) if record.phase != "failed"}
    return [part for part in snapshot.plan.parts if here.isdisjoint(part.trainers)] if snapshot.plan else []


def row(snapshot: Snapshot, record: Record) -> tuple[str, ...]:
    """The cells of one peer, in the order of ``TITLES``."""
    job = snapshot.job
    rounds = f"/{job.training.rounds}" if job and not _elsewhere(snapshot, record) else ""
    speed, memory = scaled(record.flops_per_s, "FLOP/s"), scaled(record.memory_bytes, "B")
    return (
        f"{clean(record.name, 24)} {record.peer[:6]}",
        f"{speed}, {memory}",
        does(snapshot, record),
        f"{record.round}{rounds}",
        str(record.step),
        f"{record.loss:.3f}" if record.step and _loss(record) is not None else "-",
        percent(record.accuracy if record.accuracy >= 0 else None),
        f"{record.samples_per_s:.0f}" if record.samples_per_s else "-",
        scaled(record.bytes_sent, "B"),
        part_text(snapshot, record),
    )


def _loss(record: Record) -> float | None:
    """None where it is not known, as in a pipeline before its last stage has said it."""
    return record.loss if math.isfinite(record.loss) and record.loss != 0 else None


def does(snapshot: Snapshot, record: Record) -> str:
    """The phase of a peer that is here; else that it is gone."""
    state = snapshot.states.get(record.peer, "alive")
    return {"dead": "lost", "left": "left", "suspect": f"{record.phase}?"}.get(state, record.phase)


def part_text(snapshot: Snapshot, record: Record) -> str:
    """``#1 cat, dog, 33 % of the width``."""
    job, plan = snapshot.job, snapshot.plan
    if record.part == NO_PART:
        return "-"
    if plan is None or job is None or record.part >= len(plan.parts) or _elsewhere(snapshot, record):
        return f"#{record.part}"
    return with_names(snapshot, mode_of(job).words.part_text(plan, job, record.part))


def with_names(snapshot: Snapshot, text: str) -> str:
    """Peers by what they call themselves."""
    for peer, name in told_apart({record.peer: record.name for record in snapshot.records}).items():
        text = text.replace(peer, clean(name, 32))
    return text


def notes(snapshot: Snapshot, record: Record, *, figures: bool = True) -> list[str]:
    """What is to be said of a peer below its row: what it waits for, and what it had to refuse; its ``figures``."""
    said = []
    if _elsewhere(snapshot, record) and is_here(snapshot, record):
        said.append(f"has another job ({record.job})")
    if record.waiting_for and is_here(snapshot, record):
        said.append(f"waits for {clean(record.waiting_for, 200)}")
    if record.ends_after and record.phase == "training" and is_here(snapshot, record):
        has_patience = snapshot.job is not None and snapshot.job.training.patience > 0
        why = ", or its model got no better (training.patience)" if has_patience else ""
        said.append(f"ends after round {record.ends_after}: the group was asked to stop{why}")
    if snapshot.job is not None:
        said += [f"computed {work_text(work)}" for work in works_of([record], snapshot.job.id)]
    if (
        figures
        and is_here(snapshot, record)
        and (device := group_map.device_words(snapshot.figures.get(record.peer, {})))
    ):
        said.append(device)
    if record.sent and is_here(snapshot, record):
        said.append(f"sent in its last round, Mbit/s: {', '.join(_sent(snapshot, record))}")
    refused = {_REFUSED.get(r, r): n for r, n in snapshot.refused.get(record.peer, {}).items() if r not in HARMLESS}
    if refused:
        counts = listed((f"{clean(reason, 60)} {n}" for reason, n in sorted(refused.items())), 6, 70)
        said.append(f"refused messages: {counts}")
    return said


def _sent(snapshot: Snapshot, record: Record) -> list[str]:
    """To whom, and how much, of what it may send."""
    job, plan = snapshot.job, snapshot.plan
    granted = mode_of(job).words.granted(plan, record.peer) if job is not None and plan is not None else {}
    said = []
    for rate in record.sent[:6]:
        may = f" of {mbit_s(granted[rate.peer])} granted" if rate.peer in granted else ""
        said.append(f"{with_names(snapshot, rate.peer)} {mbit_s(rate.bytes_per_s)}{may}")
    return said


def rows_of(snapshot: Snapshot) -> tuple[list[Record], str]:
    """Whose rows are shown, and how many of what kind are not ("" = all are). In a large room those that are missed
    or failed, or wait for something, come before those that do what they should, and those come before who left."""

    def urgency(record: Record) -> int:
        state = snapshot.states.get(record.peer, "alive")
        if state == "left":
            return 3
        if state != "alive" or record.phase == "failed":
            return 0
        return 1 if record.waiting_for or record.leaving or record.phase == "waiting" else 2

    chosen = {record.peer for record in sorted(snapshot.records, key=urgency)[:MOST_ROWS]}
    others = [record for record in snapshot.records if record.peer not in chosen]
    does_what = Counter(does(snapshot, record) for record in others)
    kinds = ", ".join(f"{count} {what}" for what, count in does_what.most_common())
    rounds = sorted(record.round for record in others)
    words = (
        f"and {len(others)} more: {kinds}; rounds {rounds[0]} to {rounds[-1]} (`p2ptrain status --json` tells of all)"
        if others
        else ""
    )
    return [record for record in snapshot.records if record.peer in chosen], words


def render(snapshot: Snapshot) -> str:
    """The table for a terminal of any width."""
    records, others = rows_of(snapshot)
    lines = [*headline(snapshot).splitlines(), ""]
    rows = table([TITLES, *(row(snapshot, record) for record in records)], right=RIGHT)
    lines.append(rows[0])
    for record, text in zip(records, rows[1:], strict=True):
        lines.append(text)
        lines += [f"    {note}" for note in notes(snapshot, record)]
    lines += [others] if others else []
    for source, why in sorted(snapshot.troubles.items()):
        lines.append(
            f"looking from this device: {clean(source, 80)} {clean(why, 200)}; there may be peers it can't see"
        )
    return "\n".join(lines)


def to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """What ``status --json`` prints."""
    job, plan = snapshot.job, snapshot.plan
    here = within(job.training.rounds, members(snapshot)) if job is not None else members(snapshot)
    looks = looks_of_group(snapshot.records, job.id) if job is not None else []
    return {
        "job": None
        if job is None
        else {
            "id": job.id,
            "name": job.name,
            "model": job.model.name,
            "mode": job.mode,
            "rounds": job.training.rounds,
            "classes": list(job.data.classes),
        },
        "plan": None
        if plan is None
        else {
            "hash": plan.hash,
            "mode": plan.mode,
            "epoch": plan.epoch,
            "parts": [_part(job, plan, part) for part in plan.parts],
            "unstaffed": [part.index for part in unstaffed(snapshot)],
            **MODES[plan.mode].words.plan_plain(plan),
            "kept": MODES[plan.mode].words.kept_plain(plan, here),
            "flows": group_map.flows(job, plan),
        },
        "coverage": group_map.coverage(job, plan, here),
        "harvest": group_map.harvest_now(job, plan, snapshot.records, here),
        "told": headline(snapshot).splitlines(),
        "peers": [_peer(snapshot, record) for record in snapshot.records],
        "work": works_plain(works_of(snapshot.records, job.id)) if job is not None else None,
        "looks": [_look(look) for look in looks],
        "best_look": _look(best_of(looks)),
        "troubles": dict(snapshot.troubles),
    }


def _part(job: Job | None, plan: Plan, part: Part) -> dict[str, Any]:
    return {
        "part": part.index,
        "classes": MODES[plan.mode].words.part_classes(plan, job, part.index),
        "share": part.share,
        "trainers": list(part.trainers),
    }


def _peer(snapshot: Snapshot, record: Record) -> dict[str, Any]:
    return {
        "peer": record.peer,
        "name": record.name,
        "state": snapshot.states.get(record.peer, "alive"),
        "here": is_here(snapshot, record),
        "phase": record.phase,
        "does": does(snapshot, record),
        "trains": part_text(snapshot, record),
        "notes": notes(snapshot, record, figures=False),
        "job": record.job,
        "part": None if record.part == NO_PART else record.part,
        "round": record.round,
        "step": record.step,
        "samples": record.samples,
        "loss": _loss(record),
        "validation_accuracy": record.accuracy if record.accuracy >= 0 else None,
        "model_validation_samples": record.model_samples,
        "samples_per_s": record.samples_per_s,
        "work_flops": record.work_flops,
        "bytes_sent": record.bytes_sent,
        "flops_per_s": record.flops_per_s,
        "memory_bytes": record.memory_bytes,
        "link_bytes_per_s": record.link_bytes_per_s or None,
        "links": group_map.links(record),
        "figures": group_map.figures(snapshot.figures.get(record.peer, {})),
        "sent_by_kind": group_map.traffic(snapshot.sent.get(record.peer, {})),
        "leaving": record.leaving,
        "ends_after": record.ends_after or None,
        "counts": list(record.counts),
        "wishes": list(record.wishes),
        "epoch": record.epoch,
        "slowdown": record.slowdown,
        "sent": [{"peer": rate.peer, "bytes_per_s": rate.bytes_per_s} for rate in record.sent],
        "waiting_for": record.waiting_for,
        "addresses": list(record.addresses),
        "holdings": [
            {"part": "head", "trainer": h.trainer, "parts": h.span, "step": h.step}
            if h.kind == "head"
            else {"part": h.part, "trainer": h.trainer, "round": h.round, "step": h.step}
            for h in record.holdings
        ],
        "refused": dict(snapshot.refused.get(record.peer, {})),
    }
