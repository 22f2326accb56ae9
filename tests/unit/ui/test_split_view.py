"""What ``p2ptrain plan --mode split`` shows: no text that a terminal obeys, and a timeline to scale."""

from __future__ import annotations

import json

from p2ptrain.planning.devices.blocks import BlockProfile, ModelProfile
from p2ptrain.planning.pipeline.task import PipelinePeer
from p2ptrain.planning.split.comparison import Comparison, compare
from p2ptrain.planning.split.task import SplitPeer, SplitTask
from p2ptrain.ui.split_view import LEGEND, render, spans_of, timeline_lines, to_plain
from p2ptrain.ui.timeline_text import IDLE


def comparison() -> Comparison:
    blocks = tuple(BlockProfile(f"conv{i}", 10**9, 2 * 10**9, 4000, 100, 200, True) for i in range(6))
    peers = (
        SplitPeer(PipelinePeer("weak\x1b[2J", 4e8, 1e9, 1e6), 16),
        SplitPeer(PipelinePeer("weaker", 2e8, 1e9, 1e6), 16),
        SplitPeer(PipelinePeer("strong", 4e10, 1e9, 1e7)),
        SplitPeer(PipelinePeer("hopeless", 1e6, 1e9, 1e6)),
    )
    return compare(SplitTask(ModelProfile("six\x1b", 100, blocks), peers, 8, 4, latency_s=0.001))


def test_the_text_names_units_helpers_and_who_stands_by() -> None:
    text = render(comparison())
    assert "\x1b" not in text and LEGEND in text and "stand by: hopeless" in text
    assert "labels and activations of the samples go to the helpers" in text
    unit = next(line for line in text.splitlines() if line.startswith("2     weaker"))
    assert " 0-0 " in unit and "strong" in unit and "%" in unit


def test_the_timeline_is_to_scale() -> None:
    found = comparison()
    room, plan = found.room, found.planned.plan
    until_s, spans = spans_of(room, plan)
    lines = dict(zip(("weak", "weaker", "strong"), timeline_lines(room, plan, 100), strict=False))
    for name in ("weaker", "strong"):
        text = lines[name].split("|")[1]
        busy = sum(min(s.end_s, until_s) - s.start_s for s in spans if s.peer == name) / until_s
        assert abs(sum(sign != IDLE for sign in text) / len(text) - busy) < 0.1
    assert set(lines["strong"].split("|")[1]) <= {IDLE, "1", "2"}


def test_every_number_is_in_the_json() -> None:
    found = comparison()
    plain = json.loads(json.dumps(to_plain(found)))
    plan = found.planned.plan
    assert plain["hash"] == plan.hash and plain["plan"]["standby"] == ["hopeless"]
    assert plain["round_s"] == plan.round_s and plain["exchange_s"] == found.planned.cost.exchange_s
    assert plain["load_s"].keys() == {"strong"} and plain["memory_bytes"].keys() == {"strong", "weak\x1b[2J", "weaker"}
    assert plain["strategies"]["all alone"]["plan"]["units"][0]["helper"] is None
