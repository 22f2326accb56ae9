"""Plans travel as canonical JSON, and nothing that does not hold together gets in."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_edits import put

from p2ptrain.config import DataConfig, Job
from p2ptrain.core.plan import MAX_PLAN_BYTES, PeerSnapshot, Plan, cleaned
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import read_plan
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.plan import shards_of
from p2ptrain.modes.tasks.planning.assignment import first_plan

JOB = Job(
    data=DataConfig(classes=("a", "b", "c", "d"), input_shape=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3),
    tables=(TasksConfig(trunk=1),),
)


def name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def plan() -> Plan:
    peers = [PeerSnapshot(name(i), 1e9 * (i + 1), 0, (10, 10, 10, 10), (i,)) for i in range(3)]
    return first_plan(JOB, peers, name(0))


def test_a_plan_survives_its_json_and_its_hash_names_it() -> None:
    again = read_plan(plan().to_json().encode())
    assert again == plan()
    assert again.hash == plan().hash
    assert dataclasses.replace(again, body=dataclasses.replace(again.body, fit_head=True)).hash != again.hash


def test_shards_say_what_parts_have_in_common() -> None:
    assert shards_of("replicas", 0, 0) == ("all",)
    assert shards_of("tasks", 0, 2) == ("group-2",)
    assert shards_of("tasks", 1, 2) == ("trunk", "group-2")


def edits() -> dict[str, Callable[[dict[str, Any]], object]]:
    return {
        "class twice": put("body.parts.0.classes.0", 3),
        "class missing": put("body.parts.0.classes", [9]),
        "no classes": put("body.parts.0.classes", []),
        "share above the model": put("body.parts.0.share", 0.9),
        "no share": put("body.parts.0.share", 0.0),
        "share below zero": put("body.parts.0.share", -0.1),
        "share as integer": put("body.parts.0.share", 0),
        "unknown trainer": put("body.parts.0.trainers", ["q" * 16]),
        "trains twice": put("body.parts.0.trainers", [name(0), name(1), name(2)]),
        "short trainer": put("body.parts.0.trainers", ["q"]),
        "wrong shards": put("body.parts.0.shards", ["all"]),
        "wrong index": put("body.parts.0.index", 1),
        "unknown proposer": put("proposer", "q" * 16),
        "epoch zero": put("epoch", 0),
        "epoch huge": put("epoch", 2**60),
        "epoch true": put("epoch", True),
        "parent of the first": put("parent", "0" * 64),
        "no parent": put("epoch", 2),
        "unknown mode": put("mode", "swarm"),
        "a pipeline without stages": put("mode", "pipeline"),
        "a pipeline of nothing": put("body", {}),
        "two replicas": put("mode", "replicas"),
        "sum of own": put("body.targets", "own"),
        "job is no hash": put("job", "x" * 16),
        "counts of other classes": put("peers.0.counts", [1]),
        "count below zero": put("peers.0.counts", [1, 1, 1, -1]),
        "wish for nothing": put("peers.0.wishes", [7]),
        "wishes out of order": put("peers.0.wishes", [1, 0]),
        "peers out of order": lambda plain: plain["peers"].reverse(),
        "former trainer": put("body.former", [{"peer": name(0), "part": 0}]),
        "former part unknown": put("body.former", [{"peer": "q" * 16, "part": 9}]),
        "extra key": put("more", 1),
        "missing key": lambda plain: plain["body"].pop("trunk"),
        "infinite speed": put("peers.0.flops_per_s", math.inf),
        "no number for speed": put("peers.0.flops_per_s", math.nan),
        "text for a list": put("body.parts", "abc"),
    }


@pytest.mark.parametrize("case", edits())
def test_what_does_not_hold_together_is_refused(case: str) -> None:
    plain = json.loads(plan().to_json())
    edits()[case](plain)
    with pytest.raises(RemoteError):
        read_plan(json.dumps(plain, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, b" " * (MAX_PLAN_BYTES + 1)],
)
def test_what_is_no_plan_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        read_plan(data)


def test_only_the_canonical_text_is_a_plan() -> None:
    with pytest.raises(RemoteError, match="canonical"):
        read_plan(json.dumps(json.loads(plan().to_json())))
    with pytest.raises(RemoteError, match="canonical"):
        read_plan(plan().to_json().replace('"epoch":1', '"epoch":7,"epoch":1'))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_a_remote_error_and_nothing_else(data: st.DataObject) -> None:
    plain = json.loads(plan().to_json())
    target: Any = plain
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(target[key], (dict, list)) or not target[key] or data.draw(st.booleans()):
            break
        target = target[key]
    before = copy.deepcopy(target[key])
    target[key] = data.draw(json_values)
    if json.dumps(target[key]) != json.dumps(before):
        try:
            changed = read_plan(json.dumps(plain, sort_keys=True, separators=(",", ":")))
        except RemoteError:
            return
        assert changed.hash != plan().hash  # a harmless change (a speed, say) is another plan


def test_cleaning_drops_what_can_not_be_used() -> None:
    peer = PeerSnapshot(name(0), math.nan, -5, (1, 2), (9, 1, 1, -1))
    assert cleaned(peer, 4) == PeerSnapshot(name(0), 0.0, 0, (), (1,))
    good = PeerSnapshot(name(0), 2.0, 5, (1, 2, 3, 4), (1, 3))
    assert cleaned(good, 4) == good
    assert cleaned(dataclasses.replace(good, counts=(0, 0, 0, 0)), 4).counts == ()
