"""Large groups: which devices a plan is looked for among, and figures that fit into a plan."""

from __future__ import annotations

import random

from p2ptrain.core.plan import MAX_PLAN_BYTES, PeerSnapshot, Plan
from p2ptrain.core.stages.considered import (
    MOST_BYTES,
    MOST_DEVICES,
    SLOWEST_LINKS,
    considered,
    fitting,
    words_of_considered,
)
from p2ptrain.core.stages.figures import DeviceFigures
from p2ptrain.ids import JobId, PeerId
from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.wire.messages import LinkFigure
from p2ptrain.wire.schema import to_plain

MODEL = ModelProfile("net", 100, tuple(BlockProfile(f"b{i}", 10**7, 2 * 10**7, 1000, 100, 100, True) for i in range(6)))


def name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def group(num: int, *, has_data: bool = False) -> tuple[list[PeerSnapshot], list[DeviceFigures]]:
    """Each slower than the one before, with more memory; the last ten have samples."""
    counts = [(5, 5) if has_data or i >= num - 10 else () for i in range(num)]
    peers = [PeerSnapshot(name(i), 1e12 / (i + 1), 10**9 + i, counts[i], ()) for i in range(num)]
    return peers, [DeviceFigures(name(i), 1e7, 1.0, (), (), ()) for i in range(num)]


def test_a_small_group_is_looked_at_whole() -> None:
    peers, figures = group(MOST_DEVICES)
    assert considered(MODEL, peers, figures) == tuple(figures)


def test_of_a_large_group_the_fastest_those_with_samples_those_with_memory_and_those_at_work() -> None:
    peers, figures = group(200)
    chosen = considered(MODEL, peers, figures, kept=[name(150)])
    found = {each.peer for each in chosen}
    assert len(chosen) == MOST_DEVICES
    assert name(150) in found
    assert {name(i) for i in range(190, 200)} <= found  # who has samples, and here the most memory
    assert {name(i) for i in range(30)} <= found
    assert [each.peer for each in chosen] == sorted(found)


def test_the_order_does_not_matter() -> None:
    peers, figures = group(150, has_data=True)
    shuffled = random.Random(1).sample(figures, len(figures))
    chosen = considered(MODEL, random.Random(2).sample(peers, len(peers)), shuffled)
    assert {each.peer for each in chosen} == {each.peer for each in considered(MODEL, peers, figures)}


def measured(index: int, num_blocks: int, num_sizes: int, num_links: int) -> DeviceFigures:
    sizes = tuple(2**k for k in range(num_sizes))
    rows = tuple(tuple(1.234e-05 * size for _ in range(num_blocks)) for size in sizes)
    links = tuple(LinkFigure(name(i), 1e6 + i, 0.001234) for i in range(300, 300 + num_links))
    return DeviceFigures(name(index), 1e7, 1.0, sizes, rows, rows, links=links)


def test_figures_that_fit_stay_as_they_are() -> None:
    figures = [measured(i, 20, 7, 32) for i in range(16)]
    assert fitting(figures) == tuple(figures)


def test_figures_of_hundreds_are_cut_until_they_fit_and_no_more_when_cut_again() -> None:
    figures = [measured(i, 60, 7, 32) for i in range(200)]
    cut = fitting(figures)
    assert len(str(to_plain(cut))) < MOST_BYTES < MAX_PLAN_BYTES
    assert all(each.batch_sizes == (1, 64) for each in cut)
    assert all(len(each.links) == SLOWEST_LINKS for each in cut)
    assert cut[0].links[0].bytes_per_s == 1e6 + 300
    assert fitting(cut) == cut


def test_the_plan_says_that_not_all_were_looked_at() -> None:
    peers, figures = group(100)
    plan = Plan(1, JobId("0" * 16), "pipeline", name(0), tuple(peers), "", body=None)  # type: ignore[arg-type]
    (line,) = words_of_considered(plan, considered(MODEL, peers, figures))
    assert f"of 100 devices the plan was looked for among {MOST_DEVICES}" in line
    assert words_of_considered(plan, figures) == []
