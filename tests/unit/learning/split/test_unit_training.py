"""Split training of any cuts is federated averaging: to float tolerance, in any order of arrival."""

from __future__ import annotations

import random

import pytest
import torch
from own_optimizers import DIVISIBLE
from pipeline_group import SEED, builder
from split_group import BATCH, MICRO_BATCH, NUM_MICRO_BATCHES, SplitGroup, meta_chain, state_of
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.objective import training_loss
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.split.units import UnitDivergedError
from p2ptrain.learning.training import DivergedError, schedule

SGD = TrainingConfig(rounds=3, learning_rate=0.05)
ADAMW = TrainingConfig(rounds=3, optimizer="adamw", learning_rate=0.002)
COUNTS = {"anna": 24, "ben": 40, "cleo": 16, "hal": 32}


def federated_averaging(name: str, group: SplitGroup, config: TrainingConfig, rounds: int) -> dict[str, Tensor]:
    """The same rounds in one process, in plain torch: every owner trains the whole model."""
    streams = {o: SampleStream(d, seed=SEED, peer_name=o, augment=False) for o, d in group.data.items()}
    state = {name: tensor.clone() for name, tensor in builder(name)().state_dict().items()}
    for number in range(rounds):
        copies: list[tuple[int, dict[str, Tensor]]] = []
        for owner in sorted(group.data):
            model = builder(name)().train()
            model.load_state_dict(state)
            groups = [
                {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
            ]
            optimizer: torch.optim.Optimizer
            if config.own_optimizer:
                make = DIVISIBLE[config.own_optimizer.partition(":")[2]]
                optimizer = make(list(model.parameters()), config.learning_rate)
            elif config.optimizer == "adamw":
                optimizer = torch.optim.AdamW(groups, betas=(config.momentum, 0.999))
            else:
                optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=True)
            steps = COUNTS[owner] // BATCH
            for step in range(number * steps, (number + 1) * steps):
                for settings in optimizer.param_groups:
                    settings["lr"] = config.learning_rate * schedule(config, step, config.rounds * steps)
                optimizer.zero_grad()
                for _ in range(NUM_MICRO_BATCHES):
                    x, y = streams[owner].draw(MICRO_BATCH)
                    (training_loss(model(x), y, config.label_smoothing) / NUM_MICRO_BATCHES).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
            copies.append((steps * BATCH, model.state_dict()))
        total = sum(weight for weight, _ in copies)
        state = {
            name: sum((copy[name] * (weight / total) for weight, copy in copies), torch.zeros_like(tensor))
            for name, tensor in state.items()
        }
    return state


def test_rounds_with_an_own_optimizer_are_too() -> None:
    config = TrainingConfig(rounds=3, own_optimizer="own_optimizers:counted", learning_rate=0.01)
    cuts = {"anna": ("hal", 1), "ben": ("hal", 3), "hal": ("", 0)}
    group = SplitGroup("lenet", cuts, COUNTS, config)
    found = state_of(group.round(1, group.round(0, [])))
    for key, tensor in federated_averaging("lenet", group, config, 2).items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-4, atol=2e-6)


def test_optimizers_begin_anew_or_go_on_from_their_mean() -> None:
    cuts = {"anna": ("hal", 1), "ben": ("hal", 3), "hal": ("", 0)}
    states = []
    for averages in (False, True):
        group = SplitGroup("lenet", cuts, COUNTS, SGD, averages_optimizer=averages)
        start = group.round(0, [])
        kept = [name for tensors, _ in start for name in tensors if name.startswith("optim.")]
        assert len(kept) == (len(group.chain.tensor_names(0, 4)) if averages else 0)
        states.append(state_of(group.round(1, start)))
    assert not all(torch.allclose(states[0][key], states[1][key], rtol=1e-3) for key in states[0])


def random_cuts(name: str, seed: int) -> dict[str, tuple[str, int]]:
    rng, length = random.Random(seed), len(meta_chain(name).blocks)
    cuts = {owner: (rng.choice(["hal", "ida", ""]), rng.randrange(1, length)) for owner in ("anna", "ben", "cleo")}
    return cuts | {"hal": ("", length)}


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["lenet", "gpt_mini"])
def test_rounds_with_any_cuts_are_rounds_of_federated_averaging(name: str, seed: int, config: TrainingConfig) -> None:
    group = SplitGroup(name, random_cuts(name, seed), COUNTS, config, order=seed)
    pieces: list[Snapshot] = []
    for number in range(2):
        pieces = group.round(number, pieces)
        assert not group.drawn_in, "an honest peer does not count as it is"
    expected, found = federated_averaging(name, group, config, 2), state_of(pieces)
    assert found.keys() == expected.keys() and group.samples == 2 * sum(COUNTS.values())
    for key, tensor in expected.items():
        # A bias on attention's keys changes no output, so its gradient is rounding only, which AdamW makes larger.
        atol = 2e-5 if key.endswith("qkv.bias") else 2e-6
        torch.testing.assert_close(found[key], tensor, rtol=2e-4, atol=atol)


@pytest.mark.parametrize("name", ["lenet", "gpt_mini"])
def test_so_are_rounds_in_which_labels_stay_with_their_owners(name: str) -> None:
    length = len(meta_chain(name).blocks)
    cuts = {"anna": ("hal", 1), "ben": ("hal", length - 2), "cleo": ("ida", 1), "hal": ("", length)}
    group = SplitGroup(name, cuts, COUNTS, SGD, order=1, keeps_labels=True)
    pieces: list[Snapshot] = []
    for number in range(2):
        pieces = group.round(number, pieces)
    assert group.peers["anna"].losses.keys() == {"anna"} and group.peers["hal"].losses.keys() == {"hal"}
    assert group.most_held["hal"] <= 5 and group.most_held["anna"] <= 3
    expected, found = federated_averaging(name, group, SGD, 2), state_of(pieces)
    assert found.keys() == expected.keys() and group.samples == 2 * sum(COUNTS.values())
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-4, atol=2e-6)


def test_any_order_of_arrival_gives_the_same_bits_and_few_micro_batches_are_held() -> None:
    cuts = {"anna": ("ida", 2), "ben": ("ida", 4), "cleo": ("ida", 7), "hal": ("", 0)}
    states = []
    for order in range(3):
        group = SplitGroup("resnet20", cuts, COUNTS, SGD, order=order)
        states.append(state_of(group.round(0, [])))
        assert group.most_held["anna"] <= 2 and group.most_held["ida"] <= 3
    assert all(torch.equal(states[0][key], state[key]) for state in states[1:] for key in states[0])


def test_pieces_are_cut_where_somebody_begins_or_ends_and_each_begins_with_its_own() -> None:
    cuts = {"anna": ("hal", 1), "ben": ("hal", 3), "hal": ("", 0)}
    group = SplitGroup("lenet", cuts, COUNTS, SGD)
    pieces = group.round(0, [])
    assert [(meta["first"], meta["stop"], meta["step"]) for _, meta in pieces] == [
        ("0", "1", "1"),
        ("1", "3", "1"),
        ("3", "4", "1"),
    ]
    group.peers["anna"].begin(1, pieces[:1])
    group.peers["ben"].begin(1, pieces[:2])
    with pytest.raises(RemoteError, match="blocks"):
        group.peers["hal"].begin(1, pieces[:2])
    with pytest.raises(RemoteError, match="step 1, expected 2"):
        group.peers["anna"].begin(2, pieces[:1])


def test_a_round_can_begin_again_from_its_start_with_other_cuts() -> None:
    one = SplitGroup("lenet", {"anna": ("hal", 1), "ben": ("hal", 3), "hal": ("", 0)}, COUNTS, SGD)
    start = one.round(0, [])
    expected = state_of(one.round(1, start))
    other = SplitGroup("lenet", {"anna": ("", 0), "ben": ("ida", 2), "hal": ("", 0)}, COUNTS, SGD)
    other.samples = int(start[0][1]["samples"])
    found = state_of(other.round(1, start))
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6)


def test_who_is_helped_does_not_help() -> None:
    with pytest.raises(LocalError, match="is helped and helps"):
        SplitGroup("lenet", {"anna": ("hal", 1), "ben": ("anna", 3)}, COUNTS, SGD)


def test_who_has_fewer_samples_than_a_batch_trains_smaller_ones() -> None:
    counts = {"anna": 5, "ben": 1, "hal": 32}
    group = SplitGroup("lenet", {"anna": ("hal", 1), "ben": ("hal", 3), "hal": ("", 0)}, counts, SGD)
    group.round(0, [])
    assert group.samples == 4 + 1 + 32  # anna's fifth comes first in the next round


def test_messages_of_strangers_and_those_not_due_are_refused() -> None:
    group = SplitGroup("lenet", {"anna": ("hal", 1), "ben": ("", 0), "hal": ("", 0)}, COUNTS, SGD)
    for units in group.peers.values():
        units.begin(0, [])
    (message,) = group.peers["anna"].advance()
    with pytest.raises(RemoteError, match="shares no unit"):
        group.peers["hal"].receive(StageMessage("ben", "forward", 0, 0, 0, message.tensors))
    with pytest.raises(RemoteError, match="micro-batch 0 of batch 3"):
        group.peers["hal"].receive(StageMessage("anna", "forward", 3, 0, 0, message.tensors))
    group.peers["hal"].receive(StageMessage("anna", "forward", 0, 0, 0, message.tensors))
    with pytest.raises(LocalError, match="not over"):
        group.peers["hal"].update()


def test_a_helper_serves_first_whose_owner_needs_longest_and_its_own_unit_last() -> None:
    group = SplitGroup("lenet", {"anna": ("hal", 1), "ben": ("hal", 1), "hal": ("", 0)}, COUNTS, SGD)
    for units in group.peers.values():
        units.begin(0, [])
    for owner in ("anna", "ben"):  # of whom ben needs longer afterwards
        (message,) = group.peers[owner].advance()
        group.peers["hal"].receive(StageMessage(owner, message.work, 0, 0, 0, message.tensors))
    served = []
    for _ in range(4):
        group.peers["hal"].advance()
        served.append(max(group.peers["hal"].use().items(), key=lambda pair: pair[1].busy_s)[0])
    assert served == ["ben", "ben", "anna", "anna"]  # forward and backward of the only micro-batch each


def test_a_tail_that_diverges_ends_its_unit_and_no_other() -> None:
    group = SplitGroup("lenet", {"anna": ("hal", 2), "ben": ("hal", 2)}, {"anna": 40, "ben": 40}, SGD)
    helper = group.peers["hal"]
    for units in group.peers.values():
        units.begin(0, [])

    def diverged() -> list[StageMessage]:
        raise DivergedError("the loss was not a finite number")

    helper._training["anna"].advance = diverged
    advance, given_up = helper.advance, []

    def noted() -> list[StageMessage]:
        try:
            return advance()  # type: ignore[no-any-return]
        except UnitDivergedError as error:
            given_up.append(error.owner)
            return []

    helper.advance = noted
    group.turn()
    assert given_up == ["anna"]
    assert helper._training["ben"].step == 5 and not helper.done
