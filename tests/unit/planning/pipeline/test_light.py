"""The pipeline that is soonest to begin after a loss: who stays keeps what it has, and little is fetched."""

from __future__ import annotations

import math

import pytest

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.coverage import Run, lacking_of
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.light import fetch_s, light
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage, check_pipeline_plan
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask
from p2ptrain.wire.messages import SnapshotRef

pytestmark = pytest.mark.usefixtures("no_work_for_messages")
BLOCK_BYTES = 1000
MODEL = ModelProfile(
    "net", 100, tuple(BlockProfile(f"b{i}", 10**7, 2 * 10**7, BLOCK_BYTES, 10, 10, True) for i in range(8))
)


def before(*stages: tuple[int, int, str]) -> PipelinePlan:
    made = tuple(
        Stage(start, stop, tuple(peers.split()), (4,) if " " not in peers else (2, 2), 1)
        for start, stop, peers in stages
    )
    return PipelinePlan("net", 8, 4, 4, made, ())


FOUR = before((0, 2, "a"), (2, 4, "b"), (4, 6, "c"), (6, 8, "d"))


def fleet(*names: str, owners: str = "abcde", memory: float = 1e12, link: float = 1e6) -> Fleet:
    peers = tuple(PipelinePeer(name, 1e12, memory, link, has_data=name in owners) for name in names)
    return Fleet(PipelineTask(MODEL, peers, 4, 4))


def lacking(**held: Run) -> dict[str, list[SnapshotRef]]:
    """Each of these has its own stage of two blocks, and one snapshot more."""
    found: dict[str, list[SnapshotRef]] = {}
    for number, peer in enumerate("abcd"):
        found[peer] = [_ref(2 * number, 2)]
    for peer, (first, stop) in held.items():
        found.setdefault(peer, []).append(_ref(first, stop - first))
    return found


def _ref(first: int, span: int) -> SnapshotRef:
    return SnapshotRef(first, "x", 1, 0, 5, 0, f"{first}-{span}", span * BLOCK_BYTES, span=span)  # type: ignore[arg-type]


def shape(plan: PipelinePlan | None) -> list[tuple[int, int, str]]:
    assert plan is not None
    check_pipeline_plan(plan)
    return [(stage.start, stage.stop, " ".join(stage.peers)) for stage in plan.stages]


@pytest.mark.parametrize(("heir", "expected"), [("b", (2, 6, "b")), ("d", (4, 8, "d"))])
def test_who_has_a_copy_of_the_lost_blocks_takes_them(heir: str, expected: tuple[int, int, str]) -> None:
    held = {peer: runs for peer, runs in lacking(**{heir: (4, 6)}).items() if peer != "c"}
    slow = fleet("a", "b", "d", link=1.0)
    found = light(slow, FOUR, lacking_of((5, 1), held))
    assert expected in shape(found) and found is not None
    assert fetch_s(slow, found, lacking_of((5, 1), held)) == 0.0, "nothing travels"


def test_over_fast_links_the_work_counts() -> None:
    held = {peer: runs for peer, runs in lacking(b=(4, 6)).items() if peer != "c"}
    found = light(fleet("a", "b", "d", link=1e15), FOUR, lacking_of((5, 1), held))
    assert max(stop - start for start, stop, _ in shape(found)) == 3, "three peers, eight blocks"


def test_a_stage_that_has_a_peer_left_keeps_its_blocks() -> None:
    plan = before((0, 4, "a b"), (4, 8, "c"))
    held = {"b": [_ref(0, 4)], "c": [_ref(4, 4)]}
    assert shape(light(fleet("b", "c", link=1.0), plan, lacking_of((5, 1), held))) == [(0, 4, "b"), (4, 8, "c")]


def test_who_stands_by_takes_the_place() -> None:
    held = {peer: runs for peer, runs in lacking(e=(4, 6)).items() if peer != "c"}
    found = light(fleet("a", "b", "d", "e", link=1.0), FOUR, lacking_of((5, 1), held))
    assert shape(found) == [(0, 2, "a"), (2, 4, "b"), (4, 6, "e"), (6, 8, "d")]


def test_the_first_stage_needs_samples() -> None:
    held = {peer: runs for peer, runs in lacking().items() if peer != "a"}
    assert light(fleet("b", "c", "d", owners="d"), FOUR, lacking_of((5, 1), held)) is None
    found = light(fleet("b", "c", "d", owners="ab"), FOUR, lacking_of((5, 1), held))
    assert shape(found)[0][2] == "b"


@pytest.mark.parametrize("left", ["ad", "cd", "a", "d"])
def test_several_are_lost_at_once(left: str) -> None:
    held = {peer: runs for peer, runs in lacking(a=(2, 8), c=(0, 4), d=(0, 6)).items() if peer in left}
    found = light(fleet(*left), FOUR, lacking_of((5, 1), held))
    assert {peer for _, _, peer in shape(found)} == set(left)


def test_what_does_not_fit_is_no_way() -> None:
    held = {peer: runs for peer, runs in lacking().items() if peer != "c"}
    assert light(fleet("a", "b", "d", memory=3 * 3 * BLOCK_BYTES), FOUR, lacking_of((5, 1), held)) is None


def test_nobody_is_left() -> None:
    assert light(fleet("e", owners="e"), FOUR, lacking_of((5, 1), {})) is not None, "it begins with what it can get"


def test_bytes_that_a_peer_lacks() -> None:
    count = lacking_of((5, 1), {"a": [_ref(0, 2)], "b": [_ref(2, 2), _ref(0, 2)]})
    assert count("a", (0, 2)) == 0 and count("a", (0, 4)) == 2 * BLOCK_BYTES and count("b", (0, 4)) == 0
    assert count("e", (0, 4)) == 4 * BLOCK_BYTES and math.isinf(count("a", (0, 8)))
    assert lacking_of((0, 0), {})("a", (0, 8)) == 0, "everyone has the initial weights"
