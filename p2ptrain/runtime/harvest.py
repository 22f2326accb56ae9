"""Collecting one fresh copy of every part, from a group or from state directories, and having its mode assemble the
global model from them; and that model's file.

Invariant: a file is replaced by a model of the same job that is as far, or by whatever its owner says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.harvest import (
    Collected,
    Harvest,
    KeptHarvest,
    MisfitError,
    PartReport,
    looks_of,
    stopped_after,
    works_of,
)
from p2ptrain.core.looks.figures import best_of, looks_of_group
from p2ptrain.core.mode import ENDED
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.ids import PeerId, blob_id
from p2ptrain.modes.registry import mode_of
from p2ptrain.runtime import report
from p2ptrain.runtime.best_state import BEST, collect_best, kept_best
from p2ptrain.runtime.misfits import (
    FETCH_TIMEOUT_S,
    SLOWEST_BYTES_PER_S,
    Misfits,
    answered,
    credible_bytes,
    holders_of,
    implausible,
    what_of,
)
from p2ptrain.runtime.node.observer import Observer
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.runtime.store.kept import KeptJob
from p2ptrain.wire.messages import Record, SnapshotRef
from p2ptrain.words import counted, scaled

BEST_OF_ALL = "--best gives a state as the group looked at it, of all devices: leave out --best or --without"
ATTEMPTS, AGAIN_S = 3, 0.5
"""Snapshots are replaced while a group trains: look again for fresher ones so often."""
CHASE_S = 60.0
"""And for so long where somebody says that it has a part, and its copy is replaced each time before it is here."""


async def of_group(
    node: ObserverNode,
    wait_s: float,
    *,
    partial: bool = False,
    without: Sequence[str] = (),
    best: bool = False,
    allow_user_code: bool | str = False,
    say: Callable[[str], None] = lambda text: None,
) -> Harvest:
    """The model of a group. Copies that are none of it are left out, and the next freshest are taken in their place.

    ``allow_user_code``: whether a model function of the user's own may run here, or the name of the one that may.
    Raises ``NotCoveredError``, ``UserError``.
    """

    async def get(misfits: Misfits) -> Collected:
        found = await collect(node, wait_s, partial=partial, best=best, misfits=misfits, say=say)
        return leave_out(found, without)

    _, made = await made_of(get, allow_user_code, say)
    return made


async def made_of(
    get: Callable[[Misfits], Awaitable[Collected]],
    allow_user_code: bool | str | Collection[str],
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Collected, Harvest]:
    """Copies, and the model that they make. Those that are none of it give way to the next freshest.

    Raises ``UserError``.
    """
    misfits = Misfits()
    while True:
        collected = await get(misfits)
        allowed = may_run(collected.job, allow_user_code)
        try:
            return collected, await asyncio.to_thread(assemble, collected, allow_user_code=allowed)
        except MisfitError as error:
            if not misfits.add(error):
                raise
            say(f"{error}: looking for another one")


def may_run(job: Job, allow_user_code: bool | str | Collection[str]) -> bool:
    """Whether the job's own model function may: any, or one of that name or of those."""
    if isinstance(allow_user_code, (bool, str)):
        return allow_user_code is True or allow_user_code == job.model.name
    return job.model.name in allow_user_code


async def collect(
    node: ObserverNode,
    wait_s: float,
    *,
    partial: bool = False,
    best: bool = False,
    misfits: Misfits | None = None,
    only_job: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Collected:
    """Fetch the freshest copies that anyone alive has, or (``best``) those of the best state; none of the ``misfits``.

    ``only_job``: the id of the job whose they are; "" = of the one that most train.

    Raises ``NotCoveredError``, ``UserError``.
    """
    misfits = misfits or Misfits()
    observer = node.observer
    observer.only_job = only_job
    await node.look_around(wait_s, need_job=True)
    job, plan = observer.job, observer.plan()
    here = observer.alive()
    if job is None and only_job and here and all(record.job != only_job for record in here):
        raise UserError(f"nobody who is here trains this job ({only_job}) any more")
    if job is None or plan is None:
        raise NotCoveredError(_nothing_yet(observer, wait_s))
    observer.only_job = job.id  # whoever comes meanwhile
    harvester = mode_of(job).harvester

    def is_out(holding: SnapshotRef, what: str, holders: Collection[PeerId]) -> bool:
        is_misfit = misfits.has(holding, holders)
        if is_misfit and misfits.is_news(holding):
            name = _name(node, holding.trainer)
            say(f"{what}: left out, as what {name} made was of no use, or who says to have it hands out nothing")
        return is_misfit

    async def fetch(holding: SnapshotRef, what: str) -> bytes | None:
        here = answered(observer)
        holders = holders_of(here).get(holding.blob, ())
        if is_out(holding, what, holders):
            return None
        if not observer.is_trainers(holding):
            say(f"{what}: left out, as {_name(node, holding.trainer)} did not sign it")
            return None
        say(f"{what}: {scaled(holding.num_bytes, 'B')}, made by {_name(node, holding.trainer)}")
        begun = node.now()
        num_bytes = credible_bytes(holding, here)
        data = await node.fetch(holding, FETCH_TIMEOUT_S + num_bytes / SLOWEST_BYTES_PER_S)
        if data is None:
            misfits.never_came(node.now() - begun, holders)
            say(f"{what}: nobody hands out this copy any more")
        return data

    if best:
        return await collect_best(observer, job, plan, harvester, fetch, say)
    attempt, start = 0, node.now()
    while True:
        attempt += 1
        members = observer.members()
        by, odd = holders_of(answered(observer)), implausible(members, job)
        news = Counter((h.trainer, why) for h, why in odd.items() if misfits.is_news(h))
        for (trainer, why), number in news.items():
            say(f"left out: {counted(number, 'snapshot')} that {_name(node, trainer)} made, {why}")
        told_of = dict.fromkeys(h for record in members for h in record.holdings if h.kind != "kept")
        holdings = [h for h in told_of if h not in odd and not is_out(h, what_of(h), by.get(h.blob, ()))]
        result, parts = await harvester.fetch(plan, holdings, fetch)
        missing = harvester.missing(plan, parts)
        has_result = any(h.kind == "head" for h in holdings)
        is_whole = not missing and (result is not None or not has_result)
        told = {h.part for h in holdings if h.kind == "part"}
        is_chased = bool(missing) and told.issuperset(missing) and node.now() - start < CHASE_S
        if (is_whole and not _is_behind(members)) or (attempt >= ATTEMPTS and not is_chased):
            break
        if missing:
            say("not all parts could be had, the group trains on meanwhile; looking again")
        await asyncio.sleep(AGAIN_S)
        await node.look_around(wait_s, need_job=True)
        plan = observer.plan() or plan
    if not parts or (missing and not partial):
        raise NotCoveredError(harvester.lament(job, plan, missing))
    trained = frozenset(record.part for record in observer.members() if record.phase != "failed")
    plans = {each.epoch: each for each in observer.plans.values()}
    return Collected(job, plan, parts, result, dict(observer.records), trained, told=tuple(holdings), plans=plans)


def _nothing_yet(observer: Observer, wait_s: float) -> str:
    """Why there is nothing to harvest."""
    here = observer.alive()
    if observer.job is None and observer.job_unread:
        return (
            f"this version of p2ptrain can't read the job of the group ({observer.job_unread}); harvest on one of its "
            "devices, or install the same version here"
        )
    if any(record.plan for record in here) or (observer.job is None and any(record.job for record in here)):
        return f"job and plan of the group did not come within {wait_s:g} s; try again and look longer (harvest --wait)"
    return "the group has no plan yet, so there is nothing to harvest; `p2ptrain status` says what it waits for"


def _is_behind(records: Sequence[Record]) -> bool:
    """Whether somebody has ended a round whose snapshot is not told yet: it is being saved."""
    return any(
        record.part >= 0
        and record.round > max((h.round for h in record.holdings if h.trainer == record.peer), default=0)
        for record in records
        if record.phase in ENDED
    )


def _name(node: ObserverNode, peer: PeerId) -> str:
    record = node.observer.records.get(peer)
    return record.name if record else peer


def leave_out(collected: Collected, without: Sequence[str]) -> Collected:
    """Without what these devices trained, by name or id. Raises ``UserError`` saying who is there."""
    if without and collected.best is not None:
        raise UserError(BEST_OF_ALL)
    if not without:
        return collected
    there = mode_of(collected.job).harvester.contributors(collected)
    chosen: set[PeerId] = set()
    for text in without:
        named = {peer: record.name for peer, record in collected.records.items()}
        found = {peer for peer in there if text in (peer, collected.name_of(peer), named.get(peer))}
        if len(found) != 1:
            who = ", ".join(
                f"{collected.name_of(peer)} ({peer})" if collected.name_of(peer) != peer else peer
                for peer in sorted(there)
            )
            problem = "several devices have that name, say which by its id" if found else "nobody here has that name"
            raise UserError(f"--without {text}: {problem}; copies are of {who}")
        chosen |= found
    if chosen == there:
        raise UserError(f"--without {' --without '.join(without)}: then nothing is left to harvest")
    return dataclasses.replace(collected, without=frozenset(chosen))


def assemble(collected: Collected, *, allow_user_code: bool = False) -> Harvest:
    """Put the parts together. Raises ``UserError`` for parts that don't fit."""
    records, job = collected.records.values(), collected.job.id
    result = mode_of(collected.job).harvester.assemble(collected, allow_user_code=allow_user_code)
    result = dataclasses.replace(
        result,
        works=works_of(records, job),
        best_look=best_of(looks_of_group(records, job)),
        stopped_after=stopped_after(records, job),
    )
    if collected.best is not None:
        return dataclasses.replace(result, best=collected.best)
    if result.is_judged or (result.is_half_way and not result.stopped_after) or result.missing:
        return result
    return dataclasses.replace(result, looks=looks_of(records, job))


# --- what state directories keep --------------------------------------------------------------------------------------


def from_state(
    kept: Sequence[KeptJob],
    *,
    partial: bool = False,
    allow_user_code: bool = False,
    without: Sequence[str] = (),
    best: bool = False,
) -> Harvest:
    """The model that a state directory keeps, or else one of the parts that lie in all of them, which are of one job.

    ``best``: the best one that any of them keeps; of several the first.

    ``without``: it is put together from the parts, without those of these devices.

    Raises ``NotCoveredError`` naming the parts that none has, unless ``partial``; ``UserError`` otherwise.
    """
    if best and without:
        raise UserError(BEST_OF_ALL)
    if best:
        first = next((each for each in kept if (each.folder / BEST).is_file()), kept[0])
        return _finished(first, kept_best(first.folder))
    for each in kept:
        if not without and (path := each.model) is not None:
            return _finished(each, path)
    result = assemble(leave_out(_collected(kept, partial=partial), without), allow_user_code=allow_user_code)
    return dataclasses.replace(result, source="the copies that lie in " + " and ".join(str(k.folder) for k in kept))


def _finished(kept: KeptJob, path: Path) -> Harvest:
    from p2ptrain.learning.checkpoint import read_model

    state, _, card = read_model(path)
    plan = kept.plan
    if plan is None:
        raise UserError(f"{kept.folder}: the plan of the job can't be read; copy {path} to where you want the model")
    plain = json.loads(card.extra.get("harvest", "{}"))
    lists = ("classes", "trainers")
    parts = tuple(PartReport(**{**each, **{name: tuple(each[name]) for name in lists}}) for each in card.lineage)
    missing = tuple(int(each["part"]) for each in plain.get("missing", ()))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    source = f"this device's own copy of {when}, when the group was done ({path})"
    told = card.extra.get("report", "")
    return KeptHarvest(kept.job, plan, state, {}, parts, missing, source=source, told=told, plain=plain)


def _collected(kept: Sequence[KeptJob], *, partial: bool) -> Collected:
    """The freshest copies that lie there, of the newest plan."""
    plans = [(plan.epoch, plan.hash, plan) for each in kept if (plan := each.plan) is not None]
    job, where = kept[0].job, ", ".join(str(each.folder) for each in kept)
    if not plans:
        raise NotCoveredError(f"{where}: no plan was made of this job yet, so there is nothing to harvest")
    plan = max(plans)[2]
    everything = [h for each in kept for h in (*each.manifest.snapshots, *each.manifest.replicas)]
    holdings = list(dict.fromkeys(h for h in everything if h.kind != "kept"))

    async def fetch(holding: SnapshotRef, what: str) -> bytes | None:
        found = (data for each in kept if (data := each.blob(holding.blob)) is not None)
        return next((data for data in found if blob_id(data) == holding.blob), None)

    harvester = mode_of(job).harvester
    result, parts = asyncio.run(harvester.fetch(plan, holdings, fetch))
    missing = harvester.missing(plan, parts)
    if not parts or (missing and not partial):
        raise NotCoveredError(f"{where}: {harvester.lament(job, plan, missing)}")
    known = {epoch: each for epoch, _, each in plans}
    return Collected(job, plan, parts, result, {}, told=tuple(holdings), plans=known)


# --- the file ---------------------------------------------------------------------------------------------------------


def save(path: Path, result: Harvest) -> None:
    """One ``.safetensors`` file with the names of the plain module, and everything needed to use it as metadata."""
    from p2ptrain.learning.checkpoint import save_model

    metadata = {
        "lineage": [dataclasses.asdict(part) for part in result.report],
        "job_name": result.job.name,
        "mode": result.plan.mode,
        "plan": result.plan.hash,
        "completeness": report.completeness(result),
        "harvest": report.to_plain(result),
        "report": report.render(result),
    }
    save_model(path, result.state, result.job, metadata)


def former_model(path: Path) -> Mapping[str, str] | None:
    """What the model file that is there says of itself; None if none is. Raises ``UserError`` for any other file."""
    metadata = told_by(path)
    if metadata is not None and not metadata:
        raise UserError(
            f"{path}: exists already and is no model of p2ptrain; name another file, or overwrite it with --force"
        )
    return metadata


def told_by(path: Path) -> Mapping[str, str] | None:
    """What a model file says of itself; nothing if it is no model of ours, None if there is no file."""
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError, ValueError):
        metadata = {}
    return metadata if metadata.get("format", "").startswith("p2ptrain-model-") else {}


def check_replaces(path: Path, result: Harvest) -> None:
    """Whether the file that is there may give way to this model. Raises ``UserError``."""
    former = former_model(path)
    if former is None:
        return
    advice = "name another file with -o, or overwrite it with --force"
    if former.get("job_id") != result.job.id:
        raise UserError(f"{path}: is the model of another job ({former.get('job_id')}, not {result.job.id}); {advice}")
    old, new = (
        rounds_behind(json.loads(former.get("lineage", "[]"))),
        rounds_behind(map(dataclasses.asdict, result.report)),
    )
    kind = former.get("completeness", "")
    if kind == report.COMPLETE and report.completeness(result) != report.COMPLETE:
        raise UserError(f"{path}: is the {kind} model, and what there is now is the {report.kind(result)}; {advice}")
    if old > new:
        raise UserError(f"{path}: is the model after {old} rounds, and what there is now is after {new}; {advice}")


def rounds_behind(parts: Any) -> int:
    """That all parts have behind them."""
    return min((int(part.get("round", 0)) for part in parts), default=0)
