"""Profiles of blocks travel as canonical JSON, and nothing that makes no sense gets in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from p2ptrain.errors import RemoteError
from p2ptrain.planning.devices.blocks import BlockProfile, BlockTimes, ModelProfile
from p2ptrain.planning.devices.profile_codec import (
    MAX_PROFILE_BYTES,
    chain_hash,
    model_from_json,
    model_to_json,
    profile_from_json,
    profile_to_json,
)

MODEL = ModelProfile("net", 12, tuple(BlockProfile(f"b{i}", 10, 20, 4, 8, 8, i < 2) for i in range(3)))
TIMES = BlockTimes((2, 8), ((0.25, 0.0, 0.5), (1.0, 0.0, 2.0)), ((0.5, 0.001, 1.0), (1.5, 0.004, 3.0)), 1.5e-9)


def test_times_come_back_as_they_were_with_the_name_of_their_blocks() -> None:
    profile = profile_from_json(profile_to_json(MODEL, TIMES).encode())
    assert profile.times == TIMES and profile.chain == chain_hash(MODEL)


def test_times_are_rounded_to_what_a_clock_is_good_for_and_only_once() -> None:
    long = BlockTimes((1,), ((1 / 3, 2e-9 / 3, 123456.0),), ((1.0, 1.0, 1.0),))
    text = profile_to_json(MODEL, long)
    times = profile_from_json(text).times
    assert times.forward_s == ((0.3333, 6.667e-10, 123500.0),)
    assert profile_to_json(MODEL, times) == text


def test_models_come_back_and_every_figure_of_theirs_is_in_their_name() -> None:
    assert model_from_json(model_to_json(MODEL).encode()) == MODEL
    others = [dataclasses.replace(MODEL, name="other"), dataclasses.replace(MODEL, input_bytes=13)]
    for field in dataclasses.fields(BlockProfile):
        value = getattr(MODEL.blocks[0], field.name)
        changed = dataclasses.replace(
            MODEL.blocks[0], **{field.name: value + "x" if isinstance(value, str) else value + 1 if value != 1 else 2}
        )
        if field.name == "cut_after":
            changed = dataclasses.replace(MODEL.blocks[0], cut_after=False)
        others.append(dataclasses.replace(MODEL, blocks=(changed, *MODEL.blocks[1:])))
    names = {chain_hash(model) for model in (MODEL, *others)}
    assert len(names) == len(others) + 1 and all(len(name) == 64 for name in names)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda plain: plain.update({key: value})


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no batch size": lambda plain: plain.update(batch_sizes=[], forward_s=[], backward_s=[]),
    "sizes fall": put("batch_sizes", [8, 2]),
    "size twice": put("batch_sizes", [2, 2]),
    "size zero": put("batch_sizes", [0, 8]),
    "too few rows": put("forward_s", [[1.0, 1.0, 1.0]]),
    "rows of unlike lengths": put("backward_s", [[1.0, 1.0, 1.0], [1.0, 1.0]]),
    "other blocks backward": put("backward_s", [[1.0], [1.0]]),
    "no blocks": lambda plain: plain.update(forward_s=[[], []], backward_s=[[], []]),
    "no time at all": put("forward_s", [[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]),
    "time below zero": put("forward_s", [[-0.1, 0.0, 0.5], [1.0, 0.0, 2.0]]),
    "no number": put("forward_s", [[math.nan, 0.0, 0.5], [1.0, 0.0, 2.0]]),
    "for ever": put("forward_s", [[math.inf, 0.0, 0.5], [1.0, 0.0, 2.0]]),
    "years": put("forward_s", [[1e9, 0.0, 0.5], [1.0, 0.0, 2.0]]),
    "an optimizer that takes years": put("update_s_per_byte", 1e9),
    "an optimizer of less than no time": put("update_s_per_byte", -1e-9),
    "text": put("forward_s", "abc"),
    "whole numbers": put("forward_s", [[1, 0, 2], [1, 0, 2]]),
    "a short name": put("chain", "abc"),
    "extra key": put("more", 1),
    "missing key": lambda plain: plain.pop("chain"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    plain = json.loads(profile_to_json(MODEL, TIMES))
    EDITS[case](plain)
    with pytest.raises(RemoteError):
        profile_from_json(json.dumps(plain, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (MAX_PROFILE_BYTES + 1)]
)
def test_what_is_no_profile_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        profile_from_json(data)
    with pytest.raises(RemoteError):
        model_from_json(data)


def test_only_the_canonical_text_is_a_profile() -> None:
    with pytest.raises(RemoteError, match="canonical"):
        profile_from_json(json.dumps(json.loads(profile_to_json(MODEL, TIMES))))


@pytest.mark.parametrize("key", ["forward_flops", "parameter_bytes", "cut_after", "name"])
def test_a_model_with_a_figure_of_another_kind_is_refused(key: str) -> None:
    plain = json.loads(model_to_json(MODEL))
    plain["blocks"][1][key] = -1.5
    with pytest.raises(RemoteError, match=key):
        model_from_json(json.dumps(plain))
