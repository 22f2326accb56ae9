"""Which saved runs of blocks make a stage or a model at one step."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.planning.pipeline.coverage import (
    NO_STATE,
    cover,
    lacking_of,
    missing,
    models_at,
    newest_whole,
    pieces_for_others,
    states_to_keep,
)
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.wire.messages import SnapshotRef


def saved(part: int, span: int, step: int, name: str = "") -> SnapshotRef:
    blob = (name or f"{part}-{span}-{step}").ljust(64, "x")
    return SnapshotRef(part, PeerId("a" * 16), 1, 1, step, 10, BlobId(blob), 100, span)


def pipeline(*stages: tuple[int, int, tuple[str, ...]], left_out: tuple[str, ...] = ()) -> PipelinePlan:
    made = tuple(Stage(a, b, peers, tuple(1 for _ in peers), 1) for a, b, peers in stages)
    return PipelinePlan("m", stages[-1][1], len(stages[0][2]), 1, made, left_out)


def none_preferred(holding: SnapshotRef) -> int:
    return 0


@given(st.tuples(st.integers(0, 8), st.integers(1, 8)), st.none() | st.tuples(st.integers(0, 8), st.integers(1, 8)))
def test_missing_is_the_difference(need: tuple[int, int], have: tuple[int, int] | None) -> None:
    need, have = (need[0], sum(need)), (have[0], sum(have)) if have else None
    wanted = set(range(*need)) - (set(range(*have)) if have else set())
    found = [block for run in missing(need, have) for block in range(*run)]
    assert sorted(found) == sorted(wanted) and len(found) == len(set(found))


def test_cover_takes_runs_of_one_step_only() -> None:
    holdings = [saved(0, 3, 10), saved(3, 3, 20), saved(3, 2, 10)]
    assert cover([(0, 6)], (10, 1), holdings, none_preferred) is None
    holdings.append(saved(5, 1, 10))
    chosen = cover([(0, 6)], (10, 1), holdings, none_preferred)
    assert chosen is not None and [h.part for h in chosen] == [0, 3, 5]


def test_cover_takes_the_run_that_reaches_furthest_then_the_preferred() -> None:
    short, long, same = saved(0, 2, 5), saved(0, 4, 5, "b"), saved(0, 4, 5, "a")
    assert cover([(0, 4)], (5, 1), [short, long, same], none_preferred) == [long]
    assert cover([(0, 4)], (5, 1), [short, long, same], lambda h: h is same) == [same]


def test_cover_of_two_runs_names_a_holding_once() -> None:
    whole = saved(0, 9, 5)
    assert cover([(0, 2), (7, 9)], (5, 1), [whole], none_preferred) == [whole]


def test_the_newest_whole_state() -> None:
    holdings = [saved(0, 2, 10), saved(2, 2, 10), saved(0, 2, 20)]
    assert newest_whole(4, holdings) == (10, 1)
    assert newest_whole(4, [*holdings, saved(2, 2, 20)]) == (20, 1)
    assert newest_whole(5, holdings) == NO_STATE


def test_pieces_are_what_others_lack_cut_where_the_new_plan_cuts() -> None:
    old = pipeline((0, 6, ("a",)), (6, 8, ("b",)), (8, 9, ("c",)))
    new = pipeline((0, 2, ("a",)), (2, 4, ("b",)), (4, 9, ("c",)))
    assert pieces_for_others(old, new, "a") == [(2, 4), (4, 6)]
    assert pieces_for_others(old, new, "b") == [(6, 8)]
    assert pieces_for_others(old, new, "c") == []


def test_one_peer_of_a_stage_hands_over_and_not_one_that_is_gone() -> None:
    old = pipeline((0, 3, ("a", "b")), (3, 6, ("c", "d")))
    new = pipeline((0, 2, ("b",)), (2, 6, ("c",)), left_out=("d",))
    assert pieces_for_others(old, new, "a") == []  # gone: the new plan does not know it
    assert pieces_for_others(old, new, "b") == [(2, 3)]
    assert pieces_for_others(old, new, "d") == []


def test_a_newcomer_gets_everything() -> None:
    old, new = pipeline((0, 2, ("a",)), (2, 4, ("b",))), pipeline((0, 4, ("z",)), left_out=("a", "b"))
    assert pieces_for_others(old, new, "a") == [(0, 2)]
    assert pieces_for_others(old, new, "b") == [(2, 4)]
    assert pieces_for_others(old, new, "z") == []


def run(part: int, span: int, step: int, epoch: int = 1) -> SnapshotRef:
    return dataclasses.replace(saved(part, span, step, f"{part}-{span}-{step}-{epoch}"), epoch=epoch)


def test_a_state_is_of_one_epoch() -> None:
    """After the group went back to step 5, step 8 of the first try and step 8 of the second are two models."""
    first, second = [run(0, 2, 8, 1), run(2, 2, 5, 1)], [run(2, 2, 8, 2)]
    assert cover([(0, 4)], (8, 1), [*first, *second], lambda h: 0) is None
    assert newest_whole(4, [*first, run(0, 2, 5, 1), *second]) == (5, 1)
    whole = [*first, *second, run(0, 2, 8, 2), run(2, 2, 8, 1)]
    assert {h.epoch for h in cover([(0, 4)], (8, 2), whole, lambda h: 0) or ()} == {2}
    assert newest_whole(4, whole) == (8, 2)


def test_what_the_group_can_go_back_to() -> None:
    a8, a5, b8, b5 = run(0, 2, 8), run(0, 2, 5), run(2, 2, 8), run(2, 2, 5)
    assert states_to_keep(4, {"a": [a8, a5], "b": [b5]}) == [(5, 1)], "b can't be lost, nor a"
    assert states_to_keep(4, {"a": [a8, a5, b5], "b": [b5, a5]}) == [(5, 1)]
    assert states_to_keep(4, {"a": [a8, a5, b5], "b": [b8, b5, a5]}) == [(8, 1), (5, 1)], "5 outlives either"
    assert states_to_keep(4, {"a": [a8, b8], "b": [a8, b8, b5]}) == [(8, 1)]
    assert states_to_keep(4, {"a": [a8], "b": []}) == []
    assert states_to_keep(4, {"a": [a8, b8, a5, b5], "b": [a8, b5], "c": [b8]}) == [(8, 1)]
    assert states_to_keep(4, {"a": [a8], "b": [b8, b5], "c": [b8, a5]}) == [(8, 1), (5, 1)], "without a there is only 5"


def test_what_the_group_can_go_back_to_whichever_two_are_lost() -> None:
    a8, a5, b8, b5 = run(0, 2, 8), run(0, 2, 5), run(2, 2, 8), run(2, 2, 5)
    on_three = {"a": [a8, a5, b5], "b": [b8, b5, a5], "c": [a8, a5, b5], "d": [b8]}
    assert states_to_keep(4, on_three) == [(8, 1), (5, 1)], "a and c may both go, and 8 with them"
    assert states_to_keep(4, {peer: [a8, b8, a5, b5] for peer in "abc"}) == [(8, 1)], "whoever is left has all of it"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.integers(1, 3)), max_size=24))
def test_no_loss_of_two_goes_further_back_than_it_must(held: list[tuple[str, int, int]]) -> None:
    by_peer = {peer: [run(block, 1, step) for who, block, step in held if who == peer] for peer in "abcd"}
    kept = states_to_keep(3, by_peer)
    for lost in [(), *itertools.combinations("abcd", 1), *itertools.combinations("abcd", 2)]:
        left = [h for peer, holdings in by_peer.items() if peer not in lost for h in holdings]
        best = newest_whole(3, left)
        assert best == NO_STATE or best in kept


def test_of_several_finished_models_that_of_more_devices_counts_else_the_later_one() -> None:
    def of(trainer: str, epoch: int, part: int, span: int, step: int = 20) -> SnapshotRef:
        blob = BlobId(f"{trainer}{epoch}{part}{step}".ljust(64, "x"))
        return SnapshotRef(part, PeerId(trainer), epoch, 1, step, 10, blob, 100, span)

    both = [of("a", 3, 0, 2), of("b", 3, 2, 4)]
    alone, later = [of("c", 90, 0, 6)], [of("d", 91, 0, 6)]
    half, older = [of("e", 99, 0, 3)], [of("f", 99, 0, 6, step=19)]
    found = models_at(6, 20, [*alone, *both, *half, *later, *older])
    assert list(found.items()) == [((20, 3), {"a", "b"}), ((20, 91), {"d"}), ((20, 90), {"c"})]
    assert models_at(6, 21, both) == {}


def test_a_liar_that_tells_of_an_honest_blob_as_of_something_else_hides_nothing() -> None:
    honest = [saved(0, 2, 10), saved(2, 2, 10)]
    lies = [dataclasses.replace(h, trainer=PeerId("b" * 16), part=2 - h.part, step=9) for h in honest]
    for order in (("a", "z"), ("z", "a")):
        told = {peer: {"a": honest, "z": lies}[peer] for peer in order}
        assert states_to_keep(4, told)[0] == (10, 1)
        lacking = lacking_of((10, 1), told)
        assert (lacking("a", (0, 4)), lacking("b", (2, 4))) == (0, 100)
