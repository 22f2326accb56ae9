"""How many links each of a group's members keeps, in virtual time: whole peers of this project, without a job.

They come one after another, and each that comes hears of the addresses of all that are there, and they of its, as from
mDNS. Every frame goes through sessions and codec, over links that behave like TCP. Not simulated: training, so nobody
needs a link for anything but to know who is there.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable

from p2ptrain.errors import LocalError
from p2ptrain.simulation.device import At, Trainer
from p2ptrain.simulation.network import WIRELESS
from p2ptrain.simulation.room import Room

ARRIVAL_S = 0.1
"""Between two peers' starts."""
SETTLE_S = 150.0
"""After the last one came: links that nobody needs are let go of after two minutes."""
CONDITIONS = dataclasses.replace(WIRELESS, loss=0.0)
"""TCP repairs what is lost."""


@dataclasses.dataclass(frozen=True)
class _Nothing:
    """To train."""

    counts: tuple[int, ...] = ()

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> Trainer:
        raise LocalError("there is no job")


def keep_links(num_peers: int, seed: int, *, settle_s: float = SETTLE_S) -> dict[str, float]:
    """Links of each, ``settle_s`` after the last one came."""
    room = Room(seed, CONDITIONS, traits=_Nothing)
    for number in range(num_peers):
        room.add(number, ())
        room.run(ARRIVAL_S)
    room.run(settle_s)
    links = [len(device.core.sessions.peers()) for device in room.on()]
    notes = Counter(note.kind for device in room.on() for _, note in device.notes)
    alive = [len(device.core.membership.alive()) for device in room.on()]
    return {
        "peers": num_peers,
        "links_median": statistics.median(links),
        "links_most": max(links),
        "links_fewest": min(links),
        "known_fewest": min(alive),
        "called_dead_wrongly": notes["failed"],
        "handshakes_per_peer": notes["admitted"] / num_peers,
    }
