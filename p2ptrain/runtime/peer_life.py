"""A peer from its start to its goodbye: node after node, as it leaves its job for the group's, or its code for a new.

Invariant: one node at a time has the state directory, whose figures go on through all of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from p2ptrain.config import Job
from p2ptrain.core.group_view import GroupView
from p2ptrain.loggers import Logger
from p2ptrain.net.keys import Group, load_or_make_identity
from p2ptrain.runtime.metrics.recorder import FILE as METRICS
from p2ptrain.runtime.metrics.recorder import Recorder, named
from p2ptrain.runtime.node.group_job import JOB_WAIT_AGAIN_S, JOB_WAIT_S
from p2ptrain.runtime.node.journal import Journal, Line
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.preflight import is_prepared, prepare
from p2ptrain.runtime.store.state_dir import StateDir


async def live(
    group: Group,
    options: PeerOptions,
    network: NetworkConfig,
    path: Path,
    until: asyncio.Event,
    on_start: Callable[[PeerNode], None],
    on_line: Callable[[Line], None] | None,
    loggers: Sequence[Callable[[], Logger]],
) -> None:
    """Until the job is done, the model written and the lingering over, or ``until`` is set. ``path``: its state
    directory. Raises ``UserError`` for what the person at this device can mend."""
    state = StateDir(path)
    recorder: Recorder | None = None
    try:
        identity = load_or_make_identity(state.path)
        if not is_prepared(options):
            options, _ = await asyncio.to_thread(prepare, options, state.path)
        recorder = await asyncio.to_thread(Recorder, state.path / METRICS, named(loggers))
        heard = _both(on_line, recorder.heard)
        wait_s = JOB_WAIT_S
        while True:
            journal = Journal(state.path / "journal.jsonl", on_line=heard, aside=True)
            node = PeerNode(identity, group, network, options, state, journal, job_wait_s=wait_s)
            recorder.follow(partial(_training, node))
            await _run(node, until, on_start, recorder)
            if node.failure is not None:
                raise node.failure
            if until.is_set() or (node.superseded_by is None and node.codes.followed is None):
                return
            if node.codes.followed is not None:
                group, wait_s = node.codes.followed.group, JOB_WAIT_S
            else:
                wait_s = random.uniform(*JOB_WAIT_AGAIN_S)
    finally:
        if recorder is not None:
            await asyncio.to_thread(recorder.close)
        state.close()


def _training(node: PeerNode) -> tuple[Job, GroupView] | None:
    """The job, and who trains it; None while there is no job."""
    peer = node.core
    return (peer.job, peer.group) if isinstance(peer, Peer) and peer.job is not None else None


def _both(first: Callable[[Line], None] | None, second: Callable[[Line], None]) -> Callable[[Line], None]:
    def heard(line: Line) -> None:
        second(line)
        if first is not None:
            first(line)

    return heard


async def _run(node: PeerNode, until: asyncio.Event, on_start: Callable[[PeerNode], None], recorder: Recorder) -> None:
    """From its start to its goodbye."""
    watching = recorder.watch(node.note)
    try:
        await node.start()
        on_start(node)
        ends = [asyncio.ensure_future(until.wait()), asyncio.ensure_future(node.wait_finished())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        await node.leave()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await node.close()
