"""Copies that a member says, in its own name, to have, and does not have: a bounded wait, and the next one is asked.

The liar answers pings and hands out what is true; of what it made up it says that it has not got it, or nothing at all,
which is worse: 45 s (``silent_s``) until it counts as one that hands out nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from blocks_trainer import NUM_BLOCKS
from liar import LIAR, honest, statements, training_group
from peer_group import Room
from stage_group import all_at, furthest, group, pipeline_body, state_of, total_steps, trainer, under_way

from p2ptrain.core.effects import Effects
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.blobs.fetching import TransferConfig
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.names import key
from p2ptrain.wire.messages import Fetch, SnapshotRef

CONFIG = TransferConfig()
ALL_S = CONFIG.silent_s + 4 * CONFIG.vain_s
"""What one liar may cost, whatever it says to have."""
SILENT = pytest.mark.parametrize("silent", [False, True], ids=["refuses", "says nothing"])


class Liar:
    """A whole peer. ``says``: beside what is true, and what that is."""

    def __init__(self, device: Device, *, silent: bool) -> None:
        self.device, self.said = device, list[SnapshotRef]()
        self.true: Callable[[SnapshotRef], bool] = lambda ref: True
        group, serving = device.core.group, device.core.transfers._serving
        holdings, asked = group.holdings, serving.asked
        group.holdings = lambda: (*self.said, *filter(self.true, holdings()))

        def ask(to: PeerId, fetch: Fetch) -> Sequence[object]:
            return [] if silent and fetch.blob in {ref.blob for ref in self.said} else asked(to, fetch)

        serving.asked = ask  # type: ignore[assignment,method-assign]

    def made(self, part: int, step: int, round: int, blob: int, *, epoch: int = 1, span: int = 1) -> SnapshotRef:
        """Signed by the liar, of bytes that nobody has."""
        core = self.device.core
        ref = SnapshotRef(part, core.own_id, epoch, round, step, 1, BlobId(f"{blob:064x}"), 1000, span=span)
        return statements(self.device.number).made(ref, core.own_id, key(self.device.number), core.group.job)

    def says(self, room: Room, *refs: SnapshotRef) -> None:
        self.said = list(refs)
        core = self.device.core
        said: Effects = core.group.say_holdings(room.network.now)
        room.perform(self.device, core.run(said, room.network.now))
        room.run(3)


def bare(device: Device) -> None:
    """Its own copies are lost, and it comes back."""
    device.kill()
    device.disk.own = ()


# --- class sub-models -------------------------------------------------------------------------------------------------


@SILENT
def test_a_part_is_taken_from_who_has_it_though_another_says_to_have_fresher_ones(silent: bool) -> None:
    room = training_group()
    liar, victim = Liar(room.devices[LIAR], silent=silent), room.devices[1]
    assert room.run(60, lambda: any(h.trainer == victim.id for d in (0, 2) for h in room.devices[d].record.holdings))
    reached = victim.record.round
    liar.says(room, *(liar.made(victim.record.part, 10**6, 40, blob) for blob in range(1, 41)))
    bare(victim)
    room.run(1)
    room.restart(1)
    assert room.run(1 + ALL_S if silent else 5, lambda: victim.record.phase == "training"), victim.record.waiting_for
    assert victim.trainer is not None and victim.trainer.follows[0][1] >= reached - 1


def test_where_nobody_has_the_part_it_begins_anew_and_says_who_said_to_have_it() -> None:
    """A replica holder that said it keeps the copy, and threw it away."""
    room = training_group()
    liar, victim = Liar(room.devices[LIAR], silent=True), room.devices[1]
    liar.says(room, *(liar.made(victim.record.part, 10**6, 40, blob) for blob in range(1, 41)))
    bare(victim)
    for device in (room.devices[0], room.devices[2]):
        others_true = Liar(device, silent=False)
        others_true.true = lambda ref, own=device.id: ref.trainer == own  # type: ignore[misc]
        others_true.says(room)
    room.run(1)
    room.restart(1)
    assert room.run(1 + ALL_S, lambda: victim.record.phase == "training"), victim.record.waiting_for
    (note,) = [note for _, note in victim.notes if note.kind == "copies-not-had"]
    assert liar.device.record.name in str(dict(note.fields)["from"])


@SILENT
def test_the_last_layer_is_fitted_without_a_copy_that_nobody_hands_out(silent: bool) -> None:
    """Of its own part, of which there is no other copy of the last round; the one before is with a replica holder."""
    room = training_group(rounds=8, fit_head="always", head_fit_steps=5)
    liar = Liar(room.devices[LIAR], silent=silent)
    own, part = liar.device.id, liar.device.record.part
    liar.true = lambda ref: (ref.trainer, ref.round) != (own, 8)
    assert liar.device.core.role is not None
    liar.device.core.role.replicas.replication.owner.saved = lambda holding, now: []  # type: ignore[method-assign]
    liar.says(room, liar.made(part, 10**3, 8, 1), liar.made(1 - min(part, 1), 10**3, 8, 2))
    assert room.run(60 + 2 * ALL_S if silent else 60, lambda: all(device.done for device in honest(room)))
    for device in honest(room):
        assert device.note_kinds()["head-fit-copy-not-had"]
        assert any(ref.kind == "head" for ref in device.record.holdings)


# --- pipelines --------------------------------------------------------------------------------------------------------


def pipeline(*, silent: bool) -> tuple[Room, Liar, dict[str, Device]]:
    """Five stages; the liar trains the middle one."""
    room = group(0, 5, owners=5, rounds=8, snapshot_steps=5)
    assert room.run(60, all_at(room, 13)), state_of(room)
    by_id = {device.id: device for device in room.on()}
    stages = pipeline_body(room.devices[0]).pipeline.stages
    return room, Liar(by_id[PeerId(stages[2].peers[0])], silent=silent), by_id


@pytest.mark.parametrize("left", [0, 10], ids=["finished", "ahead"])
def test_a_pipeline_is_not_moved_by_what_one_alone_says_to_have_done(left: int) -> None:
    """A whole model, trained to the end or nearly so, in a history of which nobody else knows."""
    room, liar, _ = pipeline(silent=True)
    step = total_steps(liar.device) - left
    liar.says(room, liar.made(0, step, 8, 1, epoch=50, span=NUM_BLOCKS))
    begun = furthest(room)
    room.run(6)
    assert all(device.record.phase == "training" for device in room.on()) and furthest(room) >= begun + 5
    assert not any(device.note_kinds()["goes-back"] or device.note_kinds()["overtaken"] for device in room.on())


@SILENT
def test_who_says_to_have_the_blocks_of_a_dead_one_costs_a_bounded_wait(silent: bool) -> None:
    """They would be the newest, and nobody else has them: the group goes back to what there is, and says so."""
    room, liar, by_id = pipeline(silent=silent)
    dead = by_id[pipeline_body(liar.device).pipeline.stages[0].peers[0]]
    newest = furthest(room)
    refs = [liar.made(0, step, 3, step, epoch=1, span=NUM_BLOCKS) for step in range(newest, newest + 9)]
    liar.said, epoch = refs, liar.device.core.epoch
    liar.says(room, *refs)
    done = furthest(room)
    dead.kill()
    others = [device for device in room.on() if device is not liar.device]
    assert room.run(40 + ALL_S if silent else 40, under_way(room, epoch)), state_of(room)
    assert any(device.note_kinds()["blocks-not-had"] for device in others)
    assert all(device.trainer is not None and trainer(device).follows[-1][1] <= done for device in others)
