"""What of a pipeline's saved blocks is believed: by all that is told of a copy, never by its bytes' name alone."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.pipeline.stage.checkpoints import Checkpoints
from p2ptrain.wire.messages import SnapshotRef

HONEST = [SnapshotRef(part, PeerId("a" * 16), 1, 1, 10, 1, BlobId(f"{part:064x}"), 100, span=2) for part in (0, 2)]
LIES = [dataclasses.replace(ref, trainer=PeerId("z" * 16), part=2 - ref.part, step=99) for ref in HONEST]


@pytest.mark.parametrize("order", ["abz", "zba"])
def test_a_liar_that_tells_of_honest_blobs_as_of_something_else_hides_nothing_and_is_not_believed(order: str) -> None:
    held = {"a": HONEST, "b": HONEST, "z": LIES}
    group: Any = SimpleNamespace(
        own_id=PeerId("own"),
        records=lambda: [SimpleNamespace(peer=peer, holdings=held[peer]) for peer in order],
        absent=lambda: [],
    )
    checkpoints = Checkpoints(group, tuple, lambda peer: False)
    checkpoints.reach = lambda peer, epoch: 12
    assert set(checkpoints.known()) == set(HONEST), "what is so far ahead, it says alone"
    _, taken = checkpoints.choose((0, 4), (10, 1), None, lambda blob: False)
    assert taken == HONEST
    group.holders = lambda blob: []
    checkpoints.refuse(LIES, {ref.blob for ref in LIES})
    assert set(checkpoints.known()) == set(HONEST), "the blobs are sound, what it said of them was not"


@pytest.mark.parametrize(
    ("maker", "is_here", "is_believed"), [("a", True, True), ("a", False, True), ("y", True, False)]
)
def test_what_another_member_made_is_believed_of_who_has_it_alone(maker: str, is_here: bool, is_believed: bool) -> None:
    """Its own disk may be empty by now. A maker that nobody knows is a made-up one."""
    copies = [dataclasses.replace(ref, trainer=PeerId(maker * 16), step=99) for ref in HONEST]
    maker_itself = SimpleNamespace(peer="a" * 16, holdings=())
    group: Any = SimpleNamespace(
        own_id=PeerId("own"),
        records=lambda: [SimpleNamespace(peer="b", holdings=copies), *([maker_itself] if is_here else [])],
        absent=lambda: [] if is_here else [maker_itself],
    )
    checkpoints = Checkpoints(group, tuple, lambda peer: False)
    checkpoints.reach = lambda peer, epoch: 12
    assert checkpoints.known() == (copies if is_believed else [])
    vain = Checkpoints(group, tuple, lambda peer: True)
    assert vain.known() == [], "it hands out nothing"


def test_a_wrong_size_hides_no_honest_copy_and_costs_its_holders_no_trust() -> None:
    lie = dataclasses.replace(HONEST[0], trainer=PeerId("z" * 16), num_bytes=1, span=4)
    held = {"a": HONEST[:1], "b": HONEST[1:], "z": [lie]}
    group: Any = SimpleNamespace(
        own_id=PeerId("own"),
        records=lambda: [SimpleNamespace(peer=peer, holdings=held[peer]) for peer in held],
        absent=lambda: [],
        names_of=", ".join,
        holders=lambda blob: [peer for peer in held if any(each.blob == blob for each in held[peer])],
    )
    checkpoints = Checkpoints(group, tuple, lambda peer: False)
    checkpoints.reach = lambda peer, epoch: 12
    assert lie in checkpoints.known(), "all that it says is near enough"
    assert dict(checkpoints.not_had(lie).fields) == {"from": "z"}
    assert set(checkpoints.known()) == set(HONEST)


def test_of_what_did_not_fit_what_one_alone_tells_of_is_refused_first() -> None:
    lie = dataclasses.replace(HONEST[1], trainer=PeerId("z" * 16), blob=BlobId("f" * 64))
    held = {"a": HONEST, "b": HONEST, "z": [lie]}
    group: Any = SimpleNamespace(
        own_id=PeerId("own"),
        records=lambda: [SimpleNamespace(peer=peer, holdings=held[peer]) for peer in held],
        absent=lambda: [],
    )
    checkpoints = Checkpoints(group, tuple, lambda peer: False)
    checkpoints.reach = lambda peer, epoch: 12
    for given, left in (([HONEST[0], lie], HONEST), (HONEST, [])):
        checkpoints.refuse(given, {ref.blob for ref in given})
        assert checkpoints.known() == left
