"""Groups that train to the end: with a peer lost for good, data that nobody shares, a full disk, a dying trainer."""

from __future__ import annotations

import signal
import time

import pytest
from group import SOON_S, START_S, PeerGroup, PeerProcess, make_job, stopped_trainers

from p2ptrain import api
from p2ptrain.learning.data import open_source

pytestmark = pytest.mark.slow


def test_a_peer_lost_for_good_is_in_the_harvest_and_resumes_later(peers: PeerGroup) -> None:
    three = peers.start(3, make_job(peers=3, rounds=8, epochs=6))
    peers.until_round(1)
    peers.until_all("replica-acked")
    with stopped_trainers(three):
        ids = {peer.id: peer for peer in three}
        lost = ids[str(min(three, key=lambda peer: peer.id).lines("replica-acked")[-1].fields["peer"])]  # type: ignore[index]
        others = [peer for peer in three if peer is not lost]
        part = lost.lines("training")[-1].fields["part"]
        lost.kill()
        assert not any(peer.said("done") for peer in three), "killed in the middle of training"
        peers.until_all("failed", SOON_S, others, peer=lost.id)
    peers.until_all("done", START_S, others)
    found = peers.harvest()
    assert not found.missing and len(found.report) == 3
    assert found.report[int(part or 0)].round > 0, "the holder's copy of the lost part"

    restarted_at = time.time()
    lost.start()
    peers.until(lambda: lost.said("training", restarted_at), START_S, "it trains again")
    line = lost.lines("training", restarted_at)[0]
    assert line.fields["part"] == part and int(line.fields["round"] or 0) > 0
    peers.until(lambda: lost.said("done", restarted_at), START_S, "it trains to the end")
    found = peers.harvest()
    assert not found.missing and all(report.round == 8 for report in found.report)

    for peer in others:  # who has not heard yet that it is back will not hear that it leaves
        peers.until(lambda peer=peer: peer.said("joined", restarted_at, peer=lost.id), SOON_S, f"{peer.name} sees it")  # type: ignore[misc]
    for number, peer in zip((signal.SIGTERM, signal.SIGINT), (lost, others[0]), strict=False):
        peer.send(number)
        assert peer.wait(SOON_S) == 0, peer.tail()
    peers.until_all("left", SOON_S, others[1:], peer=lost.id)
    peers.until_all("left", SOON_S, others[1:], peer=others[0].id)


def test_data_that_nobody_shares_are_trained_and_their_head_is_fitted(peers: PeerGroup) -> None:
    job = make_job(peers=3, rounds=8, epochs=2)
    for rest in range(3):
        classes = [name for name in job.data.classes if int(name) % 3 == rest]
        peers.add(job=job.to_json() if rest == 0 else "", classes=classes).start()
    peers.until_all("done")
    assert all(peer.said("head-fitted") for peer in peers.peers)
    found = peers.harvest()
    assert found.head_fitted and not found.missing and found.plan.body.disjoint
    path = peers.home / "model.safetensors"
    api.save_harvest(path, found)
    accuracy = api.evaluate(*api.load_model(path), "digits").accuracy
    print(f"accuracy {accuracy:.4f} on {open_source('digits').num_samples('test')} samples")
    assert accuracy >= 0.95


@pytest.mark.parametrize("compression", ["none", "fp16", "int8", "topk"])
def test_replicas_gossip(peers: PeerGroup, compression: str) -> None:
    count = 3 if compression == "none" else 2
    peers.start(count, make_job(mode="replicas", peers=count, rounds=5, epochs=2, compression=compression))
    peers.until_all("done")
    gossips = [line for peer in peers.peers for line in peer.lines("gossip")]
    print(f"{compression}: {len(gossips)} merges of {sorted({line.fields['bytes'] for line in gossips})} bytes")
    assert gossips
    assert not any(peer.said("payload-refused") for peer in peers.peers)
    found = peers.harvest()
    assert not found.missing and len(found.report) == 1 and len(found.report[0].trainers) == count
    path = peers.home / "model.safetensors"
    api.save_harvest(path, found)
    accuracy = api.evaluate(*api.load_model(path), "digits").accuracy
    print(f"{compression}: accuracy {accuracy:.4f}")
    assert accuracy > 0.8


def test_a_full_disk_is_said_once_and_training_goes_on(peers: PeerGroup) -> None:
    """There is room for the first snapshot and a copy of the other's, and for nothing that comes after."""
    job = make_job(peers=2, rounds=6, epochs=4)
    small = peers.add(job=job.to_json(), shard="1/2", quota_bytes=250_000).start()
    peers.add(shard="2/2").start()
    peers.until_all("done")
    assert len(small.lines("storage-full")) == 1, small.tail(40)
    assert [line.fields["round"] for line in small.lines("round")] == list(range(1, 7))
    assert all(peer.running for peer in peers.peers)
    newest = small.manifest()["snapshots"][-1]
    print(f"kept round {newest['round']} in {newest['num_bytes']} bytes")
    (blob,) = small.state.glob(f"*/blobs/{newest['blob']}")
    assert blob.stat().st_size == newest["num_bytes"]
    found = peers.harvest()
    assert not found.missing


def test_a_trainer_that_dies_again_and_again_is_given_up(peers: PeerGroup) -> None:
    """Always before it has finished another round: a part that is too large for this device, say."""
    frail, other = peers.start(2, make_job(peers=2, rounds=100_000, epochs=12))
    peers.until_round(1)
    peers.until_all("replica-acked")
    killed: list[int] = []
    while len(killed) < 3:
        peers.until(lambda: any(t.pid not in killed for t in frail.trainers()), SOON_S, f"after {len(killed)} deaths")
        trainer, since = frail.trainer(), time.time()
        killed.append(trainer.pid)
        trainer.kill()
        peers.until(lambda: frail.said("trainer-failed", since), SOON_S, "it says so")  # noqa: B023
    peers.until(lambda: is_failed(peers, frail), SOON_S, "its status says so")
    assert frail.running and not frail.trainers() and len(frail.lines("trainer-failed")) == 3, frail.tail(40)
    assert not other.said("failed")
    since = time.time()
    peers.until(lambda: other.said("replica-acked", since, peer=frail.id), SOON_S, "it still keeps others' snapshots")
    assert not peers.harvest().missing


def test_a_trainer_that_hangs_is_ended_and_training_goes_on(peers: PeerGroup) -> None:
    frail, _ = peers.start(2, make_job(peers=2, rounds=100_000, epochs=12), trainer_still_s=4.0)
    peers.until_round(1)
    since = time.time()
    frail.trainer().suspend()
    peers.until(lambda: frail.said("trainer-hangs", since), SOON_S, "it is noticed")
    peers.until(lambda: frail.said("training", since), START_S, "another trainer goes on")
    line = frail.lines("training", since)[0]
    assert int(line.fields["round"] or 0) > 0, "from its snapshot"
    assert "nothing from the training process" in str(frail.lines("trainer-hangs", since)[0].fields["what"])


def is_failed(peers: PeerGroup, peer: PeerProcess) -> bool:
    return any(record.peer == peer.id and record.phase == "failed" for record in peers.status().records)
