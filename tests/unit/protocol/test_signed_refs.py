"""A snapshot's signature is of its trainer, over its job and all that is said of it, and counts for nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, JobId, PeerId
from p2ptrain.net.keys import new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.signing import Statements
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import from_plain, to_plain

TRAINER, OTHER = new_identity(), new_identity()
JOB = JobId("0" * 16)
UNSIGNED = SnapshotRef(2, TRAINER.peer, 5, 40, 400, 12800, BlobId("a" * 64), 1_000_000)
SIGNED = Statements(signing_of(TRAINER), b"a group").made(UNSIGNED, TRAINER.peer, TRAINER.public, JOB)
ANYBODY = Statements(signing_of(OTHER), b"another group")
CHANGES = {
    "part": 3,
    "trainer": OTHER.peer,
    "epoch": 6,
    "round": 41,
    "step": 401,
    "samples": 12801,
    "blob": BlobId("b" * 64),
    "num_bytes": 2**62,
    "span": 2,
    "kind": "head",
    "key": OTHER.public.decode(),
    "signature": "0" * 80,
}


def test_everybody_can_check_it_in_any_group_and_after_a_passage() -> None:
    assert ANYBODY.is_trainers(SIGNED, JOB)
    assert ANYBODY.is_trainers(from_plain(SnapshotRef, to_plain(SIGNED)), JOB)
    assert SIGNED == UNSIGNED, "who signed it makes it no other snapshot"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SnapshotRef)])
def test_nothing_of_it_can_be_changed(name: str) -> None:
    changed = dataclasses.replace(SIGNED, **{name: CHANGES[name]})  # type: ignore[arg-type]
    assert getattr(changed, name) != getattr(SIGNED, name)
    assert ANYBODY.is_trainers(SIGNED, JOB) and not ANYBODY.is_trainers(changed, JOB)
    assert not ANYBODY.is_trainers(SIGNED, JobId("1" * 16)), "it is of one job"


def test_another_key_does_not_speak_for_the_trainer() -> None:
    own = ANYBODY.made(dataclasses.replace(UNSIGNED, trainer=OTHER.peer), OTHER.peer, OTHER.public, JOB)
    assert ANYBODY.is_trainers(own, JOB)
    assert not ANYBODY.is_trainers(dataclasses.replace(own, trainer=TRAINER.peer), JOB)
    assert not ANYBODY.is_trainers(dataclasses.replace(own, trainer=TRAINER.peer, key=SIGNED.key), JOB)
    with pytest.raises(LocalError, match="not ours to sign"):
        ANYBODY.made(UNSIGNED, OTHER.peer, OTHER.public, JOB)


@given(st.text(max_size=40), st.text(max_size=80))
def test_any_text_in_place_of_a_key_and_a_signature(key: str, signature: str) -> None:
    try:
        told = from_plain(SnapshotRef, to_plain(dataclasses.replace(SIGNED, key=key, signature=signature)))
    except RemoteError:
        return
    assert not ANYBODY.is_trainers(told, JOB)
    assert not ANYBODY.is_trainers(dataclasses.replace(SIGNED, signature=signature), JOB)


def test_a_record_says_which_snapshot_is_false() -> None:
    false = dataclasses.replace(SIGNED, round=99)
    told = record(1, job=JOB, holdings=(SIGNED, false, dataclasses.replace(false, trainer=PeerId("b" * 16))))
    assert ANYBODY.false_snapshot(told) is false
    assert ANYBODY.false_snapshot(dataclasses.replace(told, holdings=(SIGNED,))) is None
    assert ANYBODY.false_snapshot(dataclasses.replace(told, job=JobId("1" * 16), holdings=(SIGNED,))) is SIGNED
