"""``p2ptrain plan --mode split``: what it prints, and what it says of input that can't be planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

from p2ptrain.planning.split.strategies import strategies

PEERS = Path(__file__).parents[3] / "peers"
NAMES = ("raspberry-pi-4", "old-laptop", "desktop-gpu")
PROFILES = [str(PEERS / f"{name}.toml") for name in NAMES]
SPLIT = ["plan", "--mode", "split", "--model", "vgg11", "--batch-size", "32", "--micro-batches", "4"]


def test_units_helpers_strategies_and_timeline_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    picture = tmp_path / "timeline.png"
    arguments = [*SPLIT, "--rate", "100", "--helper", "desktop-gpu", "--png", str(picture), *PROFILES]
    status, out, err = run(arguments, capsys)
    assert status == 0 and "FLOP/s" in err and picture.stat().st_size > 1000
    for said in (*strategies(), "share up", "in flight", "labels and activations", "x as long", "no plan's round"):
        assert said in out
    lines = out.splitlines()
    assert (
        sum(line.startswith(("raspberry-pi-4 ", "old-laptop ", "desktop-gpu ")) and "|" in line for line in lines) == 3
    )


def test_json_is_the_plan_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SPLIT, "--rate", "100", "--helper", "desktop-gpu", "--samples", "500", "--samples", "old-laptop=200"]
    status, out, err = run([*arguments, "--json", *PROFILES], capsys)
    plain = json.loads(out)
    assert status == 0 and not err
    assert {p["name"]: p["samples"] for p in plain["peers"]} == {
        "raspberry-pi-4": 500,
        "old-laptop": 200,
        "desktop-gpu": 0,
    }
    units = {unit["owner"]: unit for unit in plain["plan"]["units"]}
    assert units.keys() == {"raspberry-pi-4", "old-laptop"}
    assert {unit["helper"] for unit in units.values()} == {"desktop-gpu"}
    for name, (up, down) in plain["link_shares"].items():
        assert 0 < up <= 1 and 0 < down <= 1, name
    assert sum(up for up, _ in plain["link_shares"].values()) <= 1 + 1e-5
    assert plain["strategies"].keys() == strategies().keys() and plain["fits"]
    assert all(plain["round_s"] <= other["round_s"] * (1 + 1e-9) for other in plain["strategies"].values())
    assert plain["bound_s"] <= plain["round_s"] and plain["closed_s"] <= plain["train_s"]


def test_one_medium_and_one_tail(capsys: pytest.CaptureFixture[str]) -> None:
    common = [*SPLIT, "--rate", "20", "--helper", "desktop-gpu", "--json", *PROFILES]
    switched = json.loads(run(common, capsys)[1])
    shared = json.loads(run([*common, "--medium", "shared"], capsys)[1])
    assert shared["round_s"] > switched["round_s"] and shared["plan"]["medium"] == "shared"
    assert sum(sum(both) for both in shared["link_shares"].values()) <= 1 + 1e-5
    tails = json.loads(run([*common, "--tails", "shared"], capsys)[1])
    assert tails["plan"]["tails"] == "shared"


def test_nobody_that_helps_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run([*SPLIT, *PROFILES[:1]], capsys)
    assert status == 0 and "all train alone" in out and "labels and activations" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--helper", "nobody"], "--helper nobody: no profile is named so"),
        (["--samples", "many"], "--samples many: write a number"),
        (["--samples", "nobody=3"], "PEER=NUMBER with one of raspberry-pi-4"),
        (["--samples", "0"], "nobody has samples"),
        (["--medium", "shared"], "--medium shared: say what the medium carries"),
        (["--schedule", "async"], "--schedule: split training"),
        (["--activations", "int8"], "--activations: split training"),
        (["--mode", "pipeline", "--helper", "old-laptop"], "--helper: a pipeline has no use for it"),
        (["--mode", "pipeline", "--tails", "replica"], "--tails: a pipeline has no use for it"),
    ],
)
def test_bad_input_is_one_line_with_a_next_step(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run([*SPLIT, *PROFILES, *arguments], capsys)
    assert status == 2 and not out
    assert err.startswith("p2ptrain: ") and err.count("\n") == 1 and said in err


def test_a_room_without_the_memory_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tmp_path / "tiny.toml"
    tiny.write_text((PEERS / "old-laptop.toml").read_text().replace("value = 2_000_000_000", "value = 1_100_000", 1))
    status, out, err = run([*SPLIT, str(tiny)], capsys)
    assert status == 2 and not out and "tiny has not the memory" in err and "nobody to help" in err
