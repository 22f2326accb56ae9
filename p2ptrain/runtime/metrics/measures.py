"""What a line of ``metrics.jsonl`` says: the figures that a peer tells of itself, each with its unit.

    time           s since 1970, when it was heard here
    kind           "metrics"; or "job", a line with what is trained; "model", the assembled model as it was looked at
    init           of a job: sha256 of the weights that it begins with, if it begins with some
    job, peer      ids; ``name``: of the peer; ``own``: whether it is the one that writes
    phase          what the peer does: waiting, training, trained, fitting, done, failed
    epoch, part    of the plan; which sub-model, stage, or work on units, from 0
    round, step    rounds done; optimizer steps done
    samples        samples trained on so far
    loss           mean of the round so far, nats a sample; where it is known
    accuracy       0 to 1, of what the peer trains, on its own validation samples; where it has some
    model_accuracy, model_samples
                   the same of the whole group's model, and on how many samples: of the finished one in a line of
                   "metrics" or "model", of the one that was put together after ``round`` in one of "model", with
    model_loss     its loss, nats a sample
    samples_per_s  samples trained on in a second
    bytes_sent     all that the peer sent since its start, bytes
    slowdown       time that its blocks take / time that was measured alone; 1 = as planned

Invariant: a figure that is not known is not in the line.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2ptrain.config import Job
from p2ptrain.wire.messages import Record

Value = str | int | float | bool
NUMBERS = (
    "round",
    "samples",
    "loss",
    "accuracy",
    "model_accuracy",
    "model_loss",
    "samples_per_s",
    "bytes_sent",
    "slowdown",
)
"""Those that loggers are told."""


def measures(record: Record, *, own: bool) -> dict[str, Value]:
    """Of one peer, now."""
    values: dict[str, Value] = {
        "job": record.job,
        "peer": record.peer,
        "name": record.name,
        "own": own,
        "phase": record.phase,
        "epoch": record.epoch,
        "part": record.part,
        "round": record.round,
        "step": record.step,
        "samples": record.samples,
        "bytes_sent": record.bytes_sent,
    }
    if record.loss:  # 0: not known
        values["loss"] = round(record.loss, 6)
    if record.accuracy >= 0 and record.model_samples:
        values |= {"model_accuracy": round(record.accuracy, 6), "model_samples": record.model_samples}
    elif record.accuracy >= 0:
        values["accuracy"] = round(record.accuracy, 6)
    if record.samples_per_s:
        values["samples_per_s"] = round(record.samples_per_s, 3)
    if record.slowdown != 1.0:
        values["slowdown"] = round(record.slowdown, 3)
    return values


def job_measures(job: Job) -> dict[str, Value]:
    """What is trained: so that figures can be read without the job."""
    values: dict[str, Value] = {
        "job": job.id,
        "name": job.name,
        "mode": job.mode,
        "model": job.model.name,
        "rounds": job.training.rounds,
        "classes": len(job.data.classes),
    }
    return values | ({"init": job.model.init} if job.model.init else {})


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """What a logger is told."""
    return {name: float(values[name]) for name in NUMBERS if name in values}
