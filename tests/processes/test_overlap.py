"""Groups whose peers have some classes in common, with real pictures: who trains what, the fit, and who comes and goes.

Nothing here hangs on how fast the machine is: tests wait for lines in journals, and where one peer has to be late its
group's trainers are stopped until it is there.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest
from group import SOON_S, PeerGroup, PeerProcess, stopped_trainers
from pictures import num_samples, picture_job, unpack

from p2ptrain import api
from p2ptrain.learning.evaluation import Evaluation
from p2ptrain.modes.tasks.head.blob import head_holdings
from p2ptrain.runtime import report
from p2ptrain.wire.messages import SnapshotRef

pytestmark = pytest.mark.slow
ALL = ("airplane", "automobile", "cat", "dog", "frog")
EACH = 150
TRAINED_S = 400.0
"""Until a group is done, on a machine that is many times overloaded; ten seconds on a calm one."""


def evaluated(peers: PeerGroup, found: api.Harvest, classes: Sequence[str] = ALL) -> Evaluation:
    """The harvested file on test pictures."""
    path = peers.home / "model.safetensors"
    api.save_harvest(path, found)
    if not (peers.home / "test").exists():
        unpack(peers.home / "test", classes, 50, split="test")
    result = api.evaluate(*api.load_model(path), f"images:{peers.home / 'test'}")
    print(report.render(found), result.to_text(classes), sep="\n")
    return result


def classes_of(found: api.Harvest, peer: PeerProcess) -> set[str]:
    """What the plan gave to a peer."""
    part = found.plan.part_of(peer.id)
    return {found.job.data.classes[c] for c in part.classes} if part else set()


def head_of(peer: PeerProcess) -> tuple[SnapshotRef, ...]:
    """The snapshots that the head in its state directory was fitted over."""
    (blob,) = [kept["blob"] for kept in peer.manifest()["replicas"] if kept["kind"] == "head"]
    (path,) = peer.state.glob(f"*/blobs/{blob}")
    return head_holdings(path.read_bytes())


def check_one_fit(peers: list[PeerProcess], found: api.Harvest, samples: int) -> None:
    """Each took part in one fit, of the samples of all, over the last round of every part."""
    for peer in peers:
        assert len(peer.lines("head-fit-started")) == 1, peer.tail(40)
        (line,) = peer.lines("head-fitted")
        assert line.fields["samples"] == samples, peer.tail(40)
        assert len(peer.lines("done")) == 1
        last = {holding.part: holding.round for holding in head_of(peer)}
        assert last == dict.fromkeys(range(len(found.plan.parts)), found.job.training.rounds)
    assert all(part.round == part.rounds for part in found.report) and not found.missing
    assert found.verdict is not None and found.verdict.train_samples == samples
    assert not found.is_half_way and "HALF-WAY" not in report.render(found)


def test_two_laptops_one_has_some_of_the_others_classes(peers: PeerGroup) -> None:
    one = unpack(peers.home / "one", ALL, EACH, split="train")
    other = unpack(peers.home / "other", ("cat", "dog"), EACH, split="train", skip=EACH)
    job = picture_job(one)
    a, b = peers.add(job=job.to_json(), data=one).start(), peers.add(data=other).start()
    peers.until_all("done", TRAINED_S)
    found = peers.harvest()
    assert found.plan.mode == "tasks"
    assert classes_of(found, b) and classes_of(found, b) <= {"cat", "dog"}
    assert classes_of(found, a) | classes_of(found, b) == set(ALL)
    check_one_fit([a, b], found, sum(num_samples(job, one).values()) + sum(num_samples(job, other).values()))
    result = evaluated(peers, found)
    assert all(share > 0 for share in result.per_class), "every class is recognised"
    assert result.accuracy > 0.45, "with the classes of the second alone: 0.4 at the very best"


def test_three_whose_classes_overlap(peers: PeerGroup) -> None:
    has = (("airplane", "automobile", "cat"), ("cat", "dog", "frog"), ("airplane", "dog", "frog"))
    data = [
        unpack(peers.home / f"photos{number}", classes, 100, split="train", skip=100 * number)
        for number, classes in enumerate(has)
    ]
    job = picture_job(data[0], classes=ALL, peers=3)
    for number, own in enumerate(data):
        peers.add(job="" if number else job.to_json(), data=own).start()
    peers.until_all("done", TRAINED_S)
    found = peers.harvest()
    for peer, classes in zip(peers.peers, has, strict=True):
        assert classes_of(found, peer) and classes_of(found, peer) <= set(classes), "no class that it lacks"
    check_one_fit(peers.peers, found, sum(sum(num_samples(job, own).values()) for own in data))
    result = evaluated(peers, found)
    assert all(share > 0 for share in result.per_class) and result.accuracy > 0.35


def test_a_single_sample_of_a_class(peers: PeerGroup) -> None:
    """The class goes to who has more of it. Of another class there are three pictures in all."""
    some = {"airplane": 100, "automobile": 100, "cat": 100, "frog": 3}
    one = unpack(peers.home / "one", some, split="train")
    other = unpack(peers.home / "other", {"automobile": 1, "cat": 100, "dog": 100}, split="train", skip=EACH)
    job = picture_job(one, classes=ALL)
    a, b = peers.add(job=job.to_json(), data=one).start(), peers.add(data=other).start()
    peers.until_all("done", TRAINED_S)
    found = peers.harvest()
    assert "automobile" in classes_of(found, a) and "dog" in classes_of(found, b)
    assert "automobile" not in classes_of(found, b)
    check_one_fit([a, b], found, sum(num_samples(job, one).values()) + sum(num_samples(job, other).values()))
    result = evaluated(peers, found)
    assert result.accuracy > 0.3
    assert all(share > 0 for share in result.per_class[:4]), "what only one of them has is not given up for the rest"
    assert not any(peer.said("trainer-failed") for peer in peers.peers)


def test_a_harvest_in_the_middle_and_a_late_peer(peers: PeerGroup) -> None:
    """The late one has more pictures of a class that others have; it is there before the group goes on."""
    one = unpack(peers.home / "one", ALL, 100, split="train")
    other = unpack(peers.home / "other", ("cat", "dog"), 100, split="train", skip=EACH)
    third = unpack(peers.home / "third", ("cat", "frog"), 60, split="train", skip=2 * EACH)
    job = picture_job(one, rounds=40, epochs=1.0)
    first = [peers.add(job=job.to_json(), data=one).start(), peers.add(data=other).start()]
    peers.until_round(2)
    peers.until_all("replica-acked")
    with stopped_trainers(first):
        assert not any(peer.said("done") for peer in first)
        found = peers.harvest()
        assert found.is_half_way and not found.head_fitted and not found.missing
        told = report.render(found)
        assert "HALF-WAY: so far" in told and "THE LAST LAYER IS NOT FITTED YET" in told
        assert report.to_plain(found)["half_way"] is True
        late = peers.add(data=third).start()
        peers.until(
            lambda: any(late.id == r.peer and r.counts for r in peers.status().records), TRAINED_S, "it is here"
        )
    peers.until_all("done", TRAINED_S)
    found = peers.harvest()
    part = found.plan.part_of(late.id)
    if part is not None:  # it helps one that has all classes of its part
        assert len(part.trainers) > 1 or classes_of(found, late) <= {"cat", "frog"}
    check_one_fit(peers.peers, found, sum(sum(num_samples(job, own).values()) for own in (one, other, third)))


@pytest.mark.parametrize("how", ["leaves", "dies"])
def test_the_only_one_with_a_class_goes_half_way(peers: PeerGroup, how: str) -> None:
    """Nobody can show the class to the fit any more, but the model still knows what its part has learnt."""
    has = (("airplane", "automobile", "cat"), ("airplane", "automobile", "cat"), ("cat", "frog"))
    data = [
        unpack(peers.home / f"photos{number}", classes, 100, split="train", skip=100 * number)
        for number, classes in enumerate(has)
    ]
    classes = ("airplane", "automobile", "cat", "frog")
    job = picture_job(data[0], classes=classes, peers=3, rounds=12)
    for number, own in enumerate(data):
        peers.add(job="" if number else job.to_json(), data=own).start()
    *others, only = peers.peers
    peers.until(lambda: kept_by_another(only) >= 4, TRAINED_S, "four rounds of it are with another")
    with stopped_trainers(others):
        if how == "leaves":
            only.send(signal.SIGTERM)
            assert only.wait(TRAINED_S) == 0, only.tail()
        else:
            only.kill()
        assert not only.said("done") and not any(peer.said("done") for peer in others), peers.tails()
        peers.until_all("left" if how == "leaves" else "failed", SOON_S, others, peer=only.id)
    peers.until_all("done", TRAINED_S, others)
    part = int(only.lines("training")[-1].fields["part"] or 0)
    found = peers.harvest()
    assert not found.missing and "frog" in found.report[part].classes
    assert kept_by_another(only) <= found.report[part].round < job.training.rounds
    assert all(each.round == each.rounds for each in found.report if each.part != part)
    for peer in others:
        assert len(peer.lines("head-fitted")) == 1
        assert peer.lines("head-fitted")[0].fields["samples"] == sum(
            sum(num_samples(job, own).values()) for own in data[:2]
        )
    assert not found.is_half_way and found.stopped == (part,)
    told = report.render(found)
    assert f"STOPPED: part {part}" in told and "HALF-WAY" not in told and "NOT FITTED" not in told
    result = evaluated(peers, found, classes)
    assert all(share > 0 for share in result.per_class), "what has been learnt is not forgotten"


def kept_by_another(peer: PeerProcess) -> int:
    """The last round of its part that another has a copy of."""
    return max((int(line.fields["round"] or 0) for line in peer.lines("replica-acked")), default=0)
