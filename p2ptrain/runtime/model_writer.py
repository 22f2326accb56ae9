"""Writes the assembled model when the group is done, in a process of its own: it harvests as anybody would, from the
peer that started it and through that from the others.

Invariant: the node imports no torch for it, and a writer that fails costs nothing but the file. It dies with its node.

    python -m p2ptrain.runtime.model_writer        (a request as JSON on standard input, the answer as JSON)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2ptrain.core.harvest import Collected, Harvest, Look
from p2ptrain.core.looks.figures import looks_of_group
from p2ptrain.errors import NotCoveredError, P2PTrainError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.lasting import in_place_of
from p2ptrain.net.keys import Group
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime import report
from p2ptrain.runtime.best_state import BEST
from p2ptrain.runtime.misfits import Misfits
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.parent import own_child
from p2ptrain.words import scaled

WAIT_S = 30.0
TIMEOUT_S = 3600.0
ATTEMPTS, AGAIN_S = 2, 10.0
BATCH = 64
"""Samples that the model looks at together."""
ROOM = 4
"""Of memory: so many times what is fetched is taken for copies, their mean and the model."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be written where. ``peers``: addresses of the node that asks, ``HOST:PORT``."""

    code: str
    job: str
    kept: str
    """Where the model goes."""
    peers: tuple[str, ...]
    interfaces: tuple[str, ...] = ()
    allow_user_code: str = ""
    state: str = ""
    """The state directory of the device."""
    out: str = ""
    """Where it shall be too; what is there already gives way only to what may take its place."""
    data: str = ""
    """The own samples: the model is looked at on those of them that are for validation."""
    name: str = ""
    peer: str = ""
    """What people call the device that asks, and its id."""
    shard: str = ""
    dirichlet: float = 0.0
    classes: tuple[str, ...] = ()


def request_of(
    options: PeerOptions,
    group: Group,
    job: str,
    kept: Path,
    addresses: Sequence[str],
    interfaces: tuple[str, ...],
    name: str,
    peer: PeerId,
) -> Request:
    """What the person at this device wants written, and which are its samples."""
    return Request(
        str(group),
        job,
        str(kept.absolute()),
        tuple(address.removeprefix("tcp://") for address in addresses[:1]),
        interfaces,
        options.allow_user_code or (options.job.model.name if options.job is not None else ""),
        state=str(kept.parents[1].absolute()),
        out=str(Path(options.out).expanduser().absolute()) if options.out else "",
        data=options.data,
        name=name,
        peer=peer,
        shard=options.shard,
        dirichlet=options.dirichlet,
        classes=options.classes,
    )


@dataclass(frozen=True, slots=True)
class Written:
    """What came of it."""

    path: str
    kind: str
    told: str
    why_not: str = ""
    """Why it is not where it was asked for."""
    samples: int = 0
    """Own validation samples on which the model was looked at, ..."""
    accuracy: float = -1.0
    """... and how many of them it has right."""
    not_looked: str = ""
    """Why it was not looked at, though there are samples."""
    why_not_best: str = ""
    """Why the best state is not kept beside it, though there is one."""


async def keep_model(request: Request, num_threads: int, note: Callable[[Note], None]) -> Written | None:
    """Write the model, and say where it is or why there is none."""
    for attempt in range(ATTEMPTS):
        try:
            made = await write(request, num_threads)
            note(Note("model-written", (("path", made.path), ("kind", made.kind), ("why_not", made.why_not))))
            if made.samples:
                note(Note("model-looked-at", (("accuracy", round(made.accuracy, 4)), ("samples", made.samples))))
            elif made.not_looked:
                note(Note("model-not-looked-at", (("why", made.not_looked),)))
            if made.why_not_best:
                note(Note("best-not-kept", (("why", made.why_not_best),)))
            return made
        except UserError as error:
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(AGAIN_S)
            elif Path(request.kept).is_file():
                note(Note("model-kept", (("path", request.kept), ("why", str(error)))))
            else:
                note(Note("model-not-written", (("why", str(error)),)))
    return None


async def write(request: Request, num_threads: int) -> Written:
    """Start the process and wait for it. Raises ``UserError`` with the reason when there is no model."""
    own = {"OMP_NUM_THREADS": str(num_threads), **own_child()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "p2ptrain.runtime.model_writer",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | own,
        start_new_session=True,
    )
    try:
        text = json.dumps(dataclasses.asdict(request)).encode()
        out, errors = await asyncio.wait_for(process.communicate(text), TIMEOUT_S)
    except TimeoutError:
        raise UserError(f"not within {TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(" ".join([f"the process that assembles it ended with status {process.returncode}", *last]))
    answer = json.loads(out)
    if "error" in answer:
        raise UserError(answer["error"])
    return Written(**answer)


# --- the process ------------------------------------------------------------------------------------------------------


async def _collect(request: Request, misfits: Misfits, *, best: bool = False) -> Collected:
    from p2ptrain.net.group.admission import visitors_door
    from p2ptrain.net.keys import OPEN_GROUP, read_code

    group = OPEN_GROUP if request.code == str(OPEN_GROUP) else read_code(request.code)
    network = NetworkConfig(interfaces=request.interfaces, peers=request.peers, discover=False)
    door = visitors_door(group, Path(request.state) if request.state else None)
    node = ObserverNode(group, network, door)
    try:
        await node.start()
        return await harvesting.collect(node, WAIT_S, best=best, misfits=misfits, only_job=request.job)
    finally:
        await node.close()


def carry_out(request: Request) -> Written:
    """Raises ``P2PTrainError``."""
    collected, result, allowed = _made(request)
    own, not_looked = None, ""
    try:
        own = look(request, result, allow_user_code=allowed)
    except UserError as error:  # a disk that was pulled out is no reason to have no model
        not_looked = str(error)
    if own is not None:
        result = dataclasses.replace(result, looks=(*(each for each in result.looks if each.peer != own.peer), own))
    kind, told = report.kind(result), report.render(result)
    harvesting.save(Path(request.kept), result)
    why_not_best = keep_best(request, collected)
    written = Written(request.kept, kind, told, not_looked=not_looked, why_not_best=why_not_best)
    if own is not None:
        written = dataclasses.replace(written, samples=own.samples, accuracy=own.accuracy)
    if not request.out:
        return written
    try:
        harvesting.check_replaces(Path(request.out), result)
        copy_whole(Path(request.kept), Path(request.out))
    except (UserError, OSError) as error:
        return dataclasses.replace(written, why_not=f"not in {request.out}: {error}")
    return dataclasses.replace(written, path=request.out)


def _made(request: Request, *, best: bool = False) -> tuple[Collected, Harvest, bool]:
    """Copies, the model that they make, and whether its own code may run here. Copies that are none of it give way to
    the next freshest. Raises ``UserError``."""
    import psutil

    async def get(misfits: Misfits) -> Collected:
        collected = await _collect(request, misfits, best=best)
        num_bytes = sum(len(snapshot.data) for copies in collected.parts.values() for snapshot in copies)
        if (free := psutil.virtual_memory().available) < ROOM * num_bytes:
            raise UserError(
                f"this device has {scaled(free, 'B')} of memory free, too little to assemble "
                f"{scaled(num_bytes, 'B')} of parts: harvest the model on another device"
            )
        return collected

    may = request.allow_user_code.split(",")
    collected, made = asyncio.run(harvesting.made_of(get, may))
    return collected, made, harvesting.may_run(collected.job, may)


def keep_best(request: Request, collected: Collected) -> str:
    """Beside the finished model the best that the group has looked at, if it has: what is left of it goes with the
    group. Why it can't be kept, or ""."""
    if not looks_of_group(collected.records.values(), collected.job.id):
        return ""
    try:
        _, best, _ = _made(request, best=True)
        harvesting.save(Path(request.kept).with_name(BEST), best)
    except NotCoveredError:
        return ""  # no state is whole any more
    except (P2PTrainError, OSError) as error:
        return str(error)
    return ""


def look(request: Request, result: Harvest, *, allow_user_code: bool) -> Look | None:
    """How good a whole, finished model is on this device's validation samples. Raises ``UserError``.

    None: there are none, or the group has looked together.
    """
    is_final = report.completeness(result) == report.COMPLETE or (result.stopped_after and not result.missing)
    if not request.data or result.is_judged or not is_final:
        return None
    from p2ptrain.learning.data import load, open_source, select
    from p2ptrain.learning.evaluation import evaluate
    from p2ptrain.learning.models import global_model
    from p2ptrain.learning.snapshots import put_state

    job = result.job
    source = open_source(request.data)
    indices = select(
        source,
        job.data,
        "val",
        shard=request.shard or None,
        dirichlet=request.dirichlet or None,
        classes=request.classes or None,
        seed=job.seed,
    )
    samples = load(source, job.data, "val", indices)
    if not len(samples):
        return None
    model = global_model(job, allow_user_code=allow_user_code)
    put_state(model, result.state)
    batches = (samples.tensors(slice(start, start + BATCH)) for start in range(0, len(samples), BATCH))
    found = evaluate(model, batches, len(job.data.classes))
    return Look(request.name, found.samples, found.accuracy, request.peer)


def copy_whole(source: Path, target: Path) -> None:
    """The same file under another name, on a disk of its own if need be; whole, or not there. Raises ``OSError``."""
    with in_place_of(target) as beside:
        if os.access(source, os.W_OK):  # else it can't be synced by its other name
            with contextlib.suppress(OSError):  # another disk, or one without links
                beside.unlink()
                os.link(source, beside)
                return
        shutil.copyfile(source, beside)


def main() -> None:
    from p2ptrain.runtime.trainer.process import die_with_node

    die_with_node()
    raw: dict[str, Any] = json.load(sys.stdin)
    request = Request(**raw | {name: tuple(raw[name]) for name in ("peers", "interfaces", "classes")})
    try:
        print(json.dumps(dataclasses.asdict(carry_out(request))), flush=True)
    except P2PTrainError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
