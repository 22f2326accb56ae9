"""What being one of a group that trains takes of a device, beside its blocks.

Its node takes something all the time: others ask whether it is there, and tell of themselves. That counts for messages
and blobs, which have what it leaves (``left``); forward and backward passes take what was measured, times the slowdown
that was seen since. Handing on stage messages takes a part, and so do making, keeping and handing on blobs: what a peer
trained in a round, and what comes of it. All of it is told in FLOPs, which a weak device takes longer for. The
constants were measured in benchmark ``split``'s lab, as CPU seconds of a core of 20 GFLOP/s: of a device with a
twentieth of that core the node took a third all the time, and two thirds with its share of the messages.

Invariant: pure; a device whose speed nobody knows is charged nothing.
"""

from __future__ import annotations

import math

import numpy as np

from p2ptrain.planning.devices.profiles import LEAST_FLOPS_PER_S
from p2ptrain.planning.pipeline.cost import Floats
from p2ptrain.planning.pipeline.fleet import BYTE_FLOPS, MESSAGE_BYTES, MESSAGE_FLOPS

NODE_FLOPS_PER_S = 3e8
"""Of a device while its group trains, beside the messages that are counted: 0.012 to 0.017 of that core."""
LEAST_LEFT = 0.2
"""Of a device that is hardly faster than that."""
PASS_FLOPS = 2.5e7
"""Of a trainer for each stage message, whatever its size: it is read or written, and a pass begins with cold caches.
1.2 ms; with the node's part, ``MESSAGE_FLOPS``, 3.7 ms."""
CHUNK_BYTES = 1 << 19
"""Of a blob, asked for at once."""
BLOB_BYTE_FLOPS = 60.0
"""Of making or keeping a blob, for each byte: written, hashed, synced."""
MADE_FLOPS, KEPT_FLOPS = 1e8, 2e8
"""Beside that, of an update that is made and told of; and of blocks that come, are kept, and given to the trainer."""
AVERAGE_BYTE_FLOPS = 150.0
"""Of whoever averages, for each byte of the updates."""
ROUND_FLOPS = 5e8
"""Of each peer, from when a round is over until the next one begins: it hears that from the others, whose records all
change then, reads the blocks, and begins."""
TOLD_S = 0.05
"""Until that news has gone round."""


def left(flops_per_s: float) -> float:
    """What a device's node leaves of it; infinite where nobody knows its speed."""
    if flops_per_s < LEAST_FLOPS_PER_S:
        return math.inf
    return max(flops_per_s - NODE_FLOPS_PER_S, LEAST_LEFT * flops_per_s)


def spent_s(flops_per_s: float, flops: float) -> float:
    """How long that takes a device; 0 where nobody knows its speed."""
    return flops / left(flops_per_s)


def message_s(flops_per_s: float, num_bytes: Floats) -> Floats:
    """What handing on a stage message of so many bytes, or taking it in, takes of a device."""
    messages = np.maximum(1.0, np.ceil(num_bytes / MESSAGE_BYTES))
    found: Floats = ((MESSAGE_FLOPS + PASS_FLOPS) * messages + BYTE_FLOPS * num_bytes) / left(flops_per_s)
    return found


def carried_s(flops_per_s: float, num_bytes: Floats, bytes_per_s: float) -> Floats:
    """To carry a blob of so many bytes over a link, with what that takes of a device at one of its ends: it handles one
    part while the next one is on its way."""
    link_s: Floats = num_bytes / bytes_per_s
    chunks = np.maximum(1.0, np.ceil(num_bytes / CHUNK_BYTES))
    handled_s = (MESSAGE_FLOPS * chunks + BYTE_FLOPS * num_bytes) / left(flops_per_s)
    found: Floats = np.maximum(link_s, handled_s) + MESSAGE_FLOPS / left(flops_per_s)
    return np.where(num_bytes > 0, found, 0.0)


def made_s(flops_per_s: float, num_bytes: float) -> float:
    """Until an update of so many bytes is there for others, once the last unit is through."""
    return spent_s(flops_per_s, MADE_FLOPS + BLOB_BYTE_FLOPS * num_bytes)


def kept_s(flops_per_s: float, num_bytes: float) -> float:
    """Until blocks of so many bytes that have come are safe."""
    return spent_s(flops_per_s, KEPT_FLOPS + BLOB_BYTE_FLOPS * num_bytes)


def taken_s(flops_per_s: float, num_bytes: float, bytes_per_s: float) -> float:
    """To get a blob of so many bytes over a link, and to keep it."""
    return float(carried_s(flops_per_s, np.array(num_bytes), bytes_per_s)) + kept_s(flops_per_s, num_bytes)


def averaged_s(flops_per_s: float, num_bytes: float, made_bytes: float) -> float:
    """Until updates of so many bytes together are averaged, and what comes of it is safe."""
    return spent_s(flops_per_s, AVERAGE_BYTE_FLOPS * num_bytes + BLOB_BYTE_FLOPS * made_bytes)
