"""Groups of each mode as a page sees them: simulated, in virtual time."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2ptrain import api
from p2ptrain.simulation.room import Room

sys.path.append(str(Path(__file__).parents[2] / "virtual"))  # the rooms of tests in virtual time

MODES = ("tasks", "replicas", "pipeline", "split")


def room_of(mode: str) -> Room:
    """Three or four devices of which all have done a round."""
    room: Any
    if mode == "pipeline":
        from stage_group import group

        room = group(1, 3, rounds=20, owners=2)
    elif mode == "split":
        from test_units import group as units

        room = units(1, 2, 1, rounds=20)
    else:
        from peer_group import Room as TasksRoom
        from peer_group import job

        room, the_job = TasksRoom(1), job(mode, rounds=20)
        for number in range(3):
            room.add(number, job=the_job)
    assert room.run(120, lambda: all(device.record.round >= 2 for device in room.on()))
    return room


@functools.cache
def found_in(mode: str) -> api.Status:
    """By the first device, in a group that nothing happens to."""
    return look_of(room_of(mode))()


def look_of(room: Room) -> Callable[[], api.Status]:
    """What the first device that is on sees."""
    return lambda: api.snapshot_peer(room.on()[0].core)
