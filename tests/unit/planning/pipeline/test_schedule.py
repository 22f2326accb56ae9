"""The 1F1B schedule played through, and how far the formulas for its time are from it."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import LocalError
from p2ptrain.planning.pipeline.schedule import (
    Span,
    Steps,
    classic_warm_up,
    deepest_warm_up,
    dominant_step_s,
    play,
    round_bound_s,
    round_s,
    stage_order,
)

seconds = st.integers(0, 16).map(lambda n: n / 8)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Steps, tuple[int, ...]]:
    """Steps of one batch or several, and warm-up depths that don't rise, at most a micro-batch more than a batch."""
    num_stages, batches = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3]))

    def each(number: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(seconds, min_size=number, max_size=number)))

    num_micro_batches = draw(st.integers(1, 7))
    steps = Steps(
        num_micro_batches,
        each(num_stages),
        each(num_stages),
        each(num_stages),
        each(num_stages - 1),
        each(num_stages - 1),
        draw(seconds),
        batches,
    )
    deepest = 7 if batches == 1 else num_micro_batches + 1
    depths = sorted(draw(st.lists(st.integers(1, deepest), min_size=num_stages, max_size=num_stages)), reverse=True)
    return steps, tuple(depths)


def even(num_stages: int, num_micro_batches: int, link_s: float = 0.0) -> Steps:
    ones, links = (1.0,) * num_stages, (link_s,) * (num_stages - 1)
    return Steps(num_micro_batches, ones, (2.0,) * num_stages, (0.0,) * num_stages, links, links)


def test_the_order_of_a_stage_is_warm_up_then_one_and_one_then_the_rest() -> None:
    order = "".join(f"{work[0].upper()}{n}" for work, n in stage_order(2, 4))
    assert order == "F0F1B0F2B1F3B2B3"
    assert "".join(work[0] for work, _ in stage_order(9, 2)) == "ffbb"


def test_even_stages_without_links_take_what_the_textbook_says() -> None:
    for num_stages, num_micro_batches in itertools.product((1, 2, 4), (1, 4, 8)):
        steps = even(num_stages, num_micro_batches)
        depths = classic_warm_up(num_stages, num_micro_batches)
        assert round_s(steps, depths) == 3.0 * (num_micro_batches + num_stages - 1)


def test_batches_without_a_flush_fill_and_empty_the_pipeline_once() -> None:
    for num_stages, num_micro_batches, batches in itertools.product((1, 2, 4), (4, 8), (1, 3)):
        steps = dataclasses.replace(even(num_stages, num_micro_batches), batches=batches)
        depths = classic_warm_up(num_stages, num_micro_batches)
        assert round_s(steps, depths) == 3.0 * (num_micro_batches * batches + num_stages - 1)


def test_a_stage_makes_its_step_when_its_own_batch_is_over() -> None:
    steps = Steps(2, (1.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.0,), (0.0,), batches=2)
    spans = [(s.work, s.micro_batch, s.start_s) for s in play(steps, (3, 1)).spans if s.stage == 0]
    assert [(work, number) for work, number, _ in spans] == [
        *(("forward", n) for n in (0, 1, 2)),
        ("backward", 0),
        ("forward", 3),
        ("backward", 1),
        ("update", 1),
        ("backward", 2),
        ("backward", 3),
        ("update", 3),
    ]
    assert round_s(steps, (3, 1)) == play(steps, (3, 1)).round_s == spans[-1][2] + 0.5


def test_deep_warm_up_hides_links_that_the_classic_one_waits_for() -> None:
    steps = even(4, 16, link_s=1.0)
    deep, classic = (round_s(steps, depths(4, 16)) for depths in (deepest_warm_up, classic_warm_up))
    assert deep < 0.8 * classic
    assert deepest_warm_up(4, 16) == (7, 5, 3, 1) and classic_warm_up(4, 2) == (2, 2, 2, 1)


@settings(deadline=None)
@given(pipelines())
def test_a_timeline_does_all_the_work_in_order_and_one_thing_at_a_time(case: tuple[Steps, tuple[int, ...]]) -> None:
    steps, depths = case
    timeline = play(steps, depths)
    starts: dict[tuple[str, int, int], Span] = {(s.work, s.stage, s.micro_batch): s for s in timeline.spans}
    for stage in range(steps.num_stages):
        spans = [span for span in timeline.spans if span.stage == stage and span.work != "update"]
        assert sorted((s.work, s.micro_batch) for s in spans) == sorted(stage_order(1, steps.num_in_a_row))
        every = sorted((s for s in timeline.spans if s.stage == stage), key=lambda s: (s.end_s, s.start_s))
        assert all(one.end_s <= two.start_s for one, two in itertools.pairwise(every))
        assert sum(span.work == "update" for span in every) == (steps.batches if steps.update_s[stage] else 0)
        under_way = 0
        for work, _ in stage_order(depths[stage], steps.num_in_a_row):
            under_way += 1 if work == "forward" else -1
            assert 0 <= under_way <= depths[stage]
        assert 0 <= timeline.busy_share(stage) <= 1 + 1e-9
    for (work, stage, micro_batch), span in starts.items():
        if work == "forward" and stage:
            before = starts["forward", stage - 1, micro_batch]
            assert span.start_s >= before.end_s + steps.link_forward_s[stage - 1] + steps.latency_s - 1e-9
        if work == "backward" and stage + 1 < steps.num_stages:
            after = starts["backward", stage + 1, micro_batch]
            assert span.start_s >= after.end_s + steps.link_backward_s[stage] + steps.latency_s - 1e-9
    assert timeline.round_s == max((span.end_s for span in timeline.spans), default=0.0) == round_s(steps, depths)


@settings(max_examples=300, deadline=None)
@given(pipelines())
def test_the_bound_never_exceeds_the_schedule(case: tuple[Steps, tuple[int, ...]]) -> None:
    steps, depths = case
    assert round_bound_s(steps, depths) <= round_s(steps, depths) + 1e-9


@settings(deadline=None)
@given(pipelines(), st.data())
def test_a_slower_step_never_makes_the_round_faster(case: tuple[Steps, tuple[int, ...]], data: st.DataObject) -> None:
    steps, depths = case
    key = data.draw(st.sampled_from(["forward_s", "backward_s", "update_s", "link_forward_s", "link_backward_s"]))
    values = list(getattr(steps, key))
    if values:
        values[data.draw(st.integers(0, len(values) - 1))] += data.draw(seconds)
    assert round_s(dataclasses.replace(steps, **{key: tuple(values)}), depths) >= round_s(steps, depths)


def unlike(generator: random.Random, slowest_link: float) -> Steps:
    """Stages that differ by up to two, links of up to ``slowest_link`` forward times."""
    num_stages = generator.randint(2, 5)
    forward = [generator.uniform(0.5, 1.0) for _ in range(num_stages)]
    backward = [value * generator.uniform(1.5, 2.2) for value in forward]
    links = tuple(generator.uniform(0, slowest_link) for _ in range(num_stages - 1))
    reduces = tuple(generator.choice((0.0, generator.uniform(0, 3))) for _ in range(num_stages))
    return Steps(8, tuple(forward), tuple(backward), reduces, links, links, 0.02)


@pytest.mark.parametrize(
    ("slowest_link", "bound_mean", "bound_worst", "dominant_mean"),
    [(0.1, 0.005, 0.08, 0.015), (1.0, 0.005, 0.08, 0.03), (3.0, 0.05, 0.35, 0.2)],
)
def test_how_far_the_formulas_are_from_the_schedule(
    slowest_link: float, bound_mean: float, bound_worst: float, dominant_mean: float
) -> None:
    """Shares of the round that the bound and the known latency model fall short by."""
    generator = random.Random(0)
    bounds, dominants = [], []
    for _ in range(300):
        steps = unlike(generator, slowest_link)
        depths = deepest_warm_up(steps.num_stages, 8)
        played = round_s(steps, depths)
        bounds.append(1 - round_bound_s(steps, depths) / played)
        dominants.append(abs(1 - dominant_step_s(steps) / played))
    assert statistics.mean(bounds) < bound_mean and max(bounds) < bound_worst
    assert statistics.mean(dominants) < dominant_mean


def test_stages_that_would_wait_for_each_other_are_our_bug() -> None:
    with pytest.raises(LocalError, match="warm-up"):
        round_s(even(2, 4), (1, 3))
