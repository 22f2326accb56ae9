"""What ``p2ptrain plan`` shows: every number of the plan, and a timeline that is to scale."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from p2ptrain.errors import UserError
from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.choice import WORTH
from p2ptrain.planning.pipeline.comparison import Comparison, compare
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.schedule import Span, Timeline
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask
from p2ptrain.ui.pipeline_figure import draw
from p2ptrain.ui.pipeline_view import LEGEND, render, timeline_lines, to_plain


def comparison(memory_bytes: float = 1e9) -> Comparison:
    blocks = tuple(BlockProfile(f"conv{i}", 10**9, 2 * 10**9, 4000, 100, 200, True) for i in range(6))
    peers = (
        PipelinePeer("fast", 4e9, memory_bytes, 1e6),
        PipelinePeer("slow\x1b[2J", 2e9, memory_bytes, 1e6),
        PipelinePeer("hopeless", 1e6, memory_bytes, 1e6),
    )
    return compare(Fleet(PipelineTask(ModelProfile("six", 100, blocks), peers, 2, 4, 0.001)))


def test_the_text_names_stages_left_out_peers_and_baselines() -> None:
    text = render(comparison())
    assert "conv0" in text and "left out: hopeless" in text
    for name in ("best single peer", "equal split", "data parallel"):
        assert name in text
    assert text.count(" x as long") == 3 and LEGEND in text
    assert "\x1b" not in text


def test_a_pipeline_that_promises_little_is_said_not_to_be_worth_it() -> None:
    """The second device is a 25th as fast as the first: it can have one sample of a batch's 32."""
    found = comparison()
    assert found.preferred_peer is None and to_plain(found)["preferred_peer"] is None
    assert "would rather" not in render(found)
    task = found.task
    slow = dataclasses.replace(task.peers[1], flops_per_s=0.16e9)
    poor = compare(Fleet(dataclasses.replace(task, peers=(task.peers[0], slow), micro_batch=2, num_micro_batches=16)))
    gain = to_plain(poor)["baselines"]["best single peer"]["batch_s"] / poor.planned.cost.batch_s
    assert 1.0 < gain < WORTH and not poor.planned.plan.is_alone
    assert poor.preferred_peer == to_plain(poor)["preferred_peer"] == "fast"
    assert f"a group would rather train on fast alone: a pipeline has to promise {WORTH:g} x its speed" in render(poor)
    alone = compare(Fleet(dataclasses.replace(task, peers=task.peers[:1])))
    assert alone.planned.plan.is_alone and alone.preferred_peer is None


def test_what_does_not_fit_is_said() -> None:
    lines = render(comparison(memory_bytes=60_000)).splitlines()
    assert any(line.startswith("best single peer ") and "does not fit into memory" in line for line in lines)
    assert to_plain(comparison(memory_bytes=60_000))["baselines"]["best single peer"] is None


def test_json_has_every_number_and_no_nan() -> None:
    found = comparison()
    plain = json.loads(json.dumps(to_plain(found), allow_nan=False))
    assert plain["batch_s"] == found.planned.cost.batch_s
    assert plain["plan"]["left_out"] == ["hopeless"] and plain["hash"] == found.planned.plan.hash
    assert plain["baselines"]["best single peer"]["batch_s"] >= plain["batch_s"]
    passes = [[span for span in stage if span[0] != "update"] for stage in plain["spans"]]
    assert [len(stage) for stage in passes] == [2 * plain["plan"]["num_micro_batches"]] * len(plain["plan"]["stages"])
    assert plain["peers"][0] == {
        "name": "fast",
        "flops_per_s": 4e9,
        "memory_bytes": 1e9,
        "link_bytes_per_s": 1e6,
        "times": "profile",
    }


def test_the_timeline_is_to_scale() -> None:
    spans = (
        Span(0, "forward", 0, 0.0, 2.0),
        Span(0, "backward", 0, 5.0, 9.0),
        Span(0, "update", 0, 9.0, 10.0),
        Span(1, "forward", 0, 2.0, 3.0),
        Span(1, "backward", 0, 3.0, 5.0),
    )
    assert timeline_lines(Timeline(10.0, spans), width=10 + len("stage 2 ||"))[:2] == [
        "stage 1 |00···aaaa=|",
        "stage 2 |··0aa·····|",
    ]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    draw(comparison(), tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="--png"):
        draw(comparison(), tmp_path / "nowhere" / "timeline.png")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"p2ptrain\[bench\]"):
        draw(comparison(), tmp_path / "timeline.png")
