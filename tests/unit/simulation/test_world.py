"""The simulated world: links that keep an order, break and are slow, and a disk that is as strict as the store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from p2ptrain.errors import LocalError
from p2ptrain.ids import blob_id
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.simulation.disk import MAX_BLOB_BYTES, SimulatedDisk
from p2ptrain.simulation.network import Conditions
from p2ptrain.simulation.world import FrameHost, World
from p2ptrain.wire.messages import Lane, SnapshotRef


class Listener(FrameHost):
    """Notes what comes, from whom and when."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.heard: list[tuple[float, Lane, bytes, bytes]] = []
        self.on = True

    @property
    def is_on(self) -> bool:
        return self.on

    def frames(self, lane: Lane, sender_key: bytes, frames: Sequence[bytes], now: float) -> list[object]:
        self.heard.append((now, lane, sender_key, b"".join(frames)))
        return []

    def tick(self, now: float) -> list[object]:
        return []

    def next_deadline(self) -> float:
        return NEVER


def world_of(count: int, conditions: Conditions, **options: float) -> tuple[World, list[Listener]]:
    world, hosts = World(1, conditions, **options), [Listener(number) for number in range(count)]
    for host in hosts:
        world.place(host)
        world.network.add(host.id, host)
    return world, hosts


def texts(host: Listener, lane: Lane = "control") -> list[bytes]:
    return [text for _, on, _, text in host.heard if on == lane]


def test_frames_of_a_lane_never_overtake_each_other() -> None:
    world, (ann, bob) = world_of(2, Conditions(delay_s=0.001, jitter_s=1.0))
    sent = [b"%d" % number for number in range(50)]
    for text in sent:
        world.perform(ann, [SendFrames(bob.address, "control", [text]), SendFrames(bob.address, "bulk", [b"-", text])])
    world.run(10)
    assert texts(bob) == sent and texts(bob, "bulk") == [b"-" + text for text in sent]
    assert {key for _, _, key, _ in bob.heard} == {ann.key}
    assert [lane for _, lane, _, _ in bob.heard] != ["control", "bulk"] * 50, "lanes don't wait for each other"


def test_links_break_and_a_run_repeats_itself() -> None:
    def outcome() -> list[bytes]:
        world, (ann, bob) = world_of(2, Conditions(loss=0.3))
        for number in range(200):
            world.perform(ann, [SendFrames(bob.address, "control", [b"%d" % number])])
        world.run(10)
        assert world.counts["lost"] == 200 - len(bob.heard) and 30 < world.counts["lost"] < 90
        return texts(bob)

    assert outcome() == outcome()


def test_bytes_take_time() -> None:
    world, (ann, bob) = world_of(2, Conditions(delay_s=0.0, jitter_s=0.0), bytes_per_s=100.0)
    world.perform(ann, [SendFrames(bob.address, "bulk", [bytes(100)])] * 3)
    world.run(10)
    assert [when for when, *_ in bob.heard] == pytest.approx([1.0, 2.0, 3.0])


def test_who_is_off_or_cut_off_hears_nothing() -> None:
    world, (ann, bob, cas) = world_of(3, Conditions())
    hello = [SendFrames(host.address, "control", [b"hello"]) for host in (bob, cas)]
    world.partition([0, 1], [2])
    world.perform(ann, hello)
    world.run(1)
    assert texts(bob) == [b"hello"] and texts(cas) == []
    world.heal()
    bob.on = False
    world.perform(ann, [*hello, SendFrames("tcp://10.9.9.9:1", "control", [b"nobody"])])
    world.run(1)
    assert texts(bob) == [b"hello"] and texts(cas) == [b"hello"] and world.counts["lost"] == 1


def test_a_disk_keeps_what_its_manifest_names_and_nothing_else() -> None:
    disk = SimulatedDisk()
    kept, left = disk.put(b"kept"), disk.put(b"left")
    holding = SnapshotRef(0, world_of(1, Conditions())[1][0].id, 1, 1, 1, 1, kept, 4)
    disk.save(frozenset(), own=(holding,))
    assert kept in disk and left in disk, "what is new waits for its manifest"
    disk.restarted()
    assert kept in disk and left not in disk
    with pytest.raises(LocalError, match="not here"):
        disk.save(frozenset(), replicas=(SnapshotRef(0, holding.trainer, 1, 1, 1, 1, left, 4),))


def test_a_disk_takes_a_blob_only_whole_and_sound() -> None:
    disk, data = SimulatedDisk(), b"some bytes"
    with pytest.raises(OSError):
        disk.begin(blob_id(data), MAX_BLOB_BYTES + 1, False)
    with pytest.raises(OSError):
        disk.write(blob_id(data), 0, data)
    disk.begin(blob_id(data), len(data), False)
    disk.write(blob_id(data), 5, data[5:])
    assert not disk.finish(blob_id(data))
    disk.write(blob_id(data), 0, data[:5])
    assert disk.finish(blob_id(data)) and disk.get(blob_id(data)) == data
    with pytest.raises(LocalError):
        disk.begin(blob_id(b""), 1, False)
        disk.write(blob_id(b""), 0, b"12")
