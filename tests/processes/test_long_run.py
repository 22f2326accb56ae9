"""One group of four that trains all the while: peers are killed, stalled, joined, left; the others go on.

Each test finds the group whole and leaves it so.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from group import SOON_S, START_S, PeerGroup, PeerProcess, make_job, peer_group

from p2ptrain import api
from p2ptrain.errors import UserError
from p2ptrain.experiment.processes import port_is_free
from p2ptrain.net.keys import new_group

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerGroup]:
    with peer_group(tmp_path_factory.mktemp("four")) as peers:
        peers.start(4, make_job(peers=4, rounds=100_000))
        peers.until_round(2)
        peers.until_all("replica-acked")
        yield peers


@pytest.fixture
def whole(four: PeerGroup) -> PeerGroup:
    """The four, all of them training by one plan."""
    until_one_plan(four, four.peers[:4])
    return four


def until_one_plan(peers: PeerGroup, members: list[PeerProcess]) -> None:
    ids = {peer.id for peer in members}

    def one_plan() -> bool:
        status = peers.status()
        alive = {record.peer: record for record in status.records if status.states.get(record.peer) == "alive"}
        if alive.keys() != ids or status.plan is None or status.plan.trainers().keys() != ids:
            return False
        return all(r.plan == status.plan.hash and r.phase == "training" for r in alive.values())

    peers.until(one_plan, START_S, "everyone trains by one plan")


def lowest_of(peers: PeerGroup) -> PeerProcess:
    return min(peers.peers[:4], key=lambda peer: peer.id)


def holder_of(peers: PeerGroup, owner: PeerProcess) -> PeerProcess:
    last = owner.lines("replica-acked")[-1].fields["peer"]
    return next(peer for peer in peers.peers if peer.id == last)


def choose(peers: PeerGroup, role: str) -> PeerProcess:
    lowest = lowest_of(peers)
    holder = holder_of(peers, lowest)
    others = [peer for peer in peers.peers[:4] if peer not in (lowest, holder)]
    return {"proposer": lowest, "holder": holder, "another": others[0]}[role]


def rounds_of(peer: PeerProcess) -> int:
    return int(peer.lines("round")[-1].fields["round"])  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["proposer", "holder", "another"])
def test_a_killed_peer_is_missed_and_resumes(
    whole: PeerGroup, role: str, record_property: pytest.RecordProperty
) -> None:
    victim = choose(whole, role)
    others = [peer for peer in whole.peers[:4] if peer is not victim]
    own_id, part = victim.id, victim.lines("training")[-1].fields["part"]
    trainer = victim.trainer()
    killed_at = victim.kill()
    whole.until(lambda: not lives(trainer), SOON_S, "the trainer ends with its node")
    assert port_is_free(victim.port) and port_is_free(victim.port + 1)
    whole.until_all("failed", SOON_S, others, peer=own_id)
    took = [peer.lines("failed", killed_at, peer=own_id)[0].time - killed_at for peer in others]
    record_property("detection_s", [round(s, 2) for s in took])
    print(f"{role}: known dead after {', '.join(f'{s:.2f}' for s in took)} s")  # in virtual time it has a bound
    assert not any(peer.lines("failed", killed_at, peer=other.id) for peer in others for other in others)

    for peer in others:
        whole.until_round(rounds_of(peer) + 1, [peer])
    restarted_at = time.time()
    victim.start()
    whole.until(lambda: victim.said("training", restarted_at), START_S, f"{victim.name} trains again")
    line = victim.lines("training", restarted_at)[0]
    assert victim.id == own_id
    assert line.fields["part"] == part and int(line.fields["round"] or 0) > 0
    whole.until(lambda: all(p.said("joined", restarted_at, peer=own_id) for p in others), SOON_S, "it is back")


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stall_of_a_second_is_forgiven(whole: PeerGroup) -> None:
    for victim in whole.peers[:3]:
        since = time.time()
        victim.send_all(signal.SIGSTOP)
        time.sleep(1.0)
        victim.send_all(signal.SIGCONT)
        time.sleep(1.5)
        failed = [(peer.name, line) for peer in whole.peers[:4] for line in peer.lines("failed", since)]
        assert not failed, whole.tails()


def test_a_long_stall_is_a_death_and_it_comes_back(whole: PeerGroup) -> None:
    victim = lowest_of(whole)
    others = [peer for peer in whole.peers[:4] if peer is not victim]
    since = time.time()
    victim.send_all(signal.SIGSTOP)
    whole.until(lambda: all(p.said("failed", since, peer=victim.id) for p in others), SOON_S, "it is missed")
    resumed_at = time.time()
    victim.send_all(signal.SIGCONT)
    whole.until(lambda: all(p.said("joined", resumed_at, peer=victim.id) for p in others), SOON_S, "it is back")
    until_one_plan(whole, whole.peers[:4])
    assert not victim.said("failed", resumed_at), f"its own stall counts against nobody\n{victim.tail()}"
    whole.until_round(rounds_of(victim) + 1, [victim])


def test_a_killed_trainer_goes_on_from_the_last_snapshot(whole: PeerGroup) -> None:
    peer, since = whole.peers[3], time.time()
    before, part = peer.trainer(), peer.lines("training")[-1].fields["part"]
    before.kill()
    whole.until(lambda: peer.said("trainer-failed", since), SOON_S, "the node says that its trainer died")
    assert "memory" in str(peer.lines("trainer-failed", since)[0].fields["detail"])
    whole.until(lambda: peer.said("training", since), START_S, "another trainer")
    line = peer.lines("training", since)[0]
    assert line.fields["part"] == part and int(line.fields["round"] or 0) >= rounds_of_before(peer, since)
    assert peer.trainer().pid != before.pid
    assert [child.pid for child in psutil.Process(peer.pid).children()] == [peer.trainer().pid], "and no zombie"
    assert not any(other.said("failed", since) for other in whole.peers[:4])


def rounds_of_before(peer: PeerProcess, at: float) -> int:
    return max(int(line.fields["round"] or 0) for line in peer.lines("round") if line.time < at)


def test_a_node_imports_no_torch_and_stays_small(whole: PeerGroup) -> None:
    for peer in whole.peers[:4]:
        maps = Path(f"/proc/{peer.pid}/maps").read_text()
        assert not re.search(r"libtorch|libc10", maps)
        assert re.search(r"libtorch", Path(f"/proc/{peer.trainer().pid}/maps").read_text()), "so this test can tell"
        rss = psutil.Process(peer.pid).memory_info().rss
        print(f"{peer.name}: {rss / 2**20:.0f} MiB")
        assert rss < 120 * 2**20


def state_of(holding: dict[str, Any]) -> dict[str, Any]:
    """What it is a snapshot of. Two of one state may differ as files: the format's metadata have no order. A trainer
    signs what it tells others of, not what it writes down for itself."""
    return {key: value for key, value in holding.items() if key not in ("blob", "num_bytes", "key", "signature")}


def test_a_late_joiner_gets_job_and_part_and_leaves_in_good_order(whole: PeerGroup) -> None:
    since = time.time()
    late = whole.add("late", shard="1/4").start()
    try:
        whole.until(lambda: late.said("training", since), START_S, "the late one trains")
        assert late.lines("job-from")
        assert int(late.lines("training")[0].fields["round"] or 0) > 0, "from a copy of the part"
        either = ("replica-acked", "gossip")  # another keeps its snapshot, or averages the same part
        whole.until(lambda: any(late.said(kind, since) for kind in either), SOON_S, "another has what it learns")
        assert not any(peer.said("failed", since) for peer in whole.peers)

        late.send(signal.SIGTERM)
        assert late.wait(SOON_S) == 0, late.tail()
        assert not late.said("handover-incomplete", since), "it left when all was handed over, not when patience ended"
        others = whole.peers[:4]
        whole.until_all("left", SOON_S, others, peer=late.id)
        assert not any(peer.said("failed", since) for peer in others)
        newest = state_of(late.manifest()["snapshots"][-1])
        whole.until(
            lambda: newest in [state_of(kept) for peer in others for kept in peer.manifest()["replicas"]],
            SOON_S,
            f"handed over: {newest}",
        )
    finally:
        whole.peers.remove(late)
        late.end()


def test_another_group_next_door_and_a_wrong_code(whole: PeerGroup) -> None:
    since = time.time()
    other = new_group()
    job = make_job(peers=1, rounds=2, epochs=1).to_json()
    addresses = [peer.address for peer in whole.peers]
    neighbour = whole.add("neighbour", group=other, job=job, peers=addresses).start()
    stranger = whole.add("stranger", group=new_group(), peers=[*addresses, neighbour.address]).start()
    try:
        whole.until(lambda: neighbour.said("done"), START_S, "the group next door trains")
        with pytest.raises(UserError, match="no peer of this group answered"):
            whole.ask(api.harvest(new_group(), network=whole.network(), wait_s=3))
        assert not stranger.said("admitted") and not stranger.said("job") and not stranger.trainers()
        assert not neighbour.said("admitted") and not neighbour.said("joined")
        for peer in whole.peers[:4]:
            known = {line.fields.get("peer") for line in peer.lines("admitted", since)}
            assert not known & {neighbour.id, stranger.id}
            assert not peer.said("failed", since)
        stranger.send(signal.SIGINT)
        assert stranger.wait(SOON_S) == 0
    finally:
        for peer in (neighbour, stranger):
            whole.peers.remove(peer)
            peer.end()


def test_a_state_directory_has_one_peer(whole: PeerGroup) -> None:
    first = whole.peers[0]
    second = whole.add("second", state=str(first.state)).start()
    try:
        assert second.wait(SOON_S) == 2
        said = second.errors.read_text()
        assert "in use by another peer" in said and str(first.pid) in said and "Traceback" not in said
    finally:
        whole.peers.remove(second)
    assert first.running
