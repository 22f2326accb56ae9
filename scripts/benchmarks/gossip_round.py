"""How long one gossip exchange takes: push, merge there, reply, merge here, by model and compression.

Two peers train in replicas and gossip after each round, as always; one group a case, whose exchanges are the
repetitions (``--repeat`` of them or more; fewer where the machine is too slow for them). The trainers go on with their
(small) training steps meanwhile, and both peers start exchanges: this is an exchange as a group sees it, not an
isolated one. ``exchange`` is from the starter's command to make a payload to its having merged the reply. Of its
pieces: ``payload``, from the answerer's command to make its payload until the starter begins to fetch it; ``fetch``
and ``merge`` of the starter. Payload and merge each wait for a training step to end.

    python -m benchmarks.gossip_round        (the baseline's other process; reads its setting from stdin)
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import SEED, Column, Sample, Settings, child_environment
from benchmarks.memory import SHAPES, random_data, replicas_job
from benchmarks.peers import Happened, PeerGroup, PeerProcess
from benchmarks.rows import Row, Section
from p2ptrain.config import Compression, GroupConfig
from p2ptrain.experiment.processes import LOOPBACK, wait_until

LISTED = {
    "gossip_round": "seconds of one gossip exchange by model and compression, beside a plain exchange of equal bytes",
}
BASELINE = "two processes that send each other as many bytes over plain TCP, one after the other, and average"
COLUMNS = (
    Column("megabytes", "MB each way", 2),
    Column("exchange_ms", "exchange, ms", 0),
    Column("payload_ms", "payload, ms", 0),
    Column("fetch_ms", "fetch, ms", 0),
    Column("merge_ms", "merge, ms", 0),
)
COMPRESSIONS: tuple[Compression, ...] = ("none", "fp16", "int8", "topk")
BATCH_SIZE = {"lenet": 32, "vgg11_bn": 4}
NUM_SAMPLES = {"lenet": 2048, "vgg11_bn": 128}
TIMEOUT_S = 90.0


def run(settings: Settings) -> Iterator[Sample]:
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        for model in ("lenet",) if settings.tiny else SHAPES:
            data = random_data(Path(folder), SHAPES[model], NUM_SAMPLES[model])
            for compression in ("none",) if settings.tiny else COMPRESSIONS:
                with tempfile.TemporaryDirectory(dir=folder) as state:
                    exchanges = _of_group(Path(state), model, data, compression, settings.repeat)
                num_bytes = int(1e6 * exchanges[0]["megabytes"])
                num_parameters = count_parameters(model)
                for repetition in settings.repetitions:
                    figures = _plain_exchange(num_bytes, num_parameters)
                    yield Sample(f"{model}, {compression}: TCP", repetition, figures, is_baseline=True)
                for repetition, figures in enumerate(exchanges, settings.done):  # as many as there are
                    yield Sample(f"{model}, {compression}", repetition, figures)


def _of_group(
    folder: Path, model: str, data: str, compression: Compression, num_exchanges: int
) -> list[dict[str, float]]:
    config = GroupConfig(settle_s=0.2, compression=compression, replicas=0)
    job = replicas_job(model, data, batch_size=BATCH_SIZE[model], group=config)
    with PeerGroup(folder, job, data, trace=True) as group:
        peers = group.add_many(2)
        for peer in peers:
            peer.wait_for("note:training", TIMEOUT_S)

        # The first exchange of each is not counted: it warms up what the others find warm.
        def ended() -> list[dict[str, float]]:
            return [figures for peer in peers for figures in exchanges_of(peer, peers)[1 : num_exchanges + 1]]

        try:
            wait_until(lambda: len(ended()) >= num_exchanges, TIMEOUT_S, f"exchanges of {model}, {compression}")
        except TimeoutError:
            if not ended():  # a slow or busy machine: fewer are better than none
                raise
        return ended()


def exchanges_of(starter: PeerProcess, peers: Sequence[PeerProcess]) -> list[dict[str, float]]:
    """Figures of the exchanges that a peer started and that were carried to their end, from the peers' traces."""
    merged = merges_of(starter)
    answers = [
        made.at
        for peer in peers
        if peer is not starter
        for made in peer.seen("MakePayload")
        if is_answer(made.fields["exchange"], merges_of(peer))
    ]
    found = []
    for begun in starter.seen("MakePayload"):
        fetch, merge, done = merged.get(begun.fields["exchange"], (None, None, None))
        if fetch is None or merge is None or done is None or merge.fields["reply"]:
            continue  # not ended, or the answer to an exchange of the other's
        figures = {
            "megabytes": done.fields["bytes"] / 1e6,
            "exchange_ms": 1e3 * (done.at - begun.at),
            "fetch_ms": 1e3 * (merge.at - fetch.at),
            "merge_ms": 1e3 * (done.at - merge.at),
        }
        made = [at for at in answers if begun.at < at < fetch.at]
        found.append(figures | ({"payload_ms": 1e3 * (fetch.at - max(made))} if made else {}))
    return found


def is_answer(exchange: int, merges: Mapping[int, tuple[Happened, Happened, Happened]]) -> bool:
    """Whether a payload was made for an exchange of the other's: before the merge and apart from it, or after it."""
    return exchange not in merges or bool(merges[exchange][1].fields["reply"])


def merges_of(peer: PeerProcess) -> dict[int, tuple[Happened, Happened, Happened]]:
    """By exchange: fetch begun, command to merge, merged. Commands and answers of a trainer are in the same order."""
    begun = peer.seen("BeginBlob")
    ends = [e for e in list(peer.events) if e.kind in ("note:gossip", "note:payload-refused")]
    found = {}
    for merge, end in zip(peer.seen("Merge"), ends, strict=False):
        fetches = [e for e in begun if e.fields["blob"] == merge.fields["blob"] and e.at <= merge.at]
        if end.kind == "note:gossip" and fetches:
            found[merge.fields["exchange"]] = (fetches[-1], merge, end)
    return found


def count_parameters(model: str) -> int:
    from benchmarks.memory import NUM_CLASSES
    from p2ptrain.learning.models import build_model

    module = build_model(model, input_shape=SHAPES[model], num_classes=NUM_CLASSES, seed=SEED)
    return sum(p.numel() for p in module.parameters())


# --- the baseline ---------------------------------------------------------------------------------------------------


def _plain_exchange(num_bytes: int, num_parameters: int) -> dict[str, float]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gossip_round"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"num_bytes": num_bytes, "num_parameters": num_parameters}) + "\n")
        process.stdin.flush()
        port = int(process.stdout.readline())
        mine, theirs = np.zeros(num_parameters, np.float32), np.ones(num_parameters, np.float32)
        payload, buffer = bytes(num_bytes), bytearray(num_bytes)
        times = []
        with socket.create_connection((LOOPBACK, port), timeout=TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(5):
                start = time.monotonic()
                connection.sendall(payload)
                receive_into(connection, buffer)
                mine = (mine + theirs) / 2
                times.append(time.monotonic() - start)
        return {"megabytes": num_bytes / 1e6, "exchange_ms": 1e3 * float(np.median(times))}
    finally:
        process.kill()
        process.communicate()


def receive_into(connection: socket.socket, buffer: bytearray) -> None:
    """Fill the buffer. Raises ``EOFError`` if the other side closes before."""
    view = memoryview(buffer)
    got = 0
    while got < len(view):
        num_bytes = connection.recv_into(view[got:])
        if not num_bytes:
            raise EOFError
        got += num_bytes


def main() -> None:
    setting = json.loads(sys.stdin.readline())
    mine, theirs = (np.ones(setting["num_parameters"], np.float32) for _ in range(2))
    payload, buffer = bytes(setting["num_bytes"]), bytearray(setting["num_bytes"])
    with socket.create_server((LOOPBACK, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            while True:
                try:
                    receive_into(connection, buffer)
                except EOFError:
                    return
                mine = (mine + theirs) / 2
                connection.sendall(payload)


FIGURES = Section(
    "What it costs",
    "One gossip exchange",
    [
        Row(
            "gossip_round",
            f"one gossip exchange of {name} (payload made, fetched, merged), ms: whole; fp16; int8; top-k",
            "; ".join(f"{{{model}, {kind}/exchange_ms:.0f}}" for kind in COMPRESSIONS),
            "as many bytes over plain TCP and an average: "
            + "; ".join(f"{{{model}, {kind}: TCP/exchange_ms:.0f}}" for kind in COMPRESSIONS),
        )
        for model, name in (("lenet", "LeNet"), ("vgg11_bn", "VGG-11"))
    ],
)

if __name__ == "__main__":
    main()
