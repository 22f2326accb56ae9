"""What a peer does about a plan of class sub-models, where the trainer answers late."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

from records import book, membership

from p2ptrain.config import DataConfig, Job
from p2ptrain.core import commands as c
from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import ReleaseBlob
from p2ptrain.core.group_view import MAX_HOLDINGS, GroupView
from p2ptrain.core.mode import Given
from p2ptrain.core.peer_config import PeerConfig, Resume, first_record
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId, peer_id
from p2ptrain.modes.tasks.commands import Contributed
from p2ptrain.modes.tasks.plan import ClassPart, TasksBody
from p2ptrain.modes.tasks.role import Following, Seeking, TasksRole
from p2ptrain.protocol.blobs.transfer import Transfers
from p2ptrain.protocol.machine import Note
from p2ptrain.simulation.signing import TRUSTING
from p2ptrain.wire.messages import SnapshotRef

KEY = b"k" * 40
JOB = Job(data=DataConfig(("cat", "dog"), (1, 8, 8), mean=(0.0,), std=(1.0,)))
COPY = SnapshotRef(1, PeerId("b" * 16), 1, 2, 3, 4, BlobId("0" * 64), 5)


def role() -> TasksRole:
    rng, own = random.Random(1), peer_id(KEY)
    config = PeerConfig(KEY, bytes(16), ("tcp://127.0.0.1:5710",), 5711, "desk", "p2ptrain/test", TRUSTING)
    records = book(first_record(config, own, 1), rng)
    group = GroupView(own, membership(own, rng, 0.0), records)
    return TasksRole(Given(JOB, group, Downloads(Transfers(), lambda blob: False), Resume(), rng))


def test_a_trainer_s_late_word_on_another_part_does_not_end_the_search_for_this_one() -> None:
    """Else the copy that is on its way would come to nobody, and the part would never be trained."""
    own = role()
    state = own._state = Seeking(1, "partition", [], trying=COPY)
    assert own.trainer_said(c.Following(0, 1, 10), None, 0, 1.0) == []
    assert own._state is state and own.seeking
    notes = own.trainer_said(c.SnapshotRefused("of the part before"), None, 0, 1.0)
    assert own._state is state and state.num_refused == 0 and state.trying is COPY and len(notes) == 1
    state.is_given = True
    assert own.trainer_said(c.Following(1, 1, 10), None, 0, 1.0)
    assert own._state == Following(1, "partition")


def test_a_head_is_no_copy_of_part_0() -> None:
    own = role()
    part = dataclasses.replace(COPY, part=0)
    head = dataclasses.replace(part, kind="head", round=9, blob=BlobId("1" * 64))
    own._group.say(1.0, holdings=(head, part))
    assert own._copies_of(0) == [part]


def test_what_the_trainer_computed_is_in_the_record_with_the_last_layer_s_fit() -> None:
    own = role()
    parts = (ClassPart(0, 1.0, (own._group.own_id,), (0, 1), ("group-0",)),)
    body = TasksBody(parts, 0, False, "all", "sum", True, ())
    own.plan = Plan(1, JOB.id, "tasks", own._group.own_id, (), "", body)
    taken = c.SnapshotTaken(0, 1, 10, 100, 0.5, True, False, b"", work_flops=3e9, central_flops=9e9)
    own.trainer_said(taken, None, 0, 1.0)
    assert (own._group.own.work_flops, own._group.own.central_flops) == (3e9, 9e9)
    own.trainer_said(Contributed("session", 4, 10, b""), None, 0, 2.0)  # in the middle of the fit it says nothing of it
    assert own._group.own.work_flops == 3e9
    own.trainer_said(Contributed("session", 5, 10, b"", work_flops=4e9), None, 0, 3.0)
    assert (own._group.own.work_flops, own._group.own.central_flops) == (4e9, 9e9)


def test_copies_that_the_record_has_no_room_for_are_told_to_the_person_with_their_number() -> None:
    group = role()._group
    group._records.is_trainers = lambda ref: True  # type: ignore[method-assign]
    refs = [dataclasses.replace(COPY, round=n, blob=BlobId(f"{n:064x}")) for n in range(MAX_HOLDINGS + 20)]
    group.holdings = lambda: refs[:3]
    assert not [each for each in group.say_holdings(1.0) if isinstance(each, Note)]
    group.holdings = lambda: refs
    notes = [each for each in group.say_holdings(2.0) if isinstance(each, Note)]
    assert notes == [Note("untold-copies", (("copies", len(refs) - len(group.own.holdings)),))]
    for held in (refs, refs[:3], refs):
        group.holdings = lambda held=held: held  # type: ignore[misc]
        assert not [each for each in group.say_holdings(3.0) if isinstance(each, Note)], "once"


def test_a_copy_that_was_fetched_is_let_go_of_once_there_is_an_own_one() -> None:
    own, here = role(), {COPY.blob}
    own._downloads._has_blob = here.__contains__
    own.part = 1
    own._state = Seeking(1, "partition", [], trying=COPY)
    own._fetch(COPY, [COPY.trainer], 0.0)
    own._downloads._transfers.cancel(COPY.blob, 0.0)
    assert ReleaseBlob(COPY.blob) not in own.tick(1.0)
    own._state = Following(1, "partition")
    assert ReleaseBlob(COPY.blob) not in own.tick(2.0), "it would be needed again if the trainer died"
    own.replicas.offer(dataclasses.replace(COPY, trainer=own._group.own_id, blob=BlobId("2" * 64)), 3.0)
    assert ReleaseBlob(COPY.blob) in own.tick(4.0) and ReleaseBlob(COPY.blob) not in own.tick(5.0)


def test_lies_about_honest_blobs_cost_their_honest_holders_no_trust() -> None:
    own, group = role(), {}
    for number, peer in enumerate("ac"):
        other = dataclasses.replace(COPY, part=0, trainer=PeerId(peer * 16), blob=BlobId(f"{number:064x}"))
        group[peer * 16] = (other, dataclasses.replace(COPY, trainer=PeerId(peer * 16), blob=BlobId(peer * 64)))
    lies = [dataclasses.replace(of_0, part=1, trainer=PeerId("z" * 16), round=9) for of_0, _ in group.values()]
    group["z" * 16] = tuple(lies)
    records = [SimpleNamespace(peer=PeerId(peer), holdings=holdings) for peer, holdings in group.items()]
    own._group.records = lambda: records  # type: ignore[assignment,return-value]
    own._group.holders = lambda blob: [r.peer for r in records if any(h.blob == blob for h in r.holdings)]  # type: ignore[method-assign]
    state = own._state = Seeking(1, "partition", [])
    for lie in lies:
        state.trying, state.is_given = lie, True
        own.trainer_said(c.SnapshotRefused("of another part"), None, 0, 1.0)
    assert state.mistrusted == {"z" * 16}
