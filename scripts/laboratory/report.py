"""What a lab run is put down as: the JSON file, and the tables that are printed.

Invariant: the file holds the lab file's own words, so that the run can be repeated from it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import describe_machine, describe_versions

from laboratory.calibration import Speed
from laboratory.session import LabOutcome
from laboratory.spec import LabSpec
from p2ptrain.experiment.measure import Result
from p2ptrain.planning.plan import Plan

RESULT_VERSION = 1


def to_plain(spec: LabSpec, text: str, lab: LabOutcome, result: Result | None) -> dict[str, Any]:
    """The content of ``lab.json``."""
    speeds = {speed.device: speed for speed in lab.speeds}
    return {
        "version": RESULT_VERSION,
        "lab": spec.name,
        "lab_file": text,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "started_at": lab.started_at,
        "formed_s": lab.outcome.formed_s,
        "trained_s": lab.outcome.trained_s,
        "harvested_s": lab.outcome.harvested_s,
        "devices": [
            {
                "name": device.name,
                "profile": device.profile.name,
                "share": device.share,
                "rate_mbit": device.rate_mbit,
                "memory_mb": device.memory_mb,
                "nominal_samples_per_s": speeds[device.name].nominal if device.name in speeds else None,
                "measured_samples_per_s": speeds[device.name].measured if device.name in speeds else None,
                "quota_correction": speeds[device.name].correction if device.name in speeds else None,
                "peak_memory_bytes": lab.use[device.name].peak_memory_bytes,
                "cpu_s": lab.use[device.name].cpu_s,
            }
            for device in spec.devices
        ],
        "plans": [{"at_s": at_s} | plan_by_name(plan, lab.names) for at_s, plan in lab.plans],
        "accuracies": [{"at_s": round(at_s, 2), "accuracy": value} for at_s, value in lab.accuracies],
        "events": [event.to_plain() for event in lab.events],
        "result": result.to_plain() if result else None,
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
    return {"epoch": plan.epoch, "mode": plan.mode, "targets": plan.targets, "parts": parts}


def speed_table(speeds: Sequence[Speed]) -> str:
    """Nominal beside measured."""
    rows = [["device", "share", "nominal samples/s", "measured", "off", "quota x"]]
    rows += [
        [
            s.device,
            f"{s.share:g}",
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
