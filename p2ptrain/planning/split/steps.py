"""What a micro-batch of one unit takes at its owner, on the link and at its helper; and the paths of a batch.

A batch takes at least as long as each of several *paths*, the waits that the owner, the link one way, the helper, or
the window of micro-batches in flight force by itself. For a unit that has its helper to itself, and a whole batch in
flight, the longest of them is what playing the batch through gives (``rounds.simulation``); with a smaller window it
may be some per cent less.

At a batch's end the two find the norm of the whole gradient: the helper hands over its part after the last gradients,
the owner adds its own after its last backward pass and hands the sum back. Only then does the helper make its
optimizer step; usually it has made it before the next batch's first micro-batch is there.

Where labels stay with their owner, a micro-batch goes to the helper and back twice. Its steps are added up as if it
went once: the last blocks count as part of the owner's backward pass, both ways up as one, both ways down as one. What
each device and each way of the link has to do is the same, and so is what a micro-batch takes from end to end.

Invariant: pure, and the same for single numbers and for arrays of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from p2ptrain.config import Coding
from p2ptrain.planning.pipeline.cost import Floats
from p2ptrain.planning.pipeline.task import WIRE
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.handing import message_s
from p2ptrain.planning.split.task import SplitPeer

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of each step of one unit, for one micro-batch. Alone: ``forward_s`` and ``backward_s`` are of all
    blocks, and the rest is 0."""

    forward_s: float
    backward_s: float
    update_s: float
    """Of the front, once a batch; of one that has a helper with what handing on the gradient's norm takes."""
    up_s: float = 0.0
    tail_s: float = 0.0
    """Forward and backward, one after the other."""
    down_s: float = 0.0
    tail_update_s: float = 0.0
    latency_s: float = 0.0

    @property
    def afterwards_s(self) -> float:
        """What its owner still waits for and does when the helper has done its part: by this a helper puts the work
        that has arrived in order, the longest first."""
        return self.down_s + self.backward_s


@dataclass(frozen=True, slots=True)
class StepArrays:
    """Of many ways to train one unit. Fields as in ``Steps``, but what goes over the link is in bytes."""

    forward_s: Floats
    backward_s: Floats
    update_s: Floats
    up_bytes: Floats
    tail_s: Floats
    down_bytes: Floats
    tail_update_s: Floats


@dataclass(frozen=True, slots=True)
class Path:
    """Seconds of a batch: fixed ones, and so many times a micro-batch's on the link, up and down."""

    fixed_s: Floats
    ups: Floats
    downs: Floats


def step_arrays(
    room: Room, owner: str, helper: str, cuts: Ints, samples: float, codings: Sequence[tuple[Coding, Coding]]
) -> StepArrays:
    """Of one micro-batch of so many samples. ``cuts``: places in ``room.cuts``; ``codings``: of activations and of
    gradients; the arrays are [coding, cut], flat."""
    tables, last, many = room.tables, room.tail_stop, len(codings)
    crossings = [cuts] if last == tables.num_units else [cuts, np.full_like(cuts, last)]
    raws = [np.tile(tables.cut_bytes[each] * samples, many) for each in crossings]
    sent = [[np.repeat([WIRE[both[way]] for both in codings], len(cuts)) * raw for raw in raws] for way in (0, 1)]
    passing = {
        name: [
            sum(
                (
                    _passing_s(room.peers[name], raw, bytes_sent, [both[way] for both in codings], way)
                    for raw, bytes_sent in zip(raws, sent[way], strict=True)
                ),
                np.zeros_like(raws[0]),
            )
            for way in (0, 1)
        ]
        for name in (owner, helper)
    }
    # Up go activations to the tail and the gradients of what it sends on; down that, and the gradients of the front.
    up_bytes, down_bytes = (
        sum((sent[(way + place) % 2][place] for place in range(len(raws))), np.zeros_like(raws[0])) for way in (0, 1)
    )
    kept_s = room.kept_s(owner, samples)
    kept_bytes = float(tables.parameter_bytes[-1] - tables.parameter_bytes[last])
    forward, backward = room.seconds(owner, samples)
    there, back = room.seconds(helper, samples)
    parameters = tables.parameter_bytes
    sharing = len(room.owners) if room.task.tails == "shared" else 1  # one step of the optimizer for all of them
    norms_s = {name: norms_s_of(room, name) for name in (owner, helper)}
    return StepArrays(
        np.tile(forward[cuts], many) + passing[owner][0],
        np.tile(backward[cuts] + kept_s, many) + passing[owner][1],
        np.tile(room.update_s(owner) * (parameters[cuts] + kept_bytes) + norms_s[owner], many),
        up_bytes,
        np.tile(there[last] - there[cuts] + back[last] - back[cuts], many) + passing[helper][0] + passing[helper][1],
        down_bytes,
        np.tile(room.update_s(helper) * (parameters[last] - parameters[cuts]) / sharing + norms_s[helper], many),
    )


def norms_s_of(room: Room, peer: str) -> float:
    """What the messages by which a unit's two peers find the norm of a batch's gradient take of one of them.

    The tail's part goes one way, the whole one the other; where labels stay, that of the last blocks goes before these.
    With shared tails the norm goes with the gradients, at the averaging of each step.
    """
    num = 0 if room.task.tails == "shared" else 3 if room.task.labels == "stay" else 2
    return num * float(message_s(room.peers[peer].device.flops_per_s, np.zeros(1))[0])


def _passing_s(peer: SplitPeer, raw: Floats, sent: Floats, codings: Sequence[Coding], way: int) -> Floats:
    """What coding, and handing stage messages on, take of a device: see ``rounds.handing``."""
    coding_s = np.repeat([peer.coding_s(coding)[way] for coding in codings], len(raw) // len(codings))
    passing: Floats = message_s(peer.device.flops_per_s, sent) + coding_s * raw
    return passing


def steps_of(
    room: Room,
    owner: str,
    helper: str,
    cut: int,
    samples: float,
    codings: tuple[Coding, Coding],
    rates: tuple[float, float],
) -> Steps:
    """Of one micro-batch of so many samples, with these rates up and down, bytes/s."""
    arrays = step_arrays(room, owner, helper, np.array([cut]), samples, [codings])
    one = {field.name: float(getattr(arrays, field.name)[0]) for field in fields(StepArrays)}
    up_s, down_s = one.pop("up_bytes") / rates[0], one.pop("down_bytes") / rates[1]
    trips = 1 + (room.task.labels == "stay")
    return Steps(up_s=up_s, down_s=down_s, latency_s=trips * room.task.latency_s, **one)


def steps_alone(room: Room, owner: str, samples: float) -> Steps:
    """Of one micro-batch of so many samples."""
    last = room.tables.num_units
    forward, backward = room.seconds(owner, samples)
    update_s = room.update_s(owner) * float(room.tables.parameter_bytes[last])
    return Steps(float(forward[last]), float(backward[last]), update_s)


def paths(steps: StepArrays, latency_s: float, num: int, in_flight: Ints) -> list[Path]:
    """Of a batch of ``num`` micro-batches, without the optimizer's step at its end."""
    front, back, tail = steps.forward_s, steps.backward_s, steps.tail_s
    rest = num - in_flight  # forward passes that have to wait for a gradient
    cycles = -(-num // in_flight)
    way = front + tail + 2 * latency_s  # to a micro-batch's gradient, but for the link
    ones, none = np.ones_like(front), np.zeros_like(front)
    once = np.maximum.reduce(
        [
            way + num * back + rest * front,  # all that the owner has to do once its first gradient has come
            way + (num - 1) * front + (rest + 1) * back,  # all that it has to do before it sends its last activations
            way + (num - 1) * tail + back,
        ]
    )
    return [
        Path(num * (front + back), none, none),
        Path(once, ones, ones),
        Path(way + back, num * ones, ones),
        Path(way + back, ones, num * ones),
        Path(cycles * (way + back), cycles * ones, cycles * ones),
    ]


def batch_s(steps: Steps, num: int, in_flight: int) -> float:
    """Of a batch of ``num`` micro-batches: of a unit as if it had its helper to itself."""
    if steps.tail_s == 0.0:
        return num * (steps.forward_s + steps.backward_s) + steps.update_s
    arrays = StepArrays(
        *(
            np.array([value])
            for value in (
                steps.forward_s,
                steps.backward_s,
                steps.update_s,
                steps.up_s,
                steps.tail_s,
                steps.down_s,
                steps.tail_update_s,
            )
        )
    )
    each = paths(arrays, steps.latency_s, num, np.array([in_flight]))
    longest = max(float((path.fixed_s + path.ups * steps.up_s + path.downs * steps.down_s)[0]) for path in each)
    return longest + steps.update_s
