"""What a split plan costs: by hand, played through, and that the closed figures agree with the played ones."""

from __future__ import annotations

import dataclasses
import random
import statistics

import pytest
from split_rooms import some_task, with_device

from p2ptrain.errors import LocalError, RemoteError, UserError
from p2ptrain.planning.devices.blocks import BlockProfile, BlockTimes, ModelProfile
from p2ptrain.planning.pipeline.fleet import MESSAGE_FLOPS
from p2ptrain.planning.pipeline.task import PairRate, PipelinePeer
from p2ptrain.planning.split.cost import cost_of, plan_of, played_of, with_seconds
from p2ptrain.planning.split.group import Choice
from p2ptrain.planning.split.options import Pairs
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.end import averager_of, end_s, exchange_s, held_by
from p2ptrain.planning.split.rounds.handing import (
    BLOB_BYTE_FLOPS,
    MADE_FLOPS,
    NODE_FLOPS_PER_S,
    PASS_FLOPS,
    ROUND_FLOPS,
    TOLD_S,
    left,
    spent_s,
)
from p2ptrain.planning.split.rounds.simulation import Played, play
from p2ptrain.planning.split.search import Search
from p2ptrain.planning.split.steps import Steps, batch_s, steps_of
from p2ptrain.planning.split.task import SplitPeer, SplitTask
from p2ptrain.planning.split.units import Labels, SplitPlan, Unit, check_split_plan


def measured(seconds: float, num_blocks: int = 3) -> BlockTimes:
    """So many for each block's forward pass of 4 samples, twice as many backward; no FLOP/s, so that nothing else is
    counted."""
    return BlockTimes((4,), ((seconds,) * num_blocks,), ((2 * seconds,) * num_blocks,))


def by_hand(**changes: object) -> SplitTask:
    """Three blocks of 1 s (owner) and 0.1 s (helper) forward for 4 samples; 100 bytes a sample over every cut."""
    model = ModelProfile("three", 10, (BlockProfile("b", 10, 20, 1000, 100, 100, True),) * 3)
    owner = SplitPeer(PipelinePeer("owner", 0.0, 1e6, 1000.0, measured(1.0)), 8)
    helper = SplitPeer(PipelinePeer("strong", 0.0, 1e6, 1000.0, measured(0.1)))
    task = SplitTask(model, (owner, helper), 4, 2, latency_s=0.01, codings=("none",))
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


def unit(**changes: object) -> Unit:
    one = Unit("owner", "strong", 1, 1000.0, 500.0, 1, 1, "none", "none", 0.0, 0.0, 0.0)
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


def plan_with(*units: Unit, standby: tuple[str, ...] = ()) -> SplitPlan:
    return SplitPlan("three", 3, 4, "replica", "switched", units, standby, 0.0, 0.0)


def test_the_papers_order_is_the_sum_of_its_steps() -> None:
    """t_f + u + s + d + t_b, with both ways' latency; two batches a round."""
    room = Room(by_hand())
    plan = with_seconds(room, plan_with(unit()))
    one = 1.0 + 0.4 + 2 * (0.1 + 0.2) + 0.8 + 2.0 + 2 * 0.01
    assert plan.units[0].batch_s == pytest.approx(one, rel=1e-5)
    assert plan.units[0].round_s == pytest.approx(2 * one, rel=1e-5)
    assert plan.units[0].helper_s == pytest.approx(2 * 0.6)
    cost = cost_of(room, plan)
    assert cost.closed_s == pytest.approx(2 * one) and cost.load_s == {"strong": pytest.approx(1.2)}


def test_two_micro_batches_in_flight_overlap() -> None:
    """The owner goes on while its first micro-batch is away: a batch is its own work and what the first's way takes
    beyond the second's forward pass."""
    room = Room(by_hand())
    plan = with_seconds(room, plan_with(unit(micro_batches=2, in_flight=2)))
    away = 0.2 + 0.3 + 0.4 + 0.02
    assert plan.units[0].batch_s == pytest.approx(2 * (0.5 + 1.0) + away - 0.5, rel=1e-5)


def test_alone_is_the_owner_s_own_work_and_the_optimizer_s_step() -> None:
    slow = BlockTimes((4,), ((1.0,) * 3,), ((2.0,) * 3,), update_s_per_byte=1e-3)
    task = by_hand()
    owner = dataclasses.replace(task.peers[0], device=dataclasses.replace(task.peers[0].device, times=slow))
    room = Room(dataclasses.replace(task, peers=(owner, task.peers[1])))
    plan = plan_of(room, {"owner": None})
    assert plan.units[0].batch_s == pytest.approx(9 + 3 * 1000 * 1e-3) and plan.standby == ("strong",)
    assert plan.exchange_s == pytest.approx(3000 / 1000 + 0.02 + TOLD_S), "what comes of it goes to a second peer"
    kept_once = Room(dataclasses.replace(room.task, keeps_copies=False))
    assert with_seconds(kept_once, plan).exchange_s == pytest.approx(TOLD_S)


def test_only_what_is_not_in_one_place_is_exchanged() -> None:
    task = by_hand()
    other = with_device(task.peers[0], name="owner2", link_bytes_per_s=500.0)  # type: ignore[arg-type]
    room = Room(dataclasses.replace(task, peers=(*task.peers, other)))
    latency = 2 * 0.01
    # Both helped by one peer, cuts 1 and 2: block 0 is at both owners, block 1 at one of them and at the helper.
    assert exchange_s(room, [("owner", "strong", 1), ("owner2", "strong", 2)]) == pytest.approx(
        2 * 2000 / 500 + latency
    )
    assert exchange_s(room, [("owner", "strong", 2), ("owner2", "strong", 1)]) == pytest.approx(
        max(2 * 2000 / 1000, 2 * 1000 / 500) + latency
    )
    # One alone: all of its blocks are elsewhere too.
    assert exchange_s(room, [("owner", None, 3), ("owner2", "strong", 1)]) == pytest.approx(2 * 3000 / 1000 + latency)
    on_one_medium = dataclasses.replace(room.task, medium="shared", medium_bytes_per_s=1000.0)
    found = exchange_s(Room(on_one_medium), [("owner", None, 3), ("owner2", "strong", 1)])
    assert found == pytest.approx(2 * (3000 + 1000 + 2000) / 1000)


def three_owners() -> Room:
    task = by_hand()
    owner, helper = task.peers
    others = tuple(with_device(owner, name=f"owner{n}", link_bytes_per_s=500.0 * n) for n in (2, 3))
    return Room(dataclasses.replace(task, peers=(owner, helper, *others)))


def test_the_averager_takes_in_what_all_others_send_and_hands_it_on() -> None:
    """Of three that train alone it is the one with the fastest link, of a helper and its owners the helper."""
    room, names = three_owners(), ("owner", "owner2", "owner3")
    ends = dict.fromkeys(names, 5.0)
    alone = [(name, None, 3) for name in names]
    assert averager_of(room, held_by(room, alone)) == "owner3"
    other = Room(dataclasses.replace(room.task, failed=frozenset({"owner3"})))
    assert averager_of(other, held_by(other, alone)) == "owner2"
    assert exchange_s(room, alone) == pytest.approx(2 * 3000 / 1000 + 0.02)
    assert end_s(room, alone, ends) == pytest.approx(2 * (3000 / 1500 + 0.02) + 6000 / 1500 + 0.02 + TOLD_S)
    helped = [(name, "strong", 1) for name in names]
    assert averager_of(room, held_by(room, helped)) == "strong"
    end = 3 * 1.02 + (3 * 1000 + 2000) / 1000 + 0.02 + TOLD_S  # blocks 1 and 2, which only it trains, to one more
    assert end_s(room, helped, ends) == pytest.approx(end)
    plan = with_seconds(room, plan_with(*(unit(owner=name) for name in names)))
    played_s = end_s(room, helped, {each.owner: each.round_s for each in plan.units})
    assert plan.exchange_s == pytest.approx(played_s, rel=1e-5) and played_s < end
    once = Room(dataclasses.replace(room.task, keeps_copies=False))
    assert end_s(once, helped, ends) == pytest.approx(end - 2)


def test_updates_of_those_who_are_through_early_are_there_by_then() -> None:
    room = three_owners()
    helped = [(name, "strong", 1) for name in ("owner", "owner2", "owner3")]
    found = end_s(room, helped, {"owner": 1.0, "owner2": 2.0, "owner3": 5.0})
    assert found == pytest.approx(1.02 + 5.02 + TOLD_S), "one on its way, then all that is handed out"


def test_the_end_of_a_round_takes_a_weak_device_longer() -> None:
    """Its update is made, handed over, fetched again and kept, and the next round begun, by what its node leaves."""
    plain, names = three_owners(), ("owner", "owner2", "owner3")
    peers = tuple(with_device(p, flops_per_s=1e9) if p.name == "owner" else p for p in plain.task.peers)
    room = Room(dataclasses.replace(plain.task, peers=peers))
    helped, ends = [(name, "strong", 1) for name in names], {"owner": 9.0, "owner2": 1.0, "owner3": 1.0}
    once = MESSAGE_FLOPS  # of a blob of one part, beside what the link takes
    flops = MADE_FLOPS + BLOB_BYTE_FLOPS * 1000 + once + ROUND_FLOPS
    assert end_s(room, helped, ends) - end_s(plain, helped, ends) == pytest.approx(flops / 7e8)


def test_a_device_s_node_leaves_a_part_of_it() -> None:
    assert left(1e9) == 7e8 and left(1e8) == pytest.approx(2e7) and spent_s(1e9, 7e7) == pytest.approx(0.1)
    assert spent_s(0.0, 1e9) == 0.0


def test_memory_of_both_sides_by_hand() -> None:
    room = Room(by_hand())
    cost = cost_of(room, plan_with(unit(micro_batches=2, in_flight=2)))
    # Weights, gradients, momentum and a snapshot's copy: 3 a parameter byte here; 2 samples a micro-batch.
    assert cost.memory_bytes["owner"] == 3 * 1000 + 2 * (2 * (10 + 100) + (100 + 10))
    assert cost.memory_bytes["strong"] == 3 * 2000 + 2 * (2 * 100 + (100 + 100)) + 2 * 2 * 100


def test_where_labels_stay_a_micro_batch_goes_there_and_back_twice() -> None:
    """The owner has block 0 and block 2, the helper the one between."""
    room = Room(by_hand(labels="stay"))
    plan = with_seconds(room, dataclasses.replace(plan_with(unit()), kept_from=2))
    check_split_plan(plan)
    one = 1.0 + 2 * 0.4 + (0.1 + 0.2) + 2 * 0.8 + 2.0 + (1.0 + 2.0) + 4 * 0.01
    assert plan.units[0].batch_s == pytest.approx(one, rel=1e-5) and plan.units[0].helper_s == pytest.approx(2 * 0.3)
    two = dataclasses.replace(plan, units=(unit(micro_batches=2, in_flight=2),))
    memory = cost_of(room, two).memory_bytes
    assert memory["owner"] == 3 * 2000 + 2 * (2 * (10 + 100) + (100 + 10)) + 2 * ((100 + 100) + (100 + 100))
    assert memory["strong"] == 3 * 1000 + 2 * (2 * 100 + (100 + 100)) + 2 * 2 * 100
    other = with_device(room.task.peers[0], name="owner2")  # type: ignore[arg-type]
    both = Room(dataclasses.replace(room.task, peers=(*room.task.peers, other)))
    placed = [("owner", "strong", 1), ("owner2", "strong", 1)]
    assert exchange_s(both, placed) == pytest.approx(2 * 2000 / 1000 + 2 * 0.01), "the owners' blocks 0 and 2"


def test_owners_keep_their_labels_only_where_something_is_left_for_a_helper() -> None:
    plan = dataclasses.replace(plan_with(unit(cut=2)), kept_from=2)
    for odd in (plan, dataclasses.replace(plan_with(unit()), kept_from=3)):
        with pytest.raises(RemoteError):
            check_split_plan(odd)
    with pytest.raises(UserError, match="labels stay"):
        Room(by_hand(labels="stay", tails="shared"))


@pytest.mark.parametrize("seed", range(30))
def test_closed_figures_of_a_unit_with_a_helper_of_its_own_are_those_played(seed: int) -> None:
    generator = random.Random(seed)
    task = some_task(generator, 1, 1, generator.randint(3, 10))
    room = Room(dataclasses.replace(task, labels="stay" if seed % 3 == 0 else "send"))
    pairs = Pairs(room)
    options = pairs.of("o00", "h00")
    for index in generator.sample(range(len(options)), min(12, len(options))):
        share = generator.uniform(0.05, 1)
        plan = plan_of(room, {"o00": Choice(options, index, share)})
        cost = cost_of(room, plan)
        closed = float(options.round_s(share)[index])
        assert cost.closed_s == pytest.approx(max(closed, cost.load_s["h00"]), rel=1e-5)
        assert cost.train_s == pytest.approx(cost.closed_s, rel=1e-6)


def test_plans_are_played_a_few_per_cent_longer_than_the_closed_figures() -> None:
    """By how much units wait for each other in the helper's queue is what the closed figures do not know."""
    ratios = []
    for seed in range(12):
        generator = random.Random(100 + seed)
        room = Room(some_task(generator, generator.randint(2, 4), 1, generator.randint(3, 10)))
        cost = cost_of(room, planned(Search(room)))
        assert cost.closed_s <= cost.train_s
        ratios.append(cost.train_s / cost.closed_s)
    assert statistics.median(ratios) <= 1.03 and max(ratios) <= 1.2


def played(owner: str, steps: Steps, micro_batches: int = 1, batches: int = 1, helper: str | None = "h") -> Played:
    return Played(owner, helper, steps, batches, micro_batches, micro_batches)


def test_a_tail_makes_its_optimizer_step_when_its_owner_knows_the_norm() -> None:
    """After the owner's last backward pass, and the way; what comes of the next batch meanwhile waits."""
    steps = Steps(1.0, 2.0, 0.0, tail_s=1.0, tail_update_s=5.0, latency_s=0.1)
    found = play([played("a", steps, batches=2)], with_spans=True)
    tails = [(span.start_s, span.end_s) for span in found.spans if span.work == "tail"]
    assert tails == [pytest.approx((1.1, 2.1)), pytest.approx((9.3, 10.3))], "4.2 + 0.1 + 5.0"
    assert found.ends_s["a"] == pytest.approx(12.4) and found.round_s == pytest.approx(12.5 + 5.0)
    assert found.busy_s["h"] == pytest.approx(2 * (1.0 + 5.0))


@pytest.mark.parametrize(("labels", "num"), [("send", 2), ("stay", 3)])
def test_the_norm_of_a_batch_takes_messages_of_both_peers(labels: Labels, num: int) -> None:
    """The tail's part to the owner, the whole back; with labels that stay the last block's part goes first."""
    task = by_hand(labels=labels)
    speeds = {"owner": 1e9, "strong": 1e10}
    peers = tuple(with_device(peer, flops_per_s=speeds[peer.name]) for peer in task.peers)
    found = steps_of(
        Room(dataclasses.replace(task, peers=peers)), "owner", "strong", 1, 2.0, ("none", "none"), (1e3, 1e3)
    )
    plain = steps_of(Room(task), "owner", "strong", 1, 2.0, ("none", "none"), (1e3, 1e3))
    one = MESSAGE_FLOPS + PASS_FLOPS
    assert found.update_s - plain.update_s == pytest.approx(num * one / (1e9 - NODE_FLOPS_PER_S))
    assert found.tail_update_s - plain.tail_update_s == pytest.approx(num * one / (1e10 - NODE_FLOPS_PER_S))


def test_of_waiting_work_that_with_the_longest_way_back_goes_first() -> None:
    """Both arrive while the helper is busy; the later one has the longer backward pass."""
    busy = played("busy", Steps(0.0, 0.1, 0.0, tail_s=5.0))
    quick = played("quick", Steps(1.0, 0.1, 0.0, tail_s=1.0))
    slow = played("slow", Steps(2.0, 9.0, 0.0, tail_s=1.0))
    found = play([busy, quick, slow], with_spans=True)
    tails = [span.owner for span in sorted(found.spans, key=lambda span: span.start_s) if span.work == "tail"]
    assert tails == ["busy", "slow", "quick"]
    assert found.ends_s == {"busy": pytest.approx(5.1), "slow": 15.0, "quick": pytest.approx(7.1)}
    assert found.busy_s == {"h": 7.0}


def test_a_helper_s_own_unit_comes_last_a_micro_batch_at_a_time() -> None:
    own = Played("h", None, Steps(0.5, 0.5, 0.25), 1, 4, 1)
    guest = played("guest", Steps(0.25, 0.25, 0.0, tail_s=1.0), micro_batches=2)
    found = play([own, guest], with_spans=True)
    order = [span.owner for span in sorted(found.spans, key=lambda span: span.start_s) if span.peer == "h"]
    assert order == ["h", "guest", "guest", "h", "h", "h"]
    assert found.ends_s["h"] == 6.25 and found.round_s == 6.25


def test_a_round_has_whole_batches_of_micro_batches_of_one_size() -> None:
    """Like those that are trained: 11 samples in batches of 4, or of 3 in micro-batches of 1."""
    owner = dataclasses.replace(by_hand().peers[0], samples=11)
    task = by_hand(peers=(owner, by_hand().peers[1]))
    assert (task.micro_batch_of(owner, 2), task.batches_of(owner, 2)) == (2.0, 2)
    assert (task.micro_batch_of(owner, 3), task.batches_of(owner, 3)) == (1.0, 3)
    few = dataclasses.replace(owner, samples=3)
    assert (task.micro_batch_of(few, 1), task.batches_of(few, 1)) == (3.0, 1)
    twice = dataclasses.replace(task, passes=2.0)
    assert twice.batches_of(owner, 2) == 5
    shared = dataclasses.replace(task, tails="shared", peers=(owner, dataclasses.replace(task.peers[1], samples=33)))
    assert (shared.batch_of(owner), shared.batches_of(owner, 1)) == (1.0, 11)


def test_a_long_round_is_played_in_part() -> None:
    steps = Steps(0.11, 0.23, 0.0, up_s=0.057, tail_s=0.103, down_s=0.051)
    short, long = (play([played("a", steps, 8, batches)]).round_s for batches in (100, 100_000))
    assert long == pytest.approx(1000 * short, rel=1e-3)


def test_a_window_of_micro_batches_in_flight_bounds_what_is_under_way() -> None:
    steps = Steps(0.1, 0.1, 0.0, up_s=1.0, tail_s=1.0, down_s=1.0)
    took = [batch_s(steps, 8, ahead) for ahead in (1, 2, 4, 8)]
    assert took == sorted(took, reverse=True) and took[0] == pytest.approx(8 * 3.2)
    for ahead, closed in zip((1, 2, 4, 8), took, strict=True):
        one = play([Played("a", "h", steps, 1, 8, ahead)])
        assert closed <= one.round_s * (1 + 1e-9) and one.round_s <= 1.1 * closed


def test_a_slow_pair_and_a_slow_way_count() -> None:
    task = by_hand(pair_rates=(PairRate("owner", "strong", 100.0),))
    assert Room(task).rate("owner", "strong") == 100.0
    asymmetric = dataclasses.replace(task.peers[0], up_bytes_per_s=50.0)
    room = Room(dataclasses.replace(task, peers=(asymmetric, task.peers[1]), pair_rates=()))
    assert room.rate("owner", "strong") == 50.0 and room.rate("strong", "owner") == 1000.0
    assert room.granted("owner", "strong", 0.5) == (50.0, 500.0)


def test_coding_is_chosen_by_what_it_costs() -> None:
    """On a slow link int8; on a fast one with slow coding none."""
    slow = some_task(random.Random(1), 1, 1, 6)
    assert planned(Search(Room(slow))).units[0].activations == "int8"
    dear = {"fp16": (1e-3, 1e-3), "int8": (1e-3, 1e-3)}
    fast = tuple(dataclasses.replace(with_device(peer, link_bytes_per_s=1e11), codings=dear) for peer in slow.peers)
    assert planned(Search(Room(dataclasses.replace(slow, peers=fast)))).units[0].activations == "none"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peers": ()}, "no peers to plan for"),
        ({"peers": by_hand().peers[1:]}, "nobody has samples.*--data"),
        ({"model": ModelProfile("one", 10, by_hand().model.blocks[:1])}, "no legal cut"),
        ({"batch_size": 0}, "a batch of 0 samples"),
        ({"micro_batches": 0}, "0 micro-batches"),
        ({"passes": 0.0}, "0 passes"),
        ({"codings": ()}, "codings none given"),
        ({"medium": "shared"}, "takes a rate"),
        ({"latency_s": -1.0}, "latency"),
        ({"peers": (with_device(by_hand().peers[0], memory_bytes=-1.0),)}, "memory_bytes is -1"),
        ({"peers": (with_device(by_hand().peers[0], link_bytes_per_s=float("nan")),)}, "link_bytes_per_s is nan"),
        ({"peers": (with_device(by_hand().peers[0], times=measured(1.0, 2)),)}, "not one for each"),  # type: ignore[arg-type]
        ({"peers": (dataclasses.replace(by_hand().peers[0], up_bytes_per_s=-1.0),)}, "up link of -1"),
        ({"peers": (dataclasses.replace(by_hand().peers[0], codings={"int8": (-1.0, 0.0)}),)}, "coding int8 takes"),
        ({"pair_rates": (PairRate("owner", "nobody", 1.0),)}, "no peer is named nobody"),
    ],
)
def test_nonsense_is_refused_with_the_next_step(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Room(by_hand(**changes))


def test_batch_normalisation_takes_two_samples_of_every_micro_batch() -> None:
    task = by_hand()
    blocks = tuple(dataclasses.replace(block, least_samples=2) for block in task.model.blocks)
    model = ModelProfile("bn", 10, blocks)
    room = Room(dataclasses.replace(task, model=model, micro_batches=4))
    assert room.micro_batch_choices("owner") == (2, 1)
    one = dataclasses.replace(task.peers[0], samples=1)
    with pytest.raises(UserError, match="batch normalisation"):
        Room(dataclasses.replace(task, model=model, peers=(one, task.peers[1])))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (plan_with(unit(owner="b"), unit(owner="a")), "out of order"),
        (plan_with(unit(in_flight=2)), "more micro-batches in flight"),
        (plan_with(unit(helper=None)), "trains alone, but not all blocks"),
        (plan_with(unit(helper=None, cut=3)), "but alone"),
        (plan_with(unit(cut=3)), "a helper without a block"),
        (plan_with(unit(up_bytes_per_s=0.0)), "no share of the link"),
        (plan_with(unit(helper="owner")), "helped, and helps"),
        (plan_with(unit(), standby=("b", "a")), "stand by are out of order"),
        (plan_with(unit(), standby=("strong",)), "works and stands by"),
        (dataclasses.replace(plan_with(unit()), exchange_s=1.0), "longer than its round"),
    ],
)
def test_a_plan_that_does_not_hold_together_is_refused(plan: SplitPlan, said: str) -> None:
    with pytest.raises(RemoteError, match=said):
        check_split_plan(plan)
    check_split_plan(plan_with(unit()))


def test_a_plan_of_another_room_is_our_own_mistake() -> None:
    room = Room(by_hand())
    for wrong in (unit(owner="nobody"), unit(helper="nobody")):
        with pytest.raises(LocalError):
            played_of(room, plan_with(wrong))
