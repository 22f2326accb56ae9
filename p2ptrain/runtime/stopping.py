"""Ending a whole group in good order, as somebody who only looks on: asks every peer, and waits until they have gone.

Invariant: what is said of a peer is what it answered, or what its record says; nobody is said to have stopped before it
is done, or gone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.messages import Record, Stop
from p2ptrain.words import as_text, clean

UNTIL_S = 3600.0
ASK_AGAIN_S, LOOK_S = 1.0, 0.2
TOLD_AGAIN_S = 15.0
"""What peers wait for is said again so often."""

GONE_S = 5.0
"""Who is not heard of for so long is gone."""

How = Literal["stopped", "gone", "ends", "refuses", "silent"]
"""Done; not here any more; still at its last round; goes on, as its person wants; has not answered."""
OVER = ("stopped", "gone", "refuses")


@dataclass(frozen=True, slots=True)
class StoppedPeer:
    """What became of one peer. ``round``: how many it has behind it, as far as it told."""

    peer: PeerId
    name: str
    how: How
    round: int
    waiting_for: str = ""


async def stop_group(
    node: ObserverNode, wait_s: float, until_s: float, say: Callable[[str], None] = lambda text: None
) -> tuple[StoppedPeer, ...]:
    """What became of everyone, by peer id. Raises ``NobodyError``; ``UserError`` where
    there is nothing to stop."""
    await node.look_around(wait_s)
    observer = node.observer
    members = {record.peer: record for record in observer.alive() if record.job}
    if not members:
        raise UserError("nobody here has a job yet: there is nothing to stop; Ctrl-C ends a peer")
    jobs = {record.job: max(r.round for r in members.values() if r.job == record.job) for record in members.values()}
    name = as_text(socket.gethostname())[:200]
    start, ask_at, tell_at, told = node.now(), 0.0, node.now() + TOLD_AGAIN_S, dict[PeerId, How]()
    heard_at = dict.fromkeys(members, start)
    while True:
        now = node.now()
        if now >= ask_at:
            ask_at = now + ASK_AGAIN_S
            for job, rounds in sorted(jobs.items()):
                request = Stop(job, rounds + 1, name)
                node.feed(lambda at, request=request: observer.ask_to_stop(request, at))  # type: ignore[misc]
        heard_at |= dict.fromkeys((peer for peer in members if _is_here(node, peer)), now)
        found = tuple(_found(node, members[p], is_gone=now > heard_at[p] + GONE_S) for p in sorted(members))
        for each in found:
            if told.get(each.peer, "silent") != each.how:
                told[each.peer] = each.how
                say(f"{clean(each.name, 40)} {_words(each)}")
        if all(each.how in OVER for each in found) or now >= start + until_s:
            return found
        if now >= tell_at:
            tell_at = now + TOLD_AGAIN_S
            for each in found:
                if each.how not in OVER:
                    waits = f", waits for {clean(each.waiting_for, 200)}" if each.waiting_for else ""
                    say(f"{clean(each.name, 40)} {_words(each)}{waits}")
        await asyncio.sleep(LOOK_S)
        if node.failure is not None:
            raise node.failure


def _is_here(node: ObserverNode, peer: PeerId) -> bool:
    """By its own word, or by that of others who are here."""
    observer = node.observer
    return peer in observer.answered or (bool(observer.answered) and observer.states.get(peer) in ("alive", "suspect"))


def _found(node: ObserverNode, before: Record, *, is_gone: bool) -> StoppedPeer:
    peer = before.peer
    record, answer = node.observer.records.get(peer, before), node.observer.stop_answers.get(peer)
    how: How = "silent"
    if answer == "ends" and record.phase == "done":
        how = "stopped"
    elif is_gone:
        how = "gone"
    elif answer == "refuses":
        how = "refuses"
    elif answer is not None:
        how = "ends"
    return StoppedPeer(peer, record.name or peer, how, record.round, record.waiting_for)


def _words(each: StoppedPeer) -> str:
    return {
        "stopped": f"has stopped, after round {each.round}",
        "gone": f"is gone, {each.round} rounds when it was last heard of",
        "ends": f"ends its round ({each.round} are done)",
        "refuses": "goes on: it was started with --no-remote-stop",
        "silent": "has not answered yet",
    }[each.how]
