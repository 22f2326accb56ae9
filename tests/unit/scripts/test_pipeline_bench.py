"""What the benchmarks of pipelines make of what they see: pace, plans, losses, batches lost or done twice."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import pipeline, pipeline_accuracy, pipeline_lab, pipeline_memory, pipeline_text, replan  # noqa: E402
from benchmarks.pace import Mark, Pace, Stint  # noqa: E402
from benchmarks.pipeline_lab import Workload  # noqa: E402
from lab.jobs import job_of  # noqa: E402

BATCH = 64


def body_at(from_step: int) -> PipelineBody:
    return PipelineBody("c" * 64, SimpleNamespace(), (), (), from_step, 10)  # type: ignore[arg-type]


def status(
    plan: str, step: int, *, own: str = "", loss: float = 0.0, phase: str = "training", from_step: int = 0
) -> Any:
    record = SimpleNamespace(phase=phase, step=step, plan=own or plan, loss=loss, samples=step * BATCH)
    return SimpleNamespace(plan=SimpleNamespace(hash=plan, body=body_at(from_step)), records=[record])


def paced(*looks: tuple[float, str, int]) -> Pace:
    pace = Pace()
    for seconds, plan, step in looks:
        pace.look(seconds, status(plan, step))
    return pace


def test_the_stage_of_the_weakest_device_is_told_if_it_has_one() -> None:
    devices = pipeline_lab.devices_of({"fast": 1.0, "slow": 0.1}, 1.0, [100.0] * 2)
    stages = (Stage(0, 1, ("p1",), (4,), 2), Stage(1, 2, ("p2",), (4,), 1))
    planned = PipelinePlan("m", 2, 4, 2, stages, ())
    assert pipeline_lab.weakest_at(devices, {PeerId("p1"): "fast", PeerId("p2"): "slow"}, planned) == {
        "weakest_at": 2.0
    }
    assert pipeline_lab.weakest_at(devices, {PeerId("p3"): "slow", PeerId("p1"): "fast"}, planned) == {}


def test_a_change_of_plan_starts_the_count_anew() -> None:
    pace = paced((1.0, "a", 1), (2.0, "a", 11), (3.0, "b", 12), (3.5, "b", 12), (4.0, "b", 13), (6.0, "b", 21))
    assert pace.plans == ["a", "b"]
    assert pace.num_batches == 8
    assert pace.steps_per_s == pytest.approx(4.0)


def test_a_plan_s_own_batches_count_not_the_wait_for_its_first() -> None:
    pace = paced((1.0, "a", 1), (2.0, "a", 11))
    for seconds, step in ((3.0, 12), (9.0, 13), (10.0, 15), (12.0, 23)):
        pace.look(seconds, status("b", step, from_step=12))
    assert [mark.step for mark in pace.marks] == [1, 11, 13, 15, 23]
    assert pace.steps_per_s == pytest.approx(4.0)


def test_who_still_follows_the_plan_before_does_not_count() -> None:
    pace = paced((1.0, "a", 1), (2.0, "a", 2))
    pace.look(3.0, status("b", 9, own="a"))
    assert [mark.step for mark in pace.marks] == [1, 2]
    with pytest.raises(TimeoutError, match="too few batches"):
        pace.steps_per_s  # noqa: B018


def test_a_stint_is_over_with_its_batches_or_with_fewer_after_a_while() -> None:
    stint = Stint(batches=10, enough_batches=3, enough_s=5.0)
    quick = paced((0.0, "a", 1), (1.0, "a", 2), (2.0, "a", 11))
    assert not quick.is_enough(stint)
    quick.look(3.0, status("a", 12))
    assert quick.is_enough(stint)
    slow = paced((10.0, "a", 1), (12.0, "a", 2), (14.0, "a", 5))
    assert not slow.is_enough(stint)
    slow.look(15.0, status("a", 5))
    assert slow.is_enough(stint)


def test_devices_share_cores_and_samples() -> None:
    devices = pipeline_lab.devices_of({"fast": 1.0, "slow": 0.1}, 1.1, [100.0, 50.0], subset=30)
    assert [device.share for device in devices] == pytest.approx([1.0, 0.1])
    assert [device.shard for device in devices] == ["1/60", "2/60"]
    assert [device.rate_mbit for device in devices] == [100.0, 50.0]


def test_a_case_is_a_job_of_its_strategy() -> None:
    devices = pipeline_lab.devices_of({"a": 1.0, "b": 1.0}, 1.0, [100.0] * 2)
    workload = Workload("lenet", "digits", {"training": {"optimizer": "adamw"}}, 16, micro_batches=4, snapshot_steps=7)
    job = job_of(pipeline_lab.spec_of(workload, "equal", devices, Stint(), 1))
    assert (job.mode, pipeline_of(job).strategy, pipeline_of(job).micro_batches, pipeline_of(job).snapshot_steps) == (
        *("pipeline", "equal", 4, pipeline_lab.UNPLANNED_SNAPSHOT_STEPS),
    )
    assert (pipeline_of(job).activations, pipeline_of(job).gradients) == ("none", "none")
    coded = job_of(pipeline_lab.spec_of(dataclasses.replace(workload, crossing="int8"), "planned", devices, Stint(), 1))
    assert (pipeline_of(coded).activations, pipeline_of(coded).gradients) == ("int8", "int8")
    planned = job_of(pipeline_lab.spec_of(workload, "planned", devices, Stint(), 1))
    assert (pipeline_of(planned).strategy, pipeline_of(planned).snapshot_steps) == ("planned", 7)
    assert (job.training.optimizer, job.training.batch_size, job.seed) == ("adamw", 16, pipeline_lab.SEED + 1)
    alone = pipeline_lab.spec_of(workload, pipeline_lab.ALONE, devices, Stint(), 0)
    assert job_of(alone).mode == "replicas"
    assert [device.name for device in alone.devices] == ["a"]


def test_the_text_is_python_s_own_and_makes_a_job(tmp_path: Path) -> None:
    workload = pipeline_text.text_workload(tmp_path, 1.0)
    text = (tmp_path / "help.txt").read_text(encoding="utf-8")
    assert text == pipeline_text.python_help()
    assert len(text) > 100_000
    job = job_of(pipeline_lab.spec_of(workload, "planned", pipeline_lab.devices_of({"a": 1.0}, 1.0, [0.0]), Stint(), 0))
    assert job.data.kind == "text"
    assert job.data.input_shape == (1, 1, pipeline_text.CONTEXT)


def test_idle_is_what_the_last_reports_leave() -> None:
    journal = [{"kind": "plan"}, *({"kind": "stage", "busy": busy} for busy in (0.1, 0.5, 0.6, 0.7, 0.8, 0.9))]
    assert pipeline_lab.idle_share(journal) == pytest.approx(0.3)
    assert pipeline_lab.idle_share([{"kind": "plan"}]) is None


def test_losses_are_means_of_the_first_and_last_that_were_told() -> None:
    told = [0.0, 5.0, 5.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0]
    marks = [Mark(float(i), i, "a", 0, loss) for i, loss in enumerate(told)]
    found = pipeline_memory.losses(SimpleNamespace(pace=SimpleNamespace(marks=marks)))  # type: ignore[arg-type]
    assert found == pytest.approx({"loss_first": 4.4, "loss_last": 1.6})


# --- a device that gets slow ------------------------------------------------------------------------------------------


def replanned(halts: dict[str, int], samples: int = 100 * BATCH) -> Any:
    """Devices halt after these batches for a plan that begins after 50."""
    plans = [
        (0.0, SimpleNamespace(hash="a", epoch=1, body=body_at(0))),
        (9.0, SimpleNamespace(hash="b", epoch=2, body=body_at(50))),
    ]
    journals = {
        name: [
            {"kind": "halted", "epoch": 1, "step": -1},
            *([{"kind": "training", "epoch": 1}] if name in "xy" else []),
            {"kind": "halted", "epoch": 2, "step": step},
        ]
        for name, step in halts.items()
    }
    marks = [Mark(1.0, 1, "a", BATCH, 0.0), Mark(20.0, 100, "b", samples, 0.0)]
    job = SimpleNamespace(training=SimpleNamespace(batch_size=BATCH))
    return SimpleNamespace(
        lab=SimpleNamespace(plans=plans),
        journals=journals,
        pace=SimpleNamespace(marks=marks),
        job=job,
    )


@pytest.mark.parametrize(
    ("halts", "samples", "wrong"),
    [
        ({"x": 50, "y": 50, "late": -1}, 100 * BATCH, 0),
        ({"x": 50, "y": 53}, 100 * BATCH, 3),  # three batches are done twice
        ({"x": 48, "y": 50}, 100 * BATCH, 2),  # two are never done
        ({"x": 50, "y": 50}, 99 * BATCH, 1),  # or not counted
        ({"x": 50, "y": 50, "idle": 20}, 100 * BATCH, 0),  # it stood by, with the stage that it had before
    ],
)
def test_batches_that_are_lost_or_done_twice_are_seen(halts: dict[str, int], samples: int, wrong: int) -> None:
    assert replan._batches_wrong(replanned(halts, samples)) == wrong


def test_a_stretch_is_over_when_enough_was_done_by_a_plan_after_the_event() -> None:
    stint = Stint(batches=3, enough_batches=2, enough_s=100.0)
    pace = paced((0.0, "a", 1), (10.0, "a", 2), (19.0, "a", 20), (22.0, "a", 21))
    assert not replan._is_over(pace, 20.0, stint)
    for seconds, step in ((23.0, 22), (24.0, 23), (25.0, 24)):
        pace.look(seconds, status("b", step))
    assert not replan._is_over(pace, 20.0, stint)
    pace.look(26.0, status("b", 27))
    assert replan._is_over(pace, 20.0, stint)


@pytest.mark.parametrize(
    ("benchmark", "cases", "file"),
    [
        (pipeline_text, pipeline_text.CASES, "pipeline_text"),
        (pipeline, pipeline.CASES, "pipeline"),
        (pipeline, pipeline.CASES, "pipeline-mobilenet"),
        (pipeline, pipeline.WIRED, "pipeline-wired"),
        (pipeline_memory, pipeline_memory.CASES, "pipeline_memory"),
        (
            pipeline_accuracy,
            [pipeline_accuracy.SINGLE, *(c.name for c in pipeline_accuracy.CASES)],
            "pipeline_accuracy",
        ),
    ],
)
def test_rows_name_cases_that_there_are(benchmark: Any, cases: Collection[str], file: str) -> None:
    section = benchmark.FIGURES
    texts = [remark.text for remark in section.remarks if remark.file == file]
    for row in (*section.rows, *section.in_readme):
        texts += [row.what, row.measured, row.baseline, *row.more] if row.file == file else []
    named = {place.split("/")[0] for text in texts for place in text.split("{")[1:]}
    assert named and named <= set(cases)


def test_figures_at_one_speed_take_out_what_the_machine_did() -> None:
    def ran(samples_per_s: float, speed: float) -> Any:
        return SimpleNamespace(samples_per_s=samples_per_s, speeds={0: speed, 1: 2 * speed})

    found = pipeline_lab.compared(ran(90.0, 50.0), ran(100.0, 100.0))
    assert found == pytest.approx({"times_single": 0.9, "same_speed_times_single": 1.8})
