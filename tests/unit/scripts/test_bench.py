"""The benchmarks run in a tiny setting and write sound results."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from bench import find, main  # noqa: E402
from benchmarks import common, plots, scale, split, tasks, virtual  # noqa: E402
from benchmarks.gossip_round import exchanges_of  # noqa: E402
from benchmarks.peers import Happened, PeerProcess  # noqa: E402
from benchmarks.virtual_membership import detect_death_by_heartbeats  # noqa: E402
from lab.calibration import OffSpeedError  # noqa: E402

from p2ptrain.errors import P2PTrainError  # noqa: E402

NAMES = {"wire", "memory", "startup", "gossip_round", "scale", "gossip", "neighbours", "tasks", "tasks-cifar"}
NAMES |= {"pipeline", "pipeline-mobilenet", "pipeline-wired", "pipeline_text", "pipeline_memory", "pipeline_accuracy"}
NAMES |= {"recovery", "recovery-wide", "recovery-decoder", "recovery-planned", "replication", "leak"}
NAMES |= {"poisoning-fitted", "poisoning-replicas", "poisoning-votes", "poisoning_split"}
NAMES |= {"replan", "planner", "planner_split", "overlap-own", "overlap-resnet20", "overlap-vgg11", "overlap-digits"}
NAMES |= {"planner_rooms", "quick", "replicas"}
NAMES |= {"hostile", "hostile-short", "split", "split-mobilenet", "split-two-helpers", "split-shared-medium"}
NAMES |= {"split-memory", "split-alexnet", "split_unlike", "split_unlike-classes"}
NAMES |= {f"paper-{row}" for row in ("digits", "speakers", "vgg", "alexnet", "disjoint", "cifar100")}


def bench(*arguments: str) -> str:
    """What it prints. Not a process of its own each time: to import torch and matplotlib is most of what those take."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(list(arguments)) == 0
    return said.getvalue()


def check_result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    assert result["tiny"] and not result["incomplete"] and result["baseline"] and result["machine"]["cores"] >= 1
    assert {"python", "torch", "pyzmq", "libzmq", "p2ptrain"} <= result["versions"].keys()
    assert any(case["is_baseline"] for case in result["cases"])
    assert any(not case["is_baseline"] for case in result["cases"])
    for sample in result["samples"]:
        assert sample["figures"]
        assert all(math.isfinite(value) for value in sample["figures"].values()), sample
        assert all(value >= 0 for name, value in sample["figures"].items() if name != "difference"), sample
    for case in result["cases"]:
        assert case["num_repetitions"] == sum(s["case"] == case["case"] for s in result["samples"])
        assert all(f["low"] <= f["median"] <= f["high"] for f in case["figures"].values())
    return result


def test_list_names_every_benchmark() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    assert {line.split()[0] for line in listed.splitlines()} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_listed_name_is_a_benchmark(name: str) -> None:
    found = find(name)
    assert callable(found.run) and found.BASELINE and all(isinstance(c, common.Column) for c in found.COLUMNS)


def test_wire_writes_sound_results(tmp_path: Path) -> None:
    table = bench("wire", "--tiny", "--repeat", "2", "--out", str(tmp_path))
    result = check_result(tmp_path / "wire.json")
    cases = {case["case"].partition(": ")[2] for case in result["cases"]}
    assert {"TCP", "codec encode", "frames, CURVE", "fetch to memory", "fetch to disk"} <= cases
    assert all(case["num_repetitions"] == 2 for case in result["cases"])
    assert "fetch to disk" in table


@pytest.mark.slow
def test_gossip_round_writes_sound_results(tmp_path: Path) -> None:
    bench("gossip_round", "--tiny", "--repeat", "1", "--out", str(tmp_path))
    result = check_result(tmp_path / "gossip_round.json")
    exchange = next(case for case in result["cases"] if not case["is_baseline"])
    assert {"exchange_ms", "fetch_ms", "merge_ms", "megabytes"} <= exchange["figures"].keys()


def test_samples_are_summed_up_by_case() -> None:
    samples = [common.Sample("a", i, {"s": float(s)}, is_baseline=True) for i, s in enumerate((3, 1, 2))]
    (case,) = common.summarise(samples)
    assert case["figures"] == {"s": {"median": 2.0, "low": 1.0, "high": 3.0}}
    assert case["is_baseline"] and case["num_repetitions"] == 3


def trace(*events: tuple[float, str, dict[str, Any]]) -> PeerProcess:
    happened = [Happened(at, kind, fields) for at, kind, fields in events]
    return PeerProcess("peer", SimpleNamespace(), 0.0, happened)  # type: ignore[arg-type]


def test_an_exchange_is_read_from_two_traces() -> None:
    starter = trace(
        (1.0, "MakePayload", {"exchange": 7}),
        (1.5, "BeginBlob", {"blob": "reply"}),
        (1.6, "Merge", {"exchange": 7, "reply": False, "blob": "reply"}),
        (1.8, "note:gossip", {"bytes": 2_000_000}),
        (2.0, "MakePayload", {"exchange": 8}),
    )
    answerer = trace(
        (1.1, "BeginBlob", {"blob": "push"}),
        (1.2, "Merge", {"exchange": 40, "reply": True, "blob": "push"}),
        (1.3, "note:gossip", {"bytes": 2_000_000}),
        (1.3, "MakePayload", {"exchange": 40}),
    )
    (figures,) = exchanges_of(starter, [starter, answerer])
    assert figures == pytest.approx(
        {"megabytes": 2.0, "exchange_ms": 800, "fetch_ms": 100, "merge_ms": 200, "payload_ms": 200}
    )
    assert exchanges_of(answerer, [starter, answerer]) == []


def test_what_was_measured_before_a_time_out_is_kept(tmp_path: Path) -> None:
    def run(settings: common.Settings) -> Iterator[common.Sample]:
        yield common.Sample("a", 0, {"s": 1.0})
        raise TimeoutError("too slow")

    benchmark = SimpleNamespace(BASELINE="nothing", COLUMNS=(common.Column("s", "s"),), run=run)
    result = common.measure("example", benchmark, common.Settings(1, True), tmp_path)
    assert result["incomplete"] == "TimeoutError: too slow" and len(result["samples"]) == 1
    assert json.loads((tmp_path / "example.json").read_text()) == result


def test_what_was_measured_is_there_while_a_benchmark_runs(tmp_path: Path) -> None:
    partial = tmp_path / "example.partial.json"

    def run(settings: common.Settings) -> Iterator[common.Sample]:
        yield common.Sample("a", 0, {"s": 1.0})
        so_far = json.loads(partial.read_text())
        assert [sample["figures"] for sample in so_far["samples"]] == [{"s": 1.0}] and so_far["incomplete"] == "cut off"
        yield common.Sample("b", 0, {"s": 2.0})

    benchmark = SimpleNamespace(BASELINE="nothing", COLUMNS=(common.Column("s", "s"),), run=run)
    result = common.measure("example", benchmark, common.Settings(1, True), tmp_path)
    assert not partial.exists() and not result["incomplete"] and len(result["samples"]) == 2


def test_repetitions_are_added_to_those_there_are(tmp_path: Path) -> None:
    def run(settings: common.Settings) -> Iterator[common.Sample]:
        for repetition in settings.repetitions:
            yield common.Sample("a", repetition, {"s": 1.0 + repetition})

    benchmark = SimpleNamespace(BASELINE="nothing", COLUMNS=(common.Column("s", "s"),), run=run)
    more = common.Settings(2, more=True)
    with pytest.raises(P2PTrainError, match="nothing to add to"):
        common.measure("example", benchmark, more, tmp_path)
    common.measure("example", benchmark, common.Settings(1), tmp_path)
    result = common.measure("example", benchmark, more, tmp_path)
    assert [sample["repetition"] for sample in result["samples"]] == [0, 1, 2]
    assert result["cases"][0]["figures"]["s"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert result["repeat"] == 3 and result["command_line"][1:] == ["example", "--repeat", "3"]
    assert json.loads((tmp_path / "example.json").read_text()) == result
    (tmp_path / "example.json").write_text(json.dumps(result | {"machine": {"cpu": "another"}}))
    with pytest.raises(P2PTrainError, match="measure anew"):
        common.measure("example", benchmark, more, tmp_path)


def test_scale_writes_sound_results(tmp_path: Path) -> None:
    table = bench("scale", "--tiny", "--repeat", "1", "--out", str(tmp_path))
    result = check_result(tmp_path / "scale.json")
    figures = {case["case"]: case["figures"] for case in result["cases"]}
    for peers in (6, 12, 24):
        death = figures[f"membership, {peers} peers"]
        assert death["told_share"]["median"] == 1 and death["called_dead_wrongly"]["high"] == 0
        assert figures[f"gossip, {peers} peers"]["left_share"]["high"] < 0.01
        assert figures[f"records, {peers} peers"]["age_median_s"]["median"] < 5
    links = figures["links, 6 peers"]
    assert links["links_fewest"]["median"] == links["links_most"]["median"] == links["known_fewest"]["median"] == 5
    assert len(result["notes"]) == len(scale.LAWS) and all(note in table for note in result["notes"])


def test_a_law_is_fitted_to_the_small_sizes_alone() -> None:
    law = next(law for law in scale.LAWS if law.basis == scale.LOGARITHM[0])
    points = [(n, {"median": 1.5 + 0.5 * math.log2(n)}) for n in (10, 20, 100)]
    factors = scale.fit(law, [*points, (5000, {"median": 1e6})])
    assert factors == pytest.approx([1.5, 0.5])
    assert scale.expected(law, factors, 1024) == pytest.approx(6.5)


@pytest.mark.parametrize(("num_peers", "num_links"), [(5, 8), (40, 8), (41, 8), (600, 512)])
def test_neighbours_are_so_many_and_mutual(num_peers: int, num_links: int) -> None:
    linked = virtual.neighbours(num_peers, num_links, random.Random(1))
    for own, others in enumerate(linked):
        assert len(set(others)) == len(others) == min(num_links, num_peers - 1) and own not in others
        assert all(own in linked[other] for other in others)


def test_heartbeats_of_the_victim_alone_tell_its_death_like_all_of_them() -> None:
    whole, short = (
        detect_death_by_heartbeats(12, 3, everyone_sends=everyone_sends) for everyone_sends in (True, False)
    )
    assert whole["called_dead_wrongly"] == short["called_dead_wrongly"] == 0
    assert short["death_known_s"] == pytest.approx(whole["death_known_s"], abs=0.25)
    assert short["bytes_per_s"] == whole["bytes_per_s"]


@pytest.mark.slow
def test_gossip_writes_sound_results(tmp_path: Path) -> None:
    bench("gossip", "--tiny", "--repeat", "1", "--out", str(tmp_path))
    result = check_result(tmp_path / "gossip.json")
    (replicas,) = (case["figures"] for case in result["cases"] if not case["is_baseline"])
    assert {"accuracy", "gossip_mb", "sent_mb", "distance", "distance_03"} <= replicas.keys()


def test_pipeline_accuracy_writes_sound_results(tmp_path: Path) -> None:
    bench("pipeline_accuracy", "--tiny", "--repeat", "1", "--out", str(tmp_path))
    result = check_result(tmp_path / "pipeline_accuracy.json")
    figures = {case["case"]: {n: f["median"] for n, f in case["figures"].items()} for case in result["cases"]}
    single = figures["single"]
    assert len(result["notes"]) == 1 and "are chance" in result["notes"][0]
    assert {"accuracy_01", "accuracy_02", "train_loss"} <= single.keys()
    # Without compression and without older weights it is the same training.
    assert figures["sync"]["train_loss"] == pytest.approx(single["train_loss"], rel=1e-3)
    sent = {case: found["bytes_per_sample"] for case, found in figures.items() if case != "single"}
    assert sent["sync"] > 1.8 * sent["sync, fp16"] > 3 * sent["sync, int8"]
    assert sent["async"] == pytest.approx(sent["sync"])
    assert sent["async, int8"] == pytest.approx(sent["sync, int8"])


def example_result(tmp_path: Path) -> tuple[SimpleNamespace, dict[str, Any]]:
    def run(settings: common.Settings) -> Iterator[common.Sample]:
        yield common.Sample("theirs", 0, {"s": 2.0}, is_baseline=True)
        yield common.Sample("ours", 0, {"s": 1.0})

    benchmark = SimpleNamespace(BASELINE="nothing", COLUMNS=(common.Column("s", "time, s"),), run=run)
    return benchmark, common.measure("example", benchmark, common.Settings(1, True), tmp_path)


def test_a_picture_lies_beside_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="extra bench")
    example_result(tmp_path)
    assert (tmp_path / "example.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_figures_come_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, result = example_result(tmp_path)
    assert json.loads((tmp_path / "example.json").read_text()) == result
    assert not list(tmp_path.glob("*.png")) and plots.HOW_TO in capsys.readouterr().out


def test_an_accuracy_is_reached_at_the_first_point_that_has_it() -> None:
    curve = {"at_s_3": 40.0, "accuracy_3": 50.0, "at_s_4": 50.0, "accuracy_4": 61.0, "at_s_5": 60.0, "accuracy_5": 58.0}
    assert tasks.reached(curve, 60.0) == {"reached_s": 50.0}
    assert tasks.reached(curve, 50.0) == {"reached_s": 40.0}
    assert tasks.reached(curve, 70.0) == {}


def test_what_was_disturbed_is_measured_again_but_not_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    tries = []

    def disturbed_until(good: int) -> int:
        tries.append(good)
        if len(tries) < good:
            raise OffSpeedError("device1 got only 50% of its CPU time")
        return len(tries)

    assert tasks.undisturbed(lambda: disturbed_until(3), "a case") == 3
    assert "a case, 2 of at most 5 times: device1 got only 50%" in capsys.readouterr().err
    tries.clear()
    with pytest.raises(TimeoutError, match="device1 got only"):
        tasks.undisturbed(lambda: disturbed_until(100), "a case")
    assert len(tries) == tasks.ATTEMPTS


def test_cases_can_be_chosen_and_the_others_measured_later(tmp_path: Path) -> None:
    measured = []

    def run(settings: common.Settings) -> Iterator[common.Sample]:
        for repetition in settings.repetitions:
            for case in ("a", "b"):
                if settings.wants(case, repetition):
                    measured.append((case, repetition))
                    yield common.Sample(case, repetition, {"s": 2.0 if case == "a" else 1.0})
                    if len(measured) == 3:
                        raise KeyboardInterrupt

    benchmark = SimpleNamespace(BASELINE="nothing", COLUMNS=(common.Column("s", "s"),), run=run)
    resumed = common.Settings(2, resume=True)
    common.measure("example", benchmark, common.Settings(1, only=("b",), resume=True), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        common.measure("example", benchmark, resumed, tmp_path)
    result = common.measure("example", benchmark, resumed, tmp_path)
    assert measured == [("b", 0), ("a", 0), ("a", 1), ("b", 1)]
    assert len(result["samples"]) == 4 and result["repeat"] == 2 and not result["incomplete"]


def test_what_cases_are_of_each_other_is_of_the_same_repetition() -> None:
    def of(case: str, repetition: int, seconds: float) -> common.Sample:
        return common.Sample(case, repetition, {"round_s": seconds})

    found = split.compared([of(split.PLANNED, 0, 2.0), of(split.PLANNED, 1, 4.0), of(split.ALONE, 1, 40.0)])
    assert [(sample.case, sample.repetition) for sample in found] == [
        (split.ALONE, 1),
        *((split.PLANNED, i) for i in (0, 1)),
    ]
    assert [sample.figures.get("times_alone") for sample in found] == [1.0, None, 10.0]


def test_a_case_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["split", "--only", "nonsense"], "its cases are all alone, one mid cut"),
        (["gossip", "--resume"], "can't be chosen"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err
