"""Which job a newcomer takes; and one that a later version of p2ptrain made, which nobody is to blame for."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from p2ptrain.config import DataConfig, Job
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.modes.jobs import job_told
from p2ptrain.protocol.session.abuse import JOB_UNREAD, MAX_ERRORS, AbuseTable
from p2ptrain.runtime.peer.job_search import MAX_JOBS, SETTLE_S, JobSearch

A, B = PeerId("a" * 16), PeerId("b" * 16)
JOB = Job(data=DataConfig(("cat", "dog"), (1, 8, 8), mean=(0.0,), std=(1.0,)))


def later(**changes: object) -> bytes:
    """The job with something that this version does not know."""
    return json.dumps(json.loads(JOB.to_json()) | changes).encode()


@pytest.mark.parametrize(
    ("data", "reason", "why"),
    [
        (later(colour="red"), JOB_UNREAD, "colour: unknown key"),
        (later(mode="swarm"), JOB_UNREAD, "mode: 'swarm' is not one of"),
        (later(training=json.loads(JOB.to_json())["training"] | {"loss2": 1}), JOB_UNREAD, "training.loss2: unknown"),
        (b'{"colour": "red"}', "job", "colour"),
        (b"[" * 100_000, "job", ""),
        (b"\xff", "job", "not JSON"),
    ],
)
def test_a_job_of_another_version_is_told_from_none(data: bytes, reason: str, why: str) -> None:
    with pytest.raises(RemoteError) as refused:
        job_told(data)
    assert refused.value.reason == reason and why in refused.value.detail and len(refused.value.detail) <= 120


def test_who_tells_it_is_not_shut_out_and_the_newcomer_says_what_is_wrong() -> None:
    search, offences = JobSearch("", Counter()), AbuseTable()
    assert search.words(is_alone=False) == "the job: nobody has told it yet"
    for second in range(3 * MAX_ERRORS):  # it is asked every second
        with pytest.raises(RemoteError) as refused:
            search.told(A, later(colour="red"), float(second))
        assert not offences.count(b"k" * 40, refused.value.reason, float(second))
    words = search.words(is_alone=False)
    assert words.startswith("a job that this version of p2ptrain can read: what 1 of the others tell is none")
    assert "colour: unknown key" in words and "install the same version on all devices" in words
    search.told(B, JOB.to_json().encode(), 100.0)
    assert search.choose(102.0) == (B, JOB), "one that can be read is taken all the same"


def told(search: JobSearch, sender: str, name: str) -> None:
    search.told(PeerId(sender), dataclasses.replace(JOB, name=name).to_json().encode(), 0.0)


def test_the_job_that_most_tell_is_taken_however_many_others_one_of_them_tells_before() -> None:
    search = JobSearch("", Counter())
    for number in range(2 * MAX_JOBS):
        told(search, "liar", f"job {number}")
    told(search, "a", "ours")
    told(search, "b", "ours")
    told(search, "b", "another")
    assert search.choose(SETTLE_S / 2) is None
    found = search.choose(SETTLE_S)
    assert found is not None and (found[0], found[1].name) == ("a", "ours")
