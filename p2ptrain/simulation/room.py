"""Devices and visitors in one room: whoever comes hears of the others, as by mDNS."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.effects import AbandonBlob, VerifyBlob
from p2ptrain.errors import LocalError
from p2ptrain.ids import BlobId, blob_id
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session.effects import Ban, Dial, HangUp
from p2ptrain.runtime.node.observer import Observer
from p2ptrain.simulation.device import CODE, Device, Traits
from p2ptrain.simulation.names import address
from p2ptrain.simulation.network import LAN, Conditions
from p2ptrain.simulation.signing import signing_as
from p2ptrain.simulation.world import FrameHost, World
from p2ptrain.wire.messages import Lane, SnapshotRef
from p2ptrain.wire.schema import RawBytes


class Visitor(FrameHost):
    """An observer on the same network."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(number)
        rng = random.Random(f"{world.seed}/visitor/{number}")
        self.core = Observer(self.key, CODE, (self.address,), 5711, rng, signing_as(self.key))
        self.blobs: dict[BlobId, bytes] = {}
        self.incoming: dict[BlobId, bytearray] = {}
        self.gone = False
        self._world = world

    @property
    def is_on(self) -> bool:
        return not self.gone

    def tick(self, now: float) -> list[object]:
        return list(self.core.tick(now))

    def next_deadline(self) -> float:
        return self.core.next_deadline()

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[RawBytes], now: float) -> list[object]:
        return list(self.core.frames_received(lane, sender_key, frames, now))

    def fetch(self, holding: SnapshotRef) -> None:
        self.incoming[holding.blob] = bytearray(holding.num_bytes)
        self._world.perform(self, self.core.fetch(holding, self._world.network.now))

    def carry_out(self, effect: object, now: float) -> list[object]:
        match effect:
            case WriteChunk():
                self.incoming[effect.blob][effect.offset : effect.offset + len(effect.data)] = effect.data
            case VerifyBlob():
                sound = blob_id(memoryview(self.incoming[effect.blob])) == effect.blob
                if sound:
                    self.blobs[effect.blob] = bytes(self.incoming.pop(effect.blob))
                return list(self.core.blob_checked(effect.blob, sound, now))
            case ReadChunk():
                return list(self.core.chunk_read(effect, None, now))
            case Note() | Dial() | HangUp() | Ban() | AbandonBlob():
                pass
            case _:
                raise LocalError(f"nobody carries out {effect}")
        return []


class Room(World):
    """``traits``: a dataclass, of the trainers of the job's mode."""

    def __init__(
        self, seed: int, conditions: Conditions = LAN, *, traits: Callable[..., Traits], bytes_per_s: float = math.inf
    ) -> None:
        super().__init__(seed, conditions, bytes_per_s=bytes_per_s)
        self.traits = traits
        self.devices: dict[int, Device] = {}

    def add(self, number: int, counts: Sequence[int], job: Job | None = None, **changes: Any) -> Device:
        """A device that is on. ``changes``: to its trainer's traits, and to the device."""
        names = {field.name for field in dataclasses.fields(self.traits)}  # type: ignore[arg-type]
        traits = self.traits(tuple(counts), **{k: v for k, v in changes.items() if k in names})
        device = Device(self, number, traits, job, **{k: v for k, v in changes.items() if k not in names})
        self.devices[number] = device
        self.place(device)
        device.start()
        self.introduce(device)
        return device

    def introduce(self, device: Device) -> None:
        """As mDNS would: everyone that is on hears of the newcomer, and it of them."""
        for other in list(self.devices.values()):
            if other is not device and other.is_on:
                self.perform(device, device.core.propose(other.address, device.now))
                self.perform(other, other.core.propose(device.address, other.now))

    def restart(self, number: int) -> Device:
        device = self.devices[number]
        device.start()
        self.introduce(device)
        return device

    def visit(self, number: int, peers: Iterable[int]) -> Visitor:
        """An observer that was told these peers' addresses."""
        visitor = Visitor(self, number)
        self.place(visitor)
        self.network.add(visitor.id, visitor)
        for peer in peers:
            self.perform(visitor, visitor.core.propose(address(peer), self.network.now))
        return visitor

    def end_visit(self, visitor: Visitor, *, goodbye: bool) -> None:
        """It says goodbye and closes; or it is killed."""
        if goodbye:
            self.perform(visitor, visitor.core.leave(self.network.now))
        visitor.gone = True
        self.network.crash(visitor.id)

    # --- what is to be seen ---

    def on(self) -> list[Device]:
        return [device for _, device in sorted(self.devices.items()) if device.is_on]

    def all_done(self) -> bool:
        return all(device.done for device in self.on())

    def epochs(self) -> set[int]:
        return {device.core.epoch for device in self.on()}

    def plans(self) -> set[str]:
        return {device.core.agreement.hash if device.core.agreement else "" for device in self.on()}

    def covered(self) -> set[int]:
        """Parts of which somebody who is on says, truly, that it has a copy."""
        return {h.part for d in self.on() for h in d.record.holdings if h.blob in d.disk and h.kind == "part"}
