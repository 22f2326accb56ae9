"""Plans where peers' classes overlap: no class goes to a peer without enough samples of it, and none gets lost."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.config import DataConfig, Job
from p2ptrain.core.plan import PeerSnapshot, Plan, check_plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import read_plan
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.planning.assignment import first_plan, next_plan, notes, recomputes
from p2ptrain.modes.tasks.planning.holdings import held_classes, lacking
from p2ptrain.modes.tasks.planning.mode_choice import mode_for

NAMES = ("cat", "dog", "frog", "horse", "ship")
CAT, DOG, FROG, HORSE, SHIP = range(5)


def name(number: int) -> PeerId:
    return PeerId(f"peer{number:012d}")


def peer(number: int, counts: list[int], **more: object) -> PeerSnapshot:
    return PeerSnapshot(name(number), 1e9, 0, tuple(counts), (), **more)  # type: ignore[arg-type]


def job(mode: str = "tasks", **tasks: object) -> Job:
    data = DataConfig(NAMES, (3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    return Job(mode=mode, data=data, tables=(TasksConfig(**tasks),))  # type: ignore[arg-type]


def classes_of(plan: Plan, number: int) -> set[int]:
    part = plan.part_of(name(number))
    return set(part.classes) if part else set()


# --- the cases that people meet ---------------------------------------------------------------------------------------


def test_two_laptops_one_of_which_has_cats_and_dogs_only() -> None:
    plan = first_plan(job(), [peer(0, [400] * 5), peer(1, [400, 400, 0, 0, 0])], name(0))
    assert classes_of(plan, 1) <= {CAT, DOG} and classes_of(plan, 1)
    assert classes_of(plan, 0) >= {FROG, HORSE, SHIP}
    assert (plan.body.targets, plan.body.combine, plan.body.fit_head) == ("all", "own", True)


def test_widths_follow_what_a_group_knows_not_how_few_samples_it_has() -> None:
    """Few samples would let the second one finish early: no reason to make its part the wider one."""
    plan = first_plan(job(), [peer(0, [400] * 5), peer(1, [40, 40, 0, 0, 0])], name(0))
    first, second = plan.part_of(name(0)), plan.part_of(name(1))
    assert first is not None and second is not None
    assert first.share >= 0.5 > second.share and first.share + second.share == pytest.approx(1, abs=1e-5)
    even = first_plan(job(), [peer(0, [400, 400, 400, 0, 0]), peer(1, [0, 0, 40, 40, 40])], name(0))
    assert even.parts[0].share == pytest.approx(even.parts[1].share, abs=1e-5)


def test_three_whose_classes_overlap() -> None:
    have = [[200, 200, 200, 0, 0], [0, 0, 200, 200, 200], [200, 0, 0, 0, 200]]
    plan = first_plan(job(), [peer(i, counts) for i, counts in enumerate(have)], name(0))
    for i, counts in enumerate(have):
        assert classes_of(plan, i) and all(counts[c] for c in classes_of(plan, i))
    assert not plan.body.disjoint and plan.body.fit_head


def test_one_sample_of_a_class_is_not_enough() -> None:
    plan = first_plan(job(), [peer(0, [400, 400, 0, 0, 1]), peer(1, [0, 0, 400, 400, 400])], name(0))
    assert SHIP in classes_of(plan, 1)
    few = first_plan(job(), [peer(0, [400, 400, 400, 0, 1]), peer(1, [0, 0, 400, 400, 400])], name(0))
    assert SHIP in classes_of(few, 1) and few.body.fit_head


def test_peers_that_hold_the_same_share_a_part_and_speed_parts_them_only_then() -> None:
    peers = [peer(0, [90, 90, 90, 0, 0]), peer(1, [90, 90, 90, 0, 0]), peer(2, [0, 0, 90, 90, 90])]
    plan = first_plan(job(num_groups=2), peers, name(0))
    assert sorted(part.trainers for part in plan.parts) == [(name(0), name(1)), (name(2),)]


def test_more_peers_with_one_class_than_classes_train_it_together() -> None:
    peers = [peer(0, [90] * 5), *(peer(i, [90, 0, 0, 0, 0]) for i in (1, 2, 3))]
    plan = first_plan(job(), peers, name(0))
    assert classes_of(plan, 1) == classes_of(plan, 2) == classes_of(plan, 3) == {CAT}
    lines = notes(job(), plan)
    assert sum("learns nothing from one class" in line for line in lines) == 3


def test_a_class_that_nobody_has_is_warned_of_by_name_and_waits() -> None:
    plan = first_plan(job(), [peer(0, [50, 50, 50, 0, 0]), peer(1, [0, 50, 50, 50, 0])], name(0))
    assert plan.parts[-1].classes == (SHIP,) and not plan.parts[-1].trainers
    (warning,) = (line for line in notes(job(), plan) if "NOBODY" in line)
    assert "ship" in warning and "bring a peer" in warning
    replicas = first_plan(job("replicas"), [peer(0, [50, 50, 50, 0, 0]), peer(1, [0, 50, 50, 50, 0])], name(0))
    assert any("NOBODY" in line for line in notes(job("replicas"), replicas)) and replicas.body.fit_head


def test_a_class_with_hardly_any_samples_is_warned_of_with_the_number() -> None:
    plan = first_plan(job(), [peer(0, [50, 50, 50, 50, 3]), peer(1, [50] * 4 + [2])], name(0))
    assert any("few samples" in line and "ship (5)" in line for line in notes(job(), plan))


def test_a_late_peer_with_a_class_that_others_have_helps_where_it_is_trained() -> None:
    peers = [peer(0, [90, 90, 90, 0, 0]), peer(1, [0, 0, 90, 90, 90])]
    plan = first_plan(job(), peers, name(0))
    after = next_plan(job(), plan, [*peers, peer(2, [0, 0, 0, 0, 90])], name(0))
    assert after is not None and SHIP in classes_of(after, 2)
    assert recomputes(job(), after, plan) and recomputes(job(), after, None)


def test_who_has_none_of_a_part_s_other_classes_does_not_take_it_over() -> None:
    """The only one with horses leaves: cats and dogs would make its part forget them."""
    peers = [peer(0, [90] * 5), peer(1, [90, 90, 0, 0, 0])]
    plan = first_plan(job(), peers, name(0))
    after = next_plan(job(), plan, peers[1:], name(1))
    assert after is not None
    assert [part.trainers for part in after.parts if HORSE in part.classes] == [()]
    assert classes_of(after, 1) == classes_of(plan, 1)


def test_a_late_peer_that_lacks_a_class_makes_the_group_fit_the_last_layer() -> None:
    peers = [peer(0, [90] * 5), peer(1, [90] * 5)]
    plan = first_plan(job(), peers, name(0))
    assert not plan.body.fit_head and plan.body.combine == "sum"
    after = next_plan(job(), plan, [*peers, peer(2, [90, 90, 90, 90, 0])], name(0))
    assert after is not None and after.body.fit_head
    assert recomputes(job(), after, plan) and recomputes(job(), after, None)
    never = first_plan(job(fit_head="never"), [*peers, peer(2, [90, 0, 0, 0, 0])], name(0))
    assert not never.body.fit_head


# --- mode auto --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "groups", "mode", "why"),
    [
        ([[9] * 5, [9] * 5], 0, "tasks", "every device has all classes"),
        ([[9] * 5, [9, 9, 0, 0, 0]], 8, "tasks", "devices share some classes"),
        ([[9, 9, 0, 0, 0], [0, 0, 9, 9, 9]], 8, "tasks", "no two devices share a class"),
        ([[9] * 5, [9] * 5], 1, "replicas", "can't be divided among classes, or is too narrow"),
        ([[9] * 5, []], 8, "replicas", "only one device has samples"),
    ],
)
def test_the_group_chooses(counts: list[list[int]], groups: int, mode: str, why: str) -> None:
    peers = [peer(i, each, max_groups=groups) for i, each in enumerate(counts)]
    found, reason = mode_for(job("auto"), peers)
    assert found == mode and why in reason
    plan = first_plan(job("auto"), peers, name(0))
    check_plan(plan)
    assert plan.mode == mode and recomputes(job("auto"), plan, None)
    assert recomputes(job("auto"), dataclasses.replace(plan, epoch=2, parent="0" * 64), None)
    other = dataclasses.replace(plan, mode="pipeline")
    assert not recomputes(job("auto"), other, None)


def test_a_narrow_model_is_divided_into_as_many_as_it_can_be() -> None:
    peers = [peer(i, [9 if c == i else 0 for c in range(5)], max_groups=3) for i in range(5)]
    plan = first_plan(job("auto"), peers, name(0))
    assert len(plan.parts) == 3 and not plan.body.disjoint and plan.body.fit_head
    assert set(plan.trainers()) == {p.peer for p in peers}
    assert sorted(c for part in plan.parts for c in part.classes) == list(range(5))


# --- whatever they have -----------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0, 0, 1, 40, 100]), min_size=5, max_size=5), min_size=1, max_size=7),
    st.sampled_from([0, 0, 1, 2, 3, 5]),
)
def test_classes_go_where_their_samples_are(counts: list[list[int]], num_groups: int) -> None:
    work, peers = job(num_groups=num_groups), [peer(i, each) for i, each in enumerate(counts)]
    if not any(map(any, counts)):
        return
    plan = first_plan(work, peers, name(0))
    check_plan(plan)
    assert read_plan(plan.to_json()) == plan and recomputes(work, plan, None)
    assert next_plan(work, plan, peers, name(0)) is None
    held = held_classes(plan.peers, 5)
    assert plan.body.fit_head == lacking(plan.peers, 5)
    known = {c for each in held.values() for c in each}
    for part in plan.parts:
        if not part.trainers:
            continue
        for c in part.classes:
            if c in known:  # somebody in the group has enough of it
                assert any(c in held[trainer] for trainer in part.trainers)
    if num_groups == 0:  # nobody was made to share a part: then each has enough of all its classes
        alone = [part for part in plan.parts if len(part.trainers) == 1]
        assert all(held[part.trainers[0]].issuperset(set(part.classes) & known) for part in alone)
