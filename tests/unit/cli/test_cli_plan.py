"""``p2ptrain plan``: what it prints for profiles, and what it says of input that can't be planned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from command_line import run

from p2ptrain.config import CODINGS
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.learning.models import build_model
from p2ptrain.planning.devices.blocks import BlockTimes
from p2ptrain.planning.devices.profile_codec import chain_hash
from p2ptrain.planning.devices.profile_times import MeasuredBlocks
from p2ptrain.planning.devices.profiles import read_profile

PEERS = Path(__file__).parents[3] / "peers"
SMALL = ["plan", "--model", "lenet", "--batch-size", "8", "--micro-batches", "4"]


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
    assert plain["latency_s"] == 0.002 and plain["batch_s"] <= plain["baselines"]["best single peer"]["batch_s"]
    assert plain["plan"]["micro_batch"] * plain["plan"]["num_micro_batches"] == 8


def test_without_a_flush_a_batch_is_done_sooner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [str(PEERS / "raspberry-pi-4.toml")] * 3
    arguments = ["plan", "--model", "vgg11", "--batch-size", "32", "--micro-batches", "4", "--rate", "1000"]
    found = {}
    for schedule in ("sync", "async"):
        status, out, _ = run([*arguments, "--schedule", schedule, "--json", *profiles], capsys)
        found[schedule] = json.loads(out)
        assert status == 0
    num = found["async"]["batches_in_a_row"]
    assert found["sync"]["batches_in_a_row"] == 1 and num * found["async"]["plan"]["num_micro_batches"] == 64
    assert found["async"]["batch_s"] < 0.9 * found["sync"]["batch_s"]
    picture = tmp_path / "timeline.png"
    status, out, _ = run([*arguments, "--schedule", "async", "--png", str(picture), *profiles], capsys)
    assert status == 0 and f"{num} batches in a row, without a flush" in out and picture.stat().st_size > 1000


def test_compressed_activations_and_gradients_take_less_of_a_slow_link(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [str(PEERS / "raspberry-pi-4.toml")] * 2
    arguments = ["plan", "--model", "vgg11", "--batch-size", "32", "--rate", "20", "--json", *profiles]
    codings = ([], ["--activations", "fp16"], ["--activations", "int8", "--gradients", "int8"])
    found = [json.loads(run([*arguments, *coding], capsys)[1]) for coding in codings]
    took = [each["baselines"]["equal split"]["batch_s"] for each in found]
    assert took[0] > took[1] > took[2]
    assert [each["batch_s"] for each in found] == sorted((each["batch_s"] for each in found), reverse=True)
    assert [each["bytes_sent_for_one"]["gradients"] for each in found] == [1.0, 1.0, 0.27]


def test_times_measured_by_the_probe_count_more_than_flops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, other = tmp_path / "mine.toml", str(PEERS / "raspberry-pi-4.toml")
    mine.write_text("# my own words\n" + (PEERS / "old-laptop.toml").read_text())
    probe = ["probe", "--model", "lenet", "-o", str(mine), "--batch-size"]
    for size in ("1", "2"):  # the second time in place of the first
        status, out, err = run([*probe, size], capsys)
        assert status == 0 and "added" in out and "4 blocks" in err
    assert mine.read_text().startswith("# my own words\n")
    (measured,) = read_profile(mine).block_times
    assert measured.model == "lenet" and measured.times.batch_sizes == (2,) and "torch" in measured.source
    assert measured.codings.keys() == set(CODINGS) and all(min(both) > 0 for both in measured.codings.values())
    status, out, err = run([*SMALL, str(mine), other], capsys)
    assert status == 0 and "measured on mine; from FLOP/s for raspberry-pi-4" in out and "p2ptrain probe" in err
    status, out, err = run([*SMALL, str(mine), "--json"], capsys)
    assert status == 0 and [peer["times"] for peer in json.loads(out)["peers"]] == ["measured"]
    status, out, _ = run([*SMALL, str(mine), "--width", "0.5"], capsys)
    assert status == 0 and "none measured for this model" in out


def test_times_that_are_none_of_the_models_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.toml"
    with torch.device("meta"):
        model = profile_blocks(
            Chain(build_model("lenet", input_shape=(1, 28, 28), num_classes=10), (1, 28, 28)), "lenet"
        )
    short = MeasuredBlocks("lenet", chain_hash(model), "by hand", BlockTimes((2,), ((0.1, 0.2),), ((0.1, 0.2),)))
    mine.write_text((PEERS / "old-laptop.toml").read_text() + short.to_toml())
    status, out, err = run([*SMALL, str(mine)], capsys)
    assert status == 2 and not out and err.count("\n") == 1
    assert "forward times are not one for each of lenet's 4 blocks" in err and "measure mine's blocks again" in err


def test_a_probe_that_adds_times_keeps_the_profiles_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text((PEERS / "old-laptop.toml").read_text())
    status, _, err = run(["probe", "--model", "lenet", "-o", str(mine), "--name", "other"], capsys)
    assert status == 2 and "leave out --name and --kind, or use --force" in err
    assert mine.read_text() == (PEERS / "old-laptop.toml").read_text()


def test_a_link_has_the_rate_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [str(PEERS / f"{name}.toml") for name in ("raspberry-pi-4", "raspberry-pi-4")]
    link = ["--link", "raspberry-pi-4:raspberry-pi-4#2=0.008"]
    before = json.loads(run([*SMALL, "--json", *profiles], capsys)[1])
    after = json.loads(run([*SMALL, "--json", *link, *profiles], capsys)[1])
    assert after["links"] == [{"peers": ["raspberry-pi-4", "raspberry-pi-4#2"], "bytes_per_s": 1000.0}]
    assert after["baselines"]["equal split"]["batch_s"] > before["baselines"]["equal split"]["batch_s"] + 1
    assert not before["links"]


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
        ([*SMALL, "{good}", "--link", "good"], "--link good: write two peers and Mbit/s"),
        ([*SMALL, "{good}", "--link", "good:bad=0"], "write two peers and Mbit/s"),
        ([*SMALL, "{good}", "--link", "good:bad=2"], "no peer is named bad; there are good"),
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
