"""What peers know of each other while all train, in virtual time: records by anti-entropy, as this project has them.

Every peer is a ``RecordBook`` over the simulated network, filled with records of a usual size, whose own record changes
as often as a trainer reports progress. Not simulated: sessions, who is alive, bandwidth.
"""

from __future__ import annotations

import random
from collections import Counter

from benchmarks.virtual import NUM_WATCHED, Meter
from p2ptrain.ids import JobId, blob_id, peer_id
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.protocol.signing import Statements
from p2ptrain.simulation.names import key, peer_ids
from p2ptrain.simulation.network import WIRELESS, MachineHost, SimulatedNetwork
from p2ptrain.simulation.signing import SIZED
from p2ptrain.wire.messages import Record, Records, SnapshotRef

PROGRESS_S = 0.5
"""A trainer's progress changes its peer's record so often (``learning/pace.py``); how often it says so is its own."""
GIVE_UP_S = 60.0


class _Reporter(MachineHost):
    """A record book of whose own record all that is progress changes every ``PROGRESS_S``: ``step`` counts that."""

    def __init__(self, book: RecordBook, meter: Meter | None, phase_s: float) -> None:
        super().__init__(book, lambda effects: effects if meter is None else meter.counted(effects))
        self.book = book
        self.phase_s = phase_s
        self._next = phase_s

    def tick(self, now: float) -> list[object]:
        effects: list[object] = list(self.book.tick(now))
        if self._next <= now:
            self._next += PROGRESS_S
            step = self.book.own.step + 1
            figures = {"loss": 1.0 / step, "samples_per_s": 800.0 + 1.0 / step, "bytes_sent": 4_000_000 + 1000 * step}
            effects += self.book.update(now, step=step, samples=16_000 + 32 * step, **figures)
        return self._out(effects)

    def next_deadline(self) -> float:
        return min(self.book.next_deadline(), self._next)

    def age_s(self, of: _Reporter, now: float) -> float:
        """How long ago what this peer knows of another became true."""
        known = self.book.get(of.book.own_id)
        step = known.step if known is not None else 0
        return now - (of.phase_s + (step - 1) * PROGRESS_S if step else 0.0)


def keep_records(
    num_peers: int, seed: int, *, warm_s: float, window_s: float = 4.0, give_up_s: float = GIVE_UP_S
) -> dict[str, float]:
    """What each says of itself while all train: bytes, how old what they know of each other is, and how long it takes
    until all know of a change that is more than progress."""
    rng = random.Random(f"{seed}/{num_peers}/records")
    everyone = peer_ids(num_peers)
    network = SimulatedNetwork(seed, WIRELESS)
    meter = Meter()
    num_watched = min(NUM_WATCHED, num_peers)
    hosts = []
    for number, peer in enumerate(everyone):
        own, own_rng = _record(number, num_peers), random.Random(f"{seed}/{number}")
        book = RecordBook(own, own_rng, 0.0, statements=Statements(SIZED, b""), refused=Counter())
        host = _Reporter(book, meter if number < num_watched else None, rng.random() * PROGRESS_S)
        network.add(peer, host)
        hosts.append(host)
    for host in hosts:  # they know each other, but not what is said from now on
        book = host.book
        for other in everyone:
            book.met(other)
        for start in range(0, num_peers, 64):
            known = tuple(other.book.own for other in hosts[start : start + 64] if other is not host)
            book.received(everyone[0], Records(known), 0.0)
        book.peers_alive(everyone, 0.0)
    network.run(warm_s)
    meter.running = True
    network.run(warm_s + window_s)
    pairs = [rng.sample(hosts, 2) for _ in range(2000)]
    ages = sorted(one.age_s(other, network.now) for one, other in pairs)
    changer, changed_at = rng.choice(hosts), network.now
    network.perform(changer.book.own_id, changer.book.update(network.now, phase="trained"))

    def num_that_know() -> int:
        records = (host.book.get(changer.book.own_id) for host in hosts)
        return sum(record is not None and record.phase == "trained" for record in records)

    known_s: dict[str, float] = {}  # without those that are not reached
    for name, share in (("news_known_p95_s", 0.95), ("news_known_s", 1.0)):
        enough = share * num_peers
        if network.run(changed_at + give_up_s, lambda enough=enough: num_that_know() >= enough, every_s=0.1):
            known_s[name] = network.now - changed_at
    return known_s | {
        "peers": num_peers,
        "bytes_per_s": meter.num_bytes / num_watched / window_s,
        "age_median_s": ages[len(ages) // 2],
        "age_p95_s": ages[int(0.95 * len(ages))],
    }


def _record(number: int, num_peers: int) -> Record:
    """As of a peer that trains one of ten classes' parts and keeps two snapshots of its own and one of another's."""
    own = peer_id(key(number))
    said, job = Statements(SIZED, b""), JobId("0" * 16)
    trainers = (number, number, (number + 1) % num_peers)
    refs = (
        SnapshotRef(trainer % 10, peer_id(key(trainer)), 1, 5, 500, 16_000, blob_id(b"%d/%d" % (number, i)), 500_000)
        for i, trainer in enumerate(trainers)
    )
    holdings = tuple(said.made(ref, ref.trainer, key(t), job) for ref, t in zip(refs, trainers, strict=True))
    return blank_record(
        own, key(number), 1_700_000_000_000, name=f"peer {number}", addresses=("tcp://10.0.0.1:40000",),
        job=job, counts=(100,) * 10, flops_per_s=1e9, memory_bytes=4 << 30, epoch=1, plan="0" * 64,
        part=number % 10, phase="training", round=5, samples=16_000, loss=0.5, samples_per_s=800.0,
        bytes_sent=4_000_000, holdings=holdings,
    )  # fmt: skip
