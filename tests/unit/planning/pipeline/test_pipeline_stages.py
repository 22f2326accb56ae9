"""Pipeline plans travel as canonical JSON, and nothing that does not hold together gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from p2ptrain.errors import RemoteError
from p2ptrain.planning.pipeline.stages import MAX_PLAN_BYTES, PipelinePlan, Stage, pipeline_plan_from_json


def plan() -> PipelinePlan:
    stages = (Stage(0, 3, ("a", "b"), (1, 3), 3), Stage(3, 5, ("c",), (4,), 1))
    return PipelinePlan("vgg11", 5, 4, 8, stages, ("d", "e"))


def test_a_plan_survives_its_json_and_its_hash_names_it() -> None:
    again = pipeline_plan_from_json(plan().to_json().encode())
    assert again == plan() and again.hash == plan().hash and len(again.hash) == 64
    assert again.stage_of("b") == 0 and again.stage_of("c") == 1 and again.stage_of("d") is None


def put(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    *parents, key = [int(k) if k.isdigit() else k for k in path.split(".")]

    def edit(plain: dict[str, Any]) -> None:
        target: Any = plain
        for parent in parents:
            target = target[parent]
        target[key] = value

    return edit


EDITS = {
    "a gap": put("stages.1.start", 4),
    "an overlap": put("stages.1.start", 2),
    "an empty stage": put("stages.0.stop", 0),
    "ends early": put("stages.1.stop", 4),
    "ends late": put("num_blocks", 4),
    "no stage": put("stages", []),
    "no peer": put("stages.1.peers", []),
    "peer in two stages": put("stages.1.peers", ["a"]),
    "peer twice in a stage": put("stages.0.peers", ["a", "a"]),
    "share missing": put("stages.0.samples", [4]),
    "a share of nothing": put("stages.0.samples", [0, 4]),
    "shares of another micro-batch": put("stages.0.samples", [2, 3]),
    "warm-up rises": put("stages.1.warm_up", 4),
    "warm-up beyond the next batch's first": put("stages.0.warm_up", 10),
    "no warm-up": put("stages.1.warm_up", 0),
    "left out and in": put("left_out", ["a"]),
    "left out of order": put("left_out", ["e", "d"]),
    "no micro-batch": put("num_micro_batches", 0),
    "extra key": put("more", 1),
    "samples as text": put("micro_batch", "4"),
    "missing key": lambda plain: plain.pop("model"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_does_not_hold_together_is_refused(case: str) -> None:
    plain = json.loads(plan().to_json())
    EDITS[case](plain)
    with pytest.raises(RemoteError):
        pipeline_plan_from_json(json.dumps(plain, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (MAX_PLAN_BYTES + 1)])
def test_what_is_no_plan_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        pipeline_plan_from_json(data)


def test_only_the_canonical_text_is_a_plan() -> None:
    with pytest.raises(RemoteError, match="canonical"):
        pipeline_plan_from_json(json.dumps(json.loads(plan().to_json())))
