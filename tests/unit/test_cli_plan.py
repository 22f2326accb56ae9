"""``p2ptrain plan``: what it prints for profiles, and what it says of input that can't be planned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from p2ptrain.cli.main import main

PEERS = Path(__file__).parents[2] / "peers"
SMALL = ["plan", "--model", "lenet", "--batch-size", "8", "--micro-batches", "4"]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_plan_its_baselines_and_its_timeline_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [str(PEERS / f"{name}.toml") for name in ("old-laptop", "raspberry-pi-4", "raspberry-pi-4")]
    status, out, err = run([*SMALL, "--rate", "1000", *profiles], capsys)
    assert status == 0 and "FLOP/s" in err
    for said in ("lenet: ", "best single peer", "equal split", "data parallel", "stage 1 |", "x as long"):
        assert said in out


def test_json_is_the_plan_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--rate", "100", "--latency", "2", "--json"]
    profiles = [str(PEERS / f"{name}.toml") for name in ("raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-4")]
    status, out, err = run([*arguments, *profiles], capsys)
    plain = json.loads(out)
    assert status == 0 and not err
    assert [peer["name"] for peer in plain["peers"]] == ["raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-4#2"]
    assert all(peer["link_bytes_per_s"] == 12.5e6 and peer["times"] == "profile" for peer in plain["peers"])
    assert plain["latency_s"] == 0.002 and plain["round_s"] <= plain["baselines"]["best single peer"]["round_s"]
    assert plain["plan"]["micro_batch"] * plain["plan"]["num_micro_batches"] == 8


def test_the_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    picture = tmp_path / "timeline.png"
    status, _, _ = run([*SMALL, "--png", str(picture), str(PEERS / "old-laptop.toml")], capsys)
    assert status == 0 and picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--model", "lenet"], "PROFILE"),
        ([*SMALL, "toaster"], "p2ptrain probe"),
        ([*SMALL, "{zero}"], "flops_per_s.value: 0 is outside"),
        ([*SMALL, "{nan}"], "flops_per_s.value: nan is not a number"),
        ([*SMALL, "{tiny}"], "no plan fits into the memory"),
        ([*SMALL, "{good}", "--batch-size", "9"], "--batch-size 9"),
        ([*SMALL, "{good}", "--rate", "0"], "--rate"),
        ([*SMALL, "{good}", "--input-shape", "28"], "--input-shape 28: write channels"),
        ([*SMALL, "{good}", "--png", "/nowhere/at/all.png"], "no such folder"),
        (["plan", "--model", "lenot", "{good}"], "'lenot' is not known"),
    ],
)
def test_bad_input_is_one_line_with_a_next_step(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (PEERS / "old-laptop.toml").read_text()
    places = {"good": good, "zero": good.replace("value = 20e9", "value = 0", 1)}
    places["nan"] = good.replace("value = 20e9", "value = nan", 1)
    places["tiny"] = good.replace("value = 2_000_000_000", "value = 1_100_000", 1)
    for name, text in places.items():
        (tmp_path / f"{name}.toml").write_text(text)
    names = {name: os.fspath(tmp_path / f"{name}.toml") for name in places}
    status, out, err = run([each.format(**names) for each in arguments], capsys)
    assert status == 2 and not out
    assert err.startswith("p2ptrain: ") and err.count("\n") == 1 and said in err
