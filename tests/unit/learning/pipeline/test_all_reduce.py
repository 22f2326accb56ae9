"""Adding up a vector among peers: the same bits on all, in pieces and shards of any size, or no sum at all."""

from __future__ import annotations

import random

import pytest
import torch
from pipeline_group import Group, cuts, pipeline, same
from torch import Tensor

from p2ptrain.learning.pipeline import all_reduce, rows
from p2ptrain.learning.pipeline.all_reduce import Exchange
from p2ptrain.learning.pipeline.rows import StageMessage


def vectors(num: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num * 1000 + size)
    return [torch.randn(size, generator=generator) * 10.0**place for place in range(num)]


class Stage:
    def __init__(self, given: list[Tensor], order: int = 0) -> None:
        self.names = tuple("abcdefgh"[: len(given)])
        self.vectors = [tensor.clone() for tensor in given]
        self.peers = {n: Exchange(self.names, n, v) for n, v in zip(self.names, self.vectors, strict=True)}
        self.sent = dict.fromkeys(self.names, 0)
        self.rng = random.Random(order)

    def run(self, step: int = 0, bad: str = "") -> None:
        for name, peer in self.peers.items():
            peer.begin(step, bad=name == bad)
        pending: list[tuple[str, StageMessage]] = []
        while True:
            ready = [name for name, peer in self.peers.items() if peer.ready()]
            if pending and (not ready or self.rng.random() < 0.5):
                sender, message = pending.pop(self.rng.randrange(len(pending)))
                arrived = StageMessage(sender, message.work, message.step, message.unit, message.row, message.tensors)
                self.peers[message.peer].receive(arrived, step)
            elif ready:
                name = self.rng.choice(ready)
                for message in self.peers[name].advance():
                    pending.append((name, message))
                    self.sent[name] += sum(tensor.nbytes for tensor in message.tensors.values())
            else:
                break
        assert all(peer.done for peer in self.peers.values())


@pytest.mark.parametrize(("num", "size"), [(2, 1), (2, 1000), (3, 2), (3, 1001), (5, 3), (5, 4096), (8, 777)])
@pytest.mark.parametrize("piece_bytes", [1 << 20, 256, 20])
def test_all_have_the_sum_in_stage_order(
    num: int, size: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_reduce, "MESSAGE_BYTES", piece_bytes)
    given = vectors(num, size)
    total = torch.zeros(size)
    for tensor in given:
        total += tensor
    for order in range(2):
        stage = Stage(given, order)
        stage.run()
        assert all(torch.equal(vector, total) for vector in stage.vectors)
        assert not any(peer.bad for peer in stage.peers.values())


def test_each_sends_its_part_of_the_bytes() -> None:
    stage = Stage(vectors(4, 4000))
    stage.run()
    assert set(stage.sent.values()) == {2 * 3 * 4000 * 4 // 4}


@pytest.mark.parametrize("why", ["said", "overflow"])
def test_without_a_finite_sum_everyone_knows(why: str) -> None:
    given = vectors(3, 500)
    if why == "overflow":
        for tensor in given:
            tensor[-1] = 3e38
    stage = Stage(given)
    stage.run(bad="b" if why == "said" else "")
    assert all(peer.bad for peer in stage.peers.values())
    assert all(bool(vector.isfinite().all()) for vector in stage.vectors)
    for peer, vector, tensor in zip(stage.peers.values(), stage.vectors, vectors(3, 500), strict=True):
        peer.end()
        vector.copy_(tensor)
    stage.run(step=1)
    assert torch.equal(stage.vectors[0], stage.vectors[2]) and not stage.peers["a"].bad


def test_what_comes_early_for_the_next_batch_is_kept_unless_all_is_dropped() -> None:
    given = vectors(2, 10)
    stage = Stage(given)
    stage.run()
    early = StageMessage("b", "reduce", 1, 0, 0, {"sum": torch.ones(5)})
    peer = stage.peers["a"]
    peer.receive(early, 0)
    peer.end()
    peer.begin(1, bad=False)
    assert peer.ready()
    (gathered,) = peer.advance()
    assert gathered.work == "gather" and torch.equal(gathered.tensors["sum"], given[0][:5] + given[1][:5] + 1)
    peer.abandon()
    peer.begin(1, bad=False)
    assert [message.work for message in peer.advance()] == ["reduce"] and not peer.ready()


def test_smaller_messages_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pipeline(cuts("resnet20", ((5, 3), (2, 6), (8,))))
    whole = Group("resnet20", plan).run(2)
    monkeypatch.setattr(all_reduce, "MESSAGE_BYTES", 1024)
    monkeypatch.setattr(rows, "MESSAGE_BYTES", 1024)
    cut = Group("resnet20", plan, order=1).run(2)
    assert cut.num_sent > 2 * whole.num_sent and same(cut.state(), whole.state())
