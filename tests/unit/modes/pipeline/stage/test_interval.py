"""How often a stage is saved, where the job leaves that open."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.pipeline.stage.interval import (
    BETWEEN_LOSSES_S,
    LEAST_BYTES_PER_S,
    LEAST_S,
    LINK_SHARE,
    MOST_SHARE,
    SOON_SHARE,
    SPREAD,
    Interval,
)

OWN, OTHER = "a", "b"
PLAN: Any = SimpleNamespace(
    body=PipelineBody("c" * 64, None, (), (), 0, 1000),  # type: ignore[arg-type]
    trainers=lambda: {OWN: 0, OTHER: 1},
)


def group(asked: int = 1, link: float = 0.0, flops_per_s: float = 0.0) -> Any:
    own = SimpleNamespace(peer=OWN, flops_per_s=flops_per_s, links=(), saves_every=0)
    links = (SimpleNamespace(peer=OWN, bytes_per_s=link),) if link else ()
    other = SimpleNamespace(peer=OTHER, links=links, saves_every=asked)
    return SimpleNamespace(own_id=OWN, own=own, record={OWN: own, OTHER: other}.get, records=lambda: [own, other])


def interval(cost_s: float = 0.1, num_bytes: int = 10**6, snapshot_steps: int = 0, **others: Any) -> Interval:
    found = Interval(group(**others), PipelineConfig(snapshot_steps=snapshot_steps), 2)
    found.taken(cost_s, num_bytes)
    return found


def test_a_link_that_nobody_can_mean_is_none_that_is_measured() -> None:
    odd, none = interval(link=5e-324), interval()
    assert odd.seconds(0.0) == none.seconds(0.0)
    assert odd.soon_bytes_per_s() == none.soon_bytes_per_s() == 0.0


def test_the_least_is_lost_at_the_root_of_twice_the_cost_times_the_time_between_losses() -> None:
    found = interval(0.5)
    assert found.seconds(0.0) == pytest.approx(math.sqrt(2 * 0.5 * BETWEEN_LOSSES_S)) == 60.0
    found.lost()
    assert found.seconds(0.0) == pytest.approx(60 / math.sqrt(2)), "losses come oftener than was thought"
    assert found.seconds(7 * BETWEEN_LOSSES_S) == pytest.approx(120.0), "and in long peace they do not"


def test_the_first_snapshot_comes_soon_and_tells_what_one_costs() -> None:
    found = Interval(group(), PipelineConfig(), 2)
    assert found.look(1.0, 0.0) and found.wanted == 16 and LEAST_S == 10.0
    found.taken(2.0, 10**6)
    assert found.look(1.0, 0.0) and found.wanted == 128


def test_cost_links_and_the_node_bound_it() -> None:
    assert interval(0.0).seconds(0.0) == LEAST_S
    assert interval(1000.0).seconds(0.0) == pytest.approx(1000 / MOST_SHARE)
    assert interval(0.001, 10**8, link=1e6).seconds(0.0) == pytest.approx(2 * 10**8 / 0.25e6)
    assert interval(0.0, 10**7, flops_per_s=1e9).seconds(0.0) == pytest.approx(math.sqrt(2 * 5 * BETWEEN_LOSSES_S))


def test_it_is_a_power_of_two_and_changes_only_for_a_reason() -> None:
    found = interval(0.5)  # 60 s
    assert not found.look(0.0, 0.0) and found.steps(PLAN) == 1000, "after a round, as long as nothing is known"
    assert found.look(1.0, 0.0) and found.wanted == 64 == found.steps(PLAN)
    assert not found.look(0.9, 0.0), "66.7 batches"
    assert found.look(0.7, 0.0) and found.wanted == 128, "85.7"
    assert not found.look(1.0, 0.0), "60"
    assert found.look(2.0, 0.0) and found.wanted == 32


def test_all_take_the_longest_that_one_of_them_asks_for_and_never_longer_than_a_round() -> None:
    found = interval(0.5, asked=256)
    found.look(1.0, 0.0)
    assert found.steps(PLAN) == 256
    assert interval(asked=0).steps(PLAN) == 1000
    long = interval(0.5, asked=4096)
    long.look(1.0, 0.0)
    assert long.steps(PLAN) == 1000 and long.steps(None) == 0


def test_copies_take_a_share_of_the_link_and_are_here_long_before_the_next() -> None:
    found = interval(0.5, link=8e6)
    found.look(1.0, 0.0)
    found._group.record(OTHER).saves_every = 64
    assert found.bytes_per_s(10**6, 1.0, PLAN) == 8e6 * LINK_SHARE / 2
    assert found.bytes_per_s(10**8, 1.0, PLAN) == 10**8 / (SPREAD * 64)
    assert interval(link=0.0).bytes_per_s(10, 1.0, PLAN) == LEAST_BYTES_PER_S


def test_what_the_job_says_holds() -> None:
    found = interval(0.5, snapshot_steps=7)
    assert not found.look(1.0, 0.0) and found.wanted == 7 == found.steps(PLAN)


def test_what_a_recovery_brought_together_is_copied_sooner_and_leaves_the_first_batch_a_part_of_the_link() -> None:
    found = interval(0.5, link=1e7)
    assert found.soon_bytes_per_s() == SOON_SHARE * 1e7 / 2 > LINK_SHARE * 1e7 / 2
    assert 2 * found.soon_bytes_per_s() < 1e7, "both copies together"
    assert interval(0.5, link=1e4).soon_bytes_per_s() == LEAST_BYTES_PER_S
    assert interval(0.5).soon_bytes_per_s() == 0.0, "as fast as it goes"
