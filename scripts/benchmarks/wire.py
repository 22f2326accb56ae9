"""How fast bytes of tensors go from one process to another, and what that costs.

A blob is a safetensors file of 1 or 64 MB. Measured, each in turn: a plain TCP connection (the baseline), the codec
alone in one process, the transport's frames with and without CURVE, and a whole blob fetch from node to node as
peers do it (sessions, chunks with credits, sha256 at the end), into memory (as gossip does) and onto the disk with
its sync (as a replica holder does). ``cpu_s_per_gb`` counts both processes, ``sender`` and ``receiver`` one each. The
receiving process is ``wire_receiver``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.blob_node import BlobNode
from benchmarks.common import SEED, Column, Sample, Settings, child_environment, stopwatch
from benchmarks.rows import Row, Section
from benchmarks.wire_receiver import CHUNK_BYTES, TIMEOUT_S
from p2ptrain.experiment.processes import LOOPBACK
from p2ptrain.ids import blob_id
from p2ptrain.net.keys import OPEN_GROUP, new_identity
from p2ptrain.net.transport import Transport
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.wire import codec, tensorfile
from p2ptrain.wire.addresses import make_address
from p2ptrain.wire.messages import Chunk, Lane

LISTED = {
    "wire": "MB/s and CPU seconds per GB of codec, transport and blob transfer, beside plain TCP",
}
BASELINE = "the same bytes over one TCP connection on loopback between two processes (blocking sockets, 1 MiB writes)"
COLUMNS = (
    Column("mb_per_s", "MB/s", 0),
    Column("cpu_s_per_gb", "CPU s/GB", 2),
    Column("sender_cpu_s_per_gb", "sender", 2),
    Column("receiver_cpu_s_per_gb", "receiver", 2),
    Column("ms_per_blob", "ms a blob", 1),
)


def run(settings: Settings) -> Iterator[Sample]:
    plan = ((1, 2),) if settings.tiny else ((1, 48), (64, 3))
    blobs = {megabytes: make_blob(megabytes * 10**6) for megabytes, _ in plan}
    for repetition in settings.repetitions:
        for megabytes, count in plan:
            for case, work in CASES.items():
                figures = work(blobs[megabytes], count)
                yield Sample(f"{megabytes} MB: {case}", repetition, figures, is_baseline=case == "TCP")


def make_blob(num_bytes: int) -> bytes:
    """Tensors of 1 MB and a rest, random numbers, as a safetensors file."""
    rng = np.random.default_rng(SEED)
    sizes = [250_000] * (num_bytes // 1_000_000) or [num_bytes // 4]
    return tensorfile.pack({f"layer{i}.weight": rng.standard_normal(n, np.float32) for i, n in enumerate(sizes)})


def _rates(num_bytes: int, count: int, seconds: float, sender_cpu_s: float, receiver_cpu_s: float) -> dict[str, float]:
    gb = num_bytes * count / 1e9
    return {
        "mb_per_s": 1e3 * gb / seconds,
        "cpu_s_per_gb": (sender_cpu_s + receiver_cpu_s) / gb,
        "sender_cpu_s_per_gb": sender_cpu_s / gb,
        "receiver_cpu_s_per_gb": receiver_cpu_s / gb,
        "ms_per_blob": 1e3 * seconds / count,
    }


# --- codec ----------------------------------------------------------------------------------------------------------


def _codec(what: str, blob: bytes, count: int) -> dict[str, float]:
    name = blob_id(blob)
    chunks = [Chunk(name, at, blob[at : at + CHUNK_BYTES]) for at in range(0, len(blob), CHUNK_BYTES)]
    if what == "encode":
        with stopwatch() as time_of:
            for _ in range(count):
                for chunk in chunks:
                    codec.encode(chunk)
        return _rates(len(blob), count, time_of["s"], time_of["cpu_s"], 0.0)
    wire = [codec.encode(chunk) for chunk in chunks]
    with stopwatch() as time_of:
        for _ in range(count):
            for frames in wire:
                codec.decode(frames, "bulk")
    return _rates(len(blob), count, time_of["s"], 0.0, time_of["cpu_s"])


# --- two processes --------------------------------------------------------------------------------------------------


def _between(how: str, blob: bytes, count: int) -> dict[str, float]:
    """This process has the blob; a receiving process gets it ``count`` times, one after another."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.wire_receiver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    killer = threading.Timer(TIMEOUT_S, process.kill)
    killer.start()
    try:
        receiver = _Receiver(process)
        if how == "tcp":
            return _send_tcp(receiver, blob, count)
        work = _serve_fetches if how.startswith("fetch") else _send_frames
        return asyncio.run(asyncio.wait_for(work(receiver, how, blob, count), TIMEOUT_S))
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        process.communicate()


class _Receiver:
    """The other process as the sender sees it: JSON lines in and out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, **what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TimeoutError("the receiving process ended too early")
        said: dict[str, Any] = json.loads(line)
        return said

    async def hear_later(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.hear)


def _send_tcp(receiver: _Receiver, blob: bytes, count: int) -> dict[str, float]:
    receiver.tell(how="tcp", num_bytes=len(blob), count=count)
    with socket.create_connection((LOOPBACK, receiver.hear()["port"])) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cpu, start = time.process_time(), time.monotonic()
        view = memoryview(blob)
        for _ in range(count):
            for at in range(0, len(blob), CHUNK_BYTES):
                connection.sendall(view[at : at + CHUNK_BYTES])
            connection.recv(1)
        done = receiver.hear()
        return _rates(len(blob), count, done["at"] - start, time.process_time() - cpu, done["cpu_s"])


async def _send_frames(receiver: _Receiver, how: str, blob: bytes, count: int) -> dict[str, float]:
    """Encoded chunks, as fast as the transport takes them; the receiver's last byte stops the clock."""
    plain = how == "frames-plain"
    receiver.tell(how=how, num_bytes=len(blob), count=count)
    ports = await receiver.hear_later()

    async def ignore(lane: Lane, key: bytes, frames: list[bytes]) -> None:
        return None

    transport = Transport(new_identity(), OPEN_GROUP, ignore, (LOOPBACK,), plain=plain)
    await transport.start()
    try:
        address = make_address(LOOPBACK, ports["port"])
        transport.dial(address, make_address(LOOPBACK, ports["bulk_port"]))
        name = blob_id(blob)
        transport.send(address, "bulk", [b"hello"])
        await receiver.hear_later()  # connected, handshake and all
        cpu, start = time.process_time(), time.monotonic()
        for _ in range(count):
            for at in range(0, len(blob), CHUNK_BYTES):
                while transport.queued_bytes(address) > 8 * CHUNK_BYTES:
                    await asyncio.sleep(0.0005)
                transport.send(address, "bulk", codec.encode(Chunk(name, at, blob[at : at + CHUNK_BYTES])))
        done = await receiver.hear_later()
        return _rates(len(blob), count, done["at"] - start, time.process_time() - cpu, done["cpu_s"])
    finally:
        await transport.close()


async def _serve_fetches(receiver: _Receiver, how: str, blob: bytes, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        node = BlobNode(OPEN_GROUP, NetworkConfig((LOOPBACK,), discover=False), Path(folder))
        await node.start()
        try:
            name = node.blobs.put_ephemeral(blob) if how == "fetch-memory" else node.blobs.put(blob)
            receiver.tell(
                how=how, num_bytes=len(blob), count=count, port=node.transport.port, blob=name, folder=f"{folder}/there"
            )
            await receiver.hear_later()  # connected, and one blob fetched to warm up
            cpu = time.process_time()
            done = await receiver.hear_later()
            return _rates(len(blob), count, done["s"], time.process_time() - cpu, done["cpu_s"])
        finally:
            await node.close()


CASES: dict[str, Callable[[bytes, int], dict[str, float]]] = {
    "TCP": partial(_between, "tcp"),
    "codec encode": partial(_codec, "encode"),
    "codec decode": partial(_codec, "decode"),
    "frames, plain": partial(_between, "frames-plain"),
    "frames, CURVE": partial(_between, "frames"),
    "fetch to memory": partial(_between, "fetch-memory"),
    "fetch to disk": partial(_between, "fetch-disk"),
}


FIGURES = Section(
    "What it costs",
    "Bytes from process to process",
    (
        Row(
            "wire",
            "64 MB of tensors between processes, MB/s: frames; frames with CURVE; a whole fetch to memory; to disk",
            "{64 MB: frames, plain/mb_per_s:.0f}; {64 MB: frames, CURVE/mb_per_s:.0f};"
            " {64 MB: fetch to memory/mb_per_s:.0f}; {64 MB: fetch to disk/mb_per_s:.0f}",
            "plain TCP: {64 MB: TCP/mb_per_s:.0f}",
        ),
        Row(
            "wire",
            "the same, CPU seconds a GB, both sides",
            "{64 MB: frames, plain/cpu_s_per_gb:.1f}; {64 MB: frames, CURVE/cpu_s_per_gb:.1f};"
            " {64 MB: fetch to memory/cpu_s_per_gb:.1f}; {64 MB: fetch to disk/cpu_s_per_gb:.1f}",
            "plain TCP: {64 MB: TCP/cpu_s_per_gb:.1f}",
        ),
    ),
)
