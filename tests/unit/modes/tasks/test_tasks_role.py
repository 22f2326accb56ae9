"""What a peer does about a plan of class sub-models, where the trainer answers late."""

from __future__ import annotations

import dataclasses
import random

from records import book, membership

from p2ptrain.config import DataConfig, Job
from p2ptrain.core import commands as c
from p2ptrain.core.downloads import Downloads
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.mode import Given
from p2ptrain.core.peer_config import PeerConfig, Resume, first_record
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId, peer_id
from p2ptrain.modes.tasks.commands import Contributed
from p2ptrain.modes.tasks.plan import ClassPart, TasksBody
from p2ptrain.modes.tasks.role import Following, Seeking, TasksRole
from p2ptrain.protocol.blobs.transfer import Transfers
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
