"""Pipeline stages between two batches: snapshots that fit other cuts, batches given up, batches that don't count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from pipeline_group import ADAMW, CONFIG, NUM_CLASSES, SEED, STOPS, Cut, Group, cuts, pipeline, same, samples, shape_of
from torch import Tensor

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError, JobError, LocalError, RemoteError
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.snapshots import cut_anew
from p2ptrain.learning.training import MAX_BAD_STEPS, DivergedError

ONE_EACH = ((8,), (8,), (8,))


def move(old: Group, new: Group, step: int) -> Group:
    """Every peer of the new group goes on from all that the old one has."""
    pieces = [peer.snapshot() for peer in old.peers.values()]
    for peer in new.peers.values():
        peer.restore(pieces, step)
    return new


# --- snapshots ---


@pytest.mark.parametrize("config", [CONFIG, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_pieces_that_are_cut_anew_have_the_same_bits(name: str, config: object) -> None:
    old = Group(name, pipeline(cuts(name, ONE_EACH)), config, order=1).run(5)  # type: ignore[arg-type]
    pieces, chain = [peer.snapshot() for peer in old.peers.values()], old.chain
    num, kind = len(chain.blocks), config.optimizer  # type: ignore[attr-defined]
    runs = [(0, 1), (1, num - 1), (num - 1, num)]
    cut = cut_anew(chain, pieces, runs, kind, 5)
    assert [(metadata["first"], metadata["stop"]) for _, metadata in cut] == [(str(a), str(b)) for a, b in runs]
    before = {key: tensor for tensors, _ in pieces for key, tensor in tensors.items()}
    after = {key: tensor for tensors, _ in cut for key, tensor in tensors.items()}
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    whole, other = (Group(name, pipeline(cuts(name, ONE_EACH)), config, order=1) for _ in range(2))  # type: ignore[arg-type]
    for group, given in ((whole, pieces), (other, cut)):
        for peer in group.peers.values():
            peer.restore(given, 5)
        group.run(7)
    assert same(whole.state(), other.state())
    with pytest.raises(RemoteError):
        cut_anew(chain, pieces[1:], runs, kind, 5)
    with pytest.raises(RemoteError):
        cut_anew(chain, pieces, runs, kind, 6)


@pytest.mark.parametrize("config", [CONFIG, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", ["lenet", "gpt_mini", "resnet20"])
def test_going_on_with_other_cuts_gives_the_same_bits_as_never_stopping(name: str, config: object) -> None:
    whole = Group(name, pipeline(cuts(name, ONE_EACH)), config, order=1).run(9)  # type: ignore[arg-type]
    last = STOPS[name][-1]
    other: list[list[Cut]] = [
        [(last, (8,))],
        [(2, (8,)), (last, (8,))],
        [(1, (8,)), (2, (8,)), (3, (8,)), (last, (8,))],
    ]
    for order, stages in enumerate(other):
        group = Group(name, pipeline(cuts(name, ONE_EACH)), config, order=order).run(3)  # type: ignore[arg-type]
        group = move(group, Group(name, pipeline(stages), config, order=order), 3).run(9)  # type: ignore[arg-type]
        assert same(group.state(), whole.state())
        assert all(peer.num_samples == 9 * 32 for peer in group.peers.values())


@pytest.mark.parametrize("schedule", ["sync", "async"])
def test_a_group_that_restarts_goes_on_to_the_bit(schedule: str) -> None:
    plan = pipeline(cuts("lenet", ((5, 3), (2, 6), (4, 4))))
    options = {"schedule": schedule, "activations": "int8", "gradients": "int8"}
    whole = Group("lenet", plan, **options).run(10)  # type: ignore[arg-type]
    stopped = Group("lenet", plan, order=1, **options).run(5)  # type: ignore[arg-type]
    again = move(stopped, Group("lenet", plan, order=2, **options), 5)  # type: ignore[arg-type]
    assert [again.peers[peer].drawn for peer in ("0a", "0b", "1a")] == [5 * 4 * 5, 5 * 4 * 3, 0]
    assert again.peers["1b"].round == 1
    assert same(again.run(10).state(), whole.state())


def test_a_piece_is_what_it_says() -> None:
    group = Group("lenet", pipeline([(1, (8,)), (4, (8,))])).run(2)
    tensors, metadata = group.peers["1a"].snapshot(2, 3)
    assert set(tensors) == {
        f"{kind}{name}" for kind in ("model.", "optim.momentum_buffer.") for name in ("fc1.weight", "fc1.bias")
    }
    assert metadata == {
        "format": "p2ptrain-slice-1",
        "first": "2",
        "stop": "3",
        "step": "2",
        "total_steps": "20",
        "samples": "64",
        "optimizer": "sgd",
    }
    assert group.peers["0a"].snapshot()[1]["drawn.0a"] == "64"
    with pytest.raises(LocalError, match="not in this stage"):
        group.peers["1a"].snapshot(0, 2)


def test_a_peer_that_moves_back_to_the_first_stage_knows_which_samples_it_has_drawn() -> None:
    names = {"0a": "ada", "1a": "bob"}
    swapped = {"0a": "bob", "1a": "ada"}
    plan = pipeline([(2, (8,)), (4, (8,))])
    group = Group("lenet", plan, names=names).run(1)
    group = move(group, Group("lenet", plan, names=swapped), 1).run(2)
    assert group.peers["1a"].snapshot()[1]["drawn.ada"] == "32"
    group = move(group, Group("lenet", plan, names=names), 2)
    assert group.peers["0a"].drawn == 32 and group.peers["1a"].drawn == 32


def damaged(kind: str, pieces: list[tuple[dict[str, Tensor], dict[str, str]]]) -> None:
    (first, first_says), (second, second_says) = pieces
    weight = "model.conv2.weight"
    if kind == "hole":
        del pieces[1]
    elif kind == "step":
        second_says["step"] = "3"
    elif kind == "format":
        second_says["format"] = "p2ptrain-snapshot-1"
    elif kind == "optimizer":
        second_says["optimizer"] = "adamw"
    elif kind == "blocks":
        second_says["stop"] = "9"
    elif kind == "count":
        second_says["first"] = "-1"
    elif kind == "samples":
        first_says["samples"] = "many"
    elif kind == "extra":
        first["model.other"] = torch.zeros(1)
    elif kind == "missing":
        del second[weight]
    elif kind == "shape":
        second[weight] = second[weight][:1]
    elif kind == "dtype":
        second[weight] = second[weight].double()
    elif kind == "finite":
        second[weight][0] = math.nan
    elif kind == "state":
        second["optim.exp_avg.conv2.weight"] = second[weight]
    elif kind == "owner":
        second["optim.momentum_buffer.conv1.weight"] = second[weight]
    elif kind == "state shape":
        second["optim.momentum_buffer.conv2.weight"] = torch.zeros(3)
    elif kind == "state finite":
        second["optim.momentum_buffer.conv2.weight"][0] = math.inf
    elif kind == "elsewhere":
        first["something"] = torch.zeros(1)


DAMAGES = (
    *("hole", "step", "format", "optimizer", "blocks", "count", "samples", "extra", "missing", "shape", "dtype"),
    *("finite", "state", "owner", "state shape", "state finite", "elsewhere"),
)


@pytest.mark.parametrize("kind", DAMAGES)
def test_pieces_that_do_not_fit_are_refused_and_change_nothing(kind: str) -> None:
    group = Group("lenet", pipeline([(1, (8,)), (4, (8,))])).run(1)
    new = Group("lenet", pipeline([(4, (8,))]))
    before = new.state()
    pieces = [peer.snapshot() for peer in group.peers.values()]
    damaged(kind, pieces)
    with pytest.raises(RemoteError):
        new.peers["0a"].restore(pieces, 1)
    assert same(new.state(), before) and new.peers["0a"].step == 0


def test_incomplete_optimizer_state_and_steps_beyond_the_end_are_refused() -> None:
    group = Group("lenet", pipeline([(4, (8,))]), ADAMW).run(1)
    peer = group.peers["0a"]
    tensors, metadata = peer.snapshot()
    with pytest.raises(RemoteError, match="incomplete"):
        peer.restore([({n: t for n, t in tensors.items() if n != "optim.step.fc1.bias"}, metadata)], 1)
    with pytest.raises(RemoteError, match="below zero"):
        peer.restore([(tensors | {"optim.step.fc1.bias": torch.tensor(-1.0)}, metadata)], 1)
    with pytest.raises(RemoteError, match="after 21 batches"):
        peer.restore([(tensors, metadata | {"step": "21"})], 21)


# --- a batch given up ---


@pytest.mark.parametrize("schedule", ["sync", "async"])
@pytest.mark.parametrize("done", [1, 10, 25, 35])
def test_a_batch_given_up_leaves_no_trace(done: int, schedule: str) -> None:
    plan = pipeline(cuts("resnet20", ((5, 3), (8,), (8,))), units=3)
    group = Group("resnet20", plan, order=done, schedule=schedule, steps_per_round=2)
    before = group.run(2).state()
    drawn = {name: peer.drawn for name, peer in group.peers.items()}
    for peer in group.peers.values():
        peer.stop_at = 4
    group.turn(done)
    assert {peer.step for peer in group.peers.values()} == {2}
    assert any(peer.num_held for peer in group.peers.values())
    assert same(group.state(), before) and {name: peer.drawn for name, peer in group.peers.items()} == drawn
    group.pending.clear()
    for peer in group.peers.values():
        peer.abandon_batch()
    assert same(group.state(), before) and {name: peer.drawn for name, peer in group.peers.items()} == drawn
    assert all(peer.num_held == 0 for peer in group.peers.values())
    straight = Group("resnet20", plan, schedule=schedule, steps_per_round=2).run(4)
    assert same(group.run(4).state(), straight.state())


def test_nothing_is_done_from_the_batch_on_at_which_to_stop() -> None:
    group = Group("lenet", pipeline(cuts("lenet", ONE_EACH))).run(3)
    assert not any(peer.ready() for peer in group.peers.values())
    with pytest.raises(LocalError, match="nothing can be done"):
        group.peers["0a"].advance()
    group.run(20)
    for peer in group.peers.values():
        peer.stop_at = 100
    assert not any(peer.ready() for peer in group.peers.values()) and group.peers["0a"].finished


# --- batches that don't count ---


def bad_data(value: float, step: int) -> Dataset:
    """Samples of which one of those of a batch is not a usable number."""
    rng = np.random.default_rng(0)
    contract = DataConfig(tuple("abcde"), (1, 8, 8), mean=(0.0,), std=(1.0,))
    data = Dataset(rng.standard_normal((400, 1, 8, 8), np.float32), rng.integers(0, NUM_CLASSES, 400), contract)
    stream = SampleStream(data, seed=SEED, peer_name="0a", augment=False)
    stream.draw(step * 20)  # its share, 5 of each of 4 micro-batches
    x, _ = stream.draw(7)
    (found,) = np.flatnonzero((data.x == x[-1:].numpy()).all((1, 2, 3)))
    data.x[found] = value
    return data


@pytest.mark.parametrize("value", [math.nan, 3e38, 1e25], ids=["nan", "overflows at once", "overflows later"])
def test_a_batch_that_is_not_finite_changes_nothing_anywhere(value: float) -> None:
    plan = pipeline(cuts("lenet", ((5, 3), (2, 6), (4, 4))))
    group = Group("lenet", plan, data={"0a": bad_data(value, 1), "0b": samples("lenet", 1)})
    before, loss = group.run(1).state(), group.peers["2a"].last_loss
    after = group.run(2).state()
    assert same(before, after)
    assert all(peer.num_samples == 32 for peer in group.peers.values())
    assert group.peers["2a"].last_loss == loss
    later = group.run(3).state()
    assert not any(torch.equal(before[name], later[name]) for name in before)
    assert all(bool(tensor.isfinite().all()) for tensor in later.values())


@pytest.mark.parametrize("value", [math.nan, 1e25])
def test_statistics_are_as_before_a_bad_batch(value: float) -> None:
    shape = shape_of("resnet20")
    contract = DataConfig(tuple("abcde"), shape, mean=(0.0,) * 3, std=(1.0,) * 3)
    rng = np.random.default_rng(0)
    data = Dataset(rng.standard_normal((64, *shape), np.float32), rng.integers(0, NUM_CLASSES, 64), contract)
    data.x[:] = value
    group = Group("resnet20", pipeline(cuts("resnet20", ((4, 4), (8,), (5, 3)))), data={"0a": data, "0b": data})
    before = group.state()
    assert same(group.run(2).state(), before)


def test_training_that_stays_not_finite_ends() -> None:
    data = bad_data(math.nan, 1)
    data.x[:] = math.nan
    group = Group("lenet", pipeline([(2, (8,)), (4, (8,))]), data={"0a": data})
    before = group.state()
    with pytest.raises(DivergedError, match=f"{MAX_BAD_STEPS} batches in a row"):
        group.run(20)
    ended = [peer for peer in group.peers.values() if peer.step == MAX_BAD_STEPS]
    assert ended and all(torch.equal(before[name], t) for peer in ended for name, t in peer.snapshot()[0].items())


# --- samples ---


@pytest.mark.parametrize("shares", [(7,), (3, 5, 1), (100,)])
def test_each_sample_comes_once_a_pass_however_many_are_drawn_at_once(shares: tuple[int, ...]) -> None:
    data = samples("lenet", 0, num=50)
    data.x[:] = np.arange(50)[:, None, None, None]
    stream = SampleStream(data, seed=1, peer_name="ada", augment=False)
    seen: list[int] = []
    for share in itertools.cycle(shares):
        x, y = stream.draw(share)
        numbers = ((x[:, 0, 0, 0] * 0.3 + 0.4) * 255).round().int().tolist()
        assert len(numbers) == share and torch.equal(y, torch.from_numpy(data.y[numbers]))
        seen += numbers
        if len(seen) >= 150:
            break
    assert stream.drawn == len(seen)
    assert all(sorted(seen[first : first + 50]) == list(range(50)) for first in (0, 50, 100))
    assert seen[:50] != seen[50:100]


def test_in_a_group_each_sample_comes_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {peer: samples("lenet", place, num=60) for place, peer in enumerate(("0a", "0b"))}
    group = Group("lenet", pipeline(cuts("lenet", ((5, 3), (8,), (8,))), units=2), data=data)
    seen: dict[int, list[Tensor]] = {5: [], 3: []}
    draw = SampleStream.draw

    def noted(stream: SampleStream, num: int) -> tuple[Tensor, Tensor]:
        x, y = draw(stream, num)
        seen[num] += x.unbind()
        return x, y

    monkeypatch.setattr(SampleStream, "draw", noted)
    group.run(6)
    for name, share, num in (("0a", 5, 60), ("0b", 3, 36)):
        owned = {x.numpy().tobytes() for x in data[name].tensors()[0]}
        drawn = {x.numpy().tobytes() for x in seen[share]}
        assert len(seen[share]) == len(drawn) == num and drawn <= owned


def test_samples_go_on_from_where_they_were() -> None:
    data = samples("lenet", 0, num=50)
    straight, resumed = (SampleStream(data, seed=1, peer_name="ada", augment=True) for _ in range(2))
    drawn = [straight.draw(8) for _ in range(9)]
    resumed.drawn = 8 * 8
    assert all(torch.equal(one, other) for one, other in zip(resumed.draw(8), drawn[8], strict=True))
    other = SampleStream(data, seed=1, peer_name="bob", augment=True)
    assert not torch.equal(other.draw(8)[0], drawn[0][0])


# --- what a pipeline can't train ---


def test_what_can_not_be_trained_is_said_and_what_to_do() -> None:
    with pytest.raises(JobError, match=r"batch normalisation.*larger"):
        Group("resnet20", pipeline(cuts("resnet20", ((8,), (7, 1), (8,)))))
    Group("lenet", pipeline(cuts("lenet", ((8,), (7, 1), (8,))))).run(1)
    with pytest.raises(DataError, match="has no data"):
        Group("lenet", pipeline([(4, (8,))]), data={"x": samples("lenet", 0)})
    empty = samples("lenet", 0).subset(np.arange(0))
    with pytest.raises(DataError, match="no samples"):
        Group("lenet", pipeline([(4, (8,))]), data={"0a": empty})
    with pytest.raises(JobError, match="nothing in the checkpoint fits"):
        Group("lenet", pipeline([(4, (8,))]), init={})
    with pytest.raises(LocalError, match="blocks"):
        Group("lenet", pipeline([(3, (8,))]))


def test_training_starts_from_a_checkpoint() -> None:
    done = Group("lenet", pipeline(cuts("lenet", ONE_EACH))).run(2).state()
    init = {name.removeprefix("model."): tensor for name, tensor in done.items() if name.startswith("model.")}
    start = Group("lenet", pipeline([(2, (8,)), (4, (8,))]), init=init).state()
    assert all(torch.equal(start[f"model.{name}"], tensor) for name, tensor in init.items())
