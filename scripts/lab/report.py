"""What a lab run is put down as: the JSON file, and the tables that are printed.

Invariant: the file holds the lab file's own words, so that the run can be repeated from it alone; and its figures are
summed up as a benchmark's are, so that scripts/figures.py makes rows of both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import Sample, describe_machine, describe_versions, summarise
from benchmarks.rows import Remark, Row, Section

from lab.calibration import Speed
from lab.session import LabOutcome
from lab.spec import Device, LabSpec
from p2ptrain.core.plan import Plan
from p2ptrain.experiment.measure import Result

RESULT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Run:
    """``result``: ``None`` if the data have no test samples."""

    lab: LabOutcome
    result: Result | None


def to_plain(
    spec: LabSpec, text: str, command_line: Sequence[str], load_before: float, runs: Sequence[Run]
) -> dict[str, Any]:
    """The content of ``lab.json``: what the figures of a benchmark's result are, and every run by itself."""
    first_plans = {json.dumps(plan_by_name(run.lab.plans[0][1], run.lab.names)) for run in runs}
    counts = {"num_runs": float(len(runs)), "num_first_plans": float(len(first_plans))}
    samples = [Sample(spec.name, number, figures(run) | counts) for number, run in enumerate(runs)]
    return {
        "version": RESULT_VERSION,
        "lab": spec.name,
        "lab_file": text,
        "tiny": False,
        "incomplete": "" if all(run.lab.speeds for run in runs) else "the devices' speeds were not measured",
        "command_line": list(command_line),
        "load_average_before": load_before,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "cases": summarise(samples),
        "runs": [_run_to_plain(spec, run) for run in runs],
    }


def figures(run: Run) -> dict[str, float]:
    """Of one run. Times are in seconds since the first process was started."""
    outcome = run.lab.outcome
    found = {
        "formed_s": outcome.formed_s,
        "training_s": run.lab.training_s,
        "trained_s": outcome.trained_s,
        "harvested_s": outcome.trained_s + outcome.harvested_s,
        "plans_in_force": float(len({record.plan for record in outcome.records.values() if record.plan})),
        "copies_harvested": float(sum(len(report.trainers) for report in outcome.harvest.report)),
    }
    if run.result is not None:
        found["accuracy"] = 100 * run.result.assembled_accuracy
        if run.result.central_accuracy is not None:
            found["central_accuracy"] = 100 * run.result.central_accuracy
    if run.lab.speeds:
        found["worst_deviation"] = 100 * max(abs(speed.deviation) for speed in run.lab.speeds)
    return found


def _run_to_plain(spec: LabSpec, run: Run) -> dict[str, Any]:
    lab, speeds = run.lab, {speed.device: speed for speed in run.lab.speeds}
    return {
        "started_at": lab.started_at,
        "formed_s": lab.outcome.formed_s,
        "training_s": lab.training_s,
        "trained_s": lab.outcome.trained_s,
        "harvested_s": lab.outcome.harvested_s,
        "devices": [_device_to_plain(device, lab, speeds.get(device.name)) for device in spec.devices],
        "plans": [{"at_s": at_s} | plan_by_name(plan, lab.names) for at_s, plan in lab.plans],
        "accuracies": [{"at_s": round(at_s, 2), "accuracy": value} for at_s, value in lab.accuracies],
        "events": [event.to_plain() for event in lab.events],
        "result": run.result.to_plain() if run.result else None,
    }


def _device_to_plain(device: Device, lab: LabOutcome, speed: Speed | None) -> dict[str, Any]:
    return {
        "name": device.name,
        "profile": device.profile.name,
        "share": device.share,
        "rate_mbit": device.rate_mbit,
        "memory_mb": device.memory_mb,
        "nominal_samples_per_s": speed.nominal if speed else None,
        "measured_samples_per_s": speed.measured if speed else None,
        "quota_correction": speed.correction if speed else None,
        "num_threads": speed.num_threads if speed else None,
        "peak_memory_bytes": lab.use[device.name].peak_memory_bytes,
        "cpu_s": lab.use[device.name].cpu_s,
    }


def plan_by_name(plan: Plan, names: Any) -> dict[str, Any]:
    """A plan in the devices' names, comparable between runs."""
    parts = [
        {
            "classes": list(part.classes),
            "share": part.share,
            "devices": sorted(names.get(peer, peer) for peer in part.trainers),
        }
        for part in plan.parts
    ]
    return {"epoch": plan.epoch, "mode": plan.mode, "targets": plan.body.targets, "parts": parts}


def speed_table(speeds: Sequence[Speed]) -> str:
    """Nominal beside measured."""
    rows = [["device", "share", "threads", "nominal samples/s", "measured", "off", "quota x"]]
    rows += [
        [
            s.device,
            f"{s.share:g}",
            f"{s.num_threads}",
            f"{s.nominal:.1f}",
            f"{s.measured:.1f}",
            f"{s.deviation:+.1%}",
            f"{s.correction:.2f}",
        ]
        for s in speeds
    ]
    return _table(rows)


def device_table(spec: LabSpec, lab: LabOutcome) -> str:
    """What each device had and used."""
    rows = [["device", "share", "Mbit/s", "peak memory", "CPU", "sent", "rounds"]]
    for device in spec.devices:
        record, use = lab.outcome.records.get(device.name), lab.use[device.name]
        rows.append(
            [
                device.name,
                f"{device.share:g}",
                f"{device.rate_mbit:g}" if device.rate_mbit else "-",
                f"{use.peak_memory_bytes / 1e6:.0f} MB",
                f"{use.cpu_s:.0f} s",
                f"{record.bytes_sent / 1e6:.1f} MB" if record else "-",
                str(record.round) if record else "-",
            ]
        )
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def log_lines(lab: LabOutcome) -> list[str]:
    """The events as a person reads them."""
    return [f"{event.at_s:8.1f} s  {event.do} {event.what}".rstrip() for event in lab.events]


def plans_line(plain: dict[str, Any]) -> str:
    """Whether the runs began alike."""
    counts = plain["cases"][0]["figures"]
    runs, plans = round(counts["num_runs"]["median"]), round(counts["num_first_plans"]["median"])
    return f"{runs} runs: {'the same first plan in all' if plans == 1 else f'{plans} different first plans'}"


FIGURES = Section(
    "Unlike devices",
    "Three unlike devices, and a room that falls in two",
    (
        Row(
            "lab-three-unlike",
            "three devices, the fastest ten times the slowest, digits, 12 rounds: from start to the harvested model;"
            " accuracy; how many different first plans in {three unlike devices/num_runs:.0f} runs",
            "{three unlike devices/harvested_s:.0f} s; {three unlike devices/accuracy:.1f} %;"
            " {three unlike devices/num_first_plans:.0f}",
            "a device's speed, furthest off what its share says: {three unlike devices/worst_deviation:.1f} %",
        ),
        Row(
            "lab-partition",
            "four devices, cut in two for 30 s while they train: plans in force after healing; devices whose copies are"
            " in the model; its accuracy",
            "{partition/plans_in_force:.0f}; {partition/copies_harvested:.0f}; {partition/accuracy:.1f} %",
        ),
        Row(
            "night",
            "three devices, {night/minutes:.0f} minutes, {night/hardships:.0f} hardships (sleep, a trainer killed, one"
            " that hangs, a terminal closed, another address, a link cut, a full disk, a leave, no power): rounds that"
            " were lost; hardships without a line in a journal; the harvested model after {night/rounds:.0f} rounds",
            "{night/lost:.0f}; {night/untold:.0f}; {night/accuracy:.1f} %",
            "open files and memory of the node that had most, in the second turn of hardships and in the last:"
            " {night/files_then:.0f}, {night/memory_mb_then:.0f} MB; {night/files_now:.0f},"
            " {night/memory_mb_now:.0f} MB",
        ),
    ),
    (
        Remark("lab-three-unlike", "The three were measured before a device of the lab stayed on one core."),
        Remark("lab-partition", "Both were measured over links whose frames the kernel handled one by one."),
        Remark(
            "night",
            "The night was measured beside other work. The line that is missing is of a disk"
            " that was full to the last byte, where the journal lies, too. It tells that lines were lost, and that the"
            " disk works again, which did not count then.",
        ),
    ),
)
