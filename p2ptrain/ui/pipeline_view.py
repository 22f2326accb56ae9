"""A pipeline plan for people and programs: who trains what, what it gains, and its timeline in characters.

Invariant: reads a ``Comparison`` and nothing else; every number in the text is in the JSON too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from p2ptrain.planning.pipeline.choice import WORTH
from p2ptrain.planning.pipeline.comparison import Comparison, Priced
from p2ptrain.planning.pipeline.cost import PlanCost
from p2ptrain.planning.pipeline.schedule import Timeline
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.pipeline.task import PipelineTask
from p2ptrain.ui.timeline_text import TIMELINE_WIDTH, UPDATE, Stretch, pass_sign, seconds, timeline_text
from p2ptrain.words import clean, listed, scaled, table

TITLES = ("stage", "peer", "blocks", "samples", "warm-up", "memory", "of", "busy")
RIGHT = (0, 3, 4, 5, 6, 7)
LEGEND = "digits: forward, by micro-batch; letters: backward (a = 0); = updates the parameters; · waits"


def render(comparison: Comparison, width: int = TIMELINE_WIDTH) -> str:
    """Text for a terminal of at least ``width`` columns."""
    task, planned = comparison.task, comparison.planned
    plan, cost = planned.plan, planned.cost
    batch = plan.micro_batch * plan.num_micro_batches
    lines = [
        f"{clean(plan.model, 60)}: {plan.num_blocks} blocks, {scaled(task.model.training_flops, 'FLOP')} a sample, "
        f"{scaled(task.model.parameter_bytes, 'B')} of parameters; a batch is {batch} samples, "
        f"{plan.num_micro_batches} x {plan.micro_batch}",
        "",
        *_stage_lines(comparison),
        "",
    ]
    lines += [_times_line(task), ""]
    if plan.left_out:
        lines += [f"left out: {listed(plan.left_out, 20)}", ""]
    rows = [("this plan", seconds(cost.batch_s), "")]
    rows += [(name, *_baseline_cells(each, cost.batch_s)) for name, each in comparison.baselines.items()]
    lines += [*table([("predicted", "a batch", ""), *rows], right=(1,)), ""]
    if comparison.preferred_peer is not None:
        alone = clean(comparison.preferred_peer, 32)
        lines += [f"a group would rather train on {alone} alone: a pipeline has to promise {WORTH:g} x its speed", ""]
    if task.batches > 1:
        lines += [f"{task.batches} batches in a row, without a flush:"]
    lines += [*timeline_lines(cost.timeline, width)]
    return "\n".join(lines)


def _stage_lines(comparison: Comparison) -> list[str]:
    plan, cost, task = comparison.planned.plan, comparison.planned.cost, comparison.task
    limits = {peer.name: peer.memory_bytes for peer in task.peers}
    rows = [TITLES]
    for index, (stage, needs) in enumerate(zip(plan.stages, cost.memory_bytes, strict=True)):
        first, last = task.model.blocks[stage.start].name, task.model.blocks[stage.stop - 1].name
        names = clean(first, 20) if stage.stop == stage.start + 1 else f"{clean(first, 20)} to {clean(last, 20)}"
        for at, (peer, samples, need) in enumerate(zip(stage.peers, stage.samples, needs, strict=True)):
            rows.append(
                (
                    str(index + 1) if at == 0 else "",
                    clean(peer, 32),
                    f"{stage.start}-{stage.stop - 1}  {names}" if at == 0 else "",
                    str(samples),
                    str(stage.warm_up) if at == 0 else "",
                    scaled(need, "B"),
                    scaled(limits[peer], "B"),
                    f"{100 * cost.timeline.busy_share(index):.0f} %" if at == 0 else "",
                )
            )
    return table(rows, right=RIGHT)


def _times_line(task: PipelineTask) -> str:
    """Whose times of blocks were measured, and whose follow from FLOP/s."""
    measured = [peer.name for peer in task.peers if peer.times]
    if not measured:
        return "times of blocks: from FLOP/s; none measured for this model"
    others = [peer.name for peer in task.peers if not peer.times]
    line = f"times of blocks: measured on {listed(measured, 20)}"
    return f"{line}; from FLOP/s for {listed(others, 20)}" if others else line


def _baseline_cells(baseline: Priced | None, planned_s: float) -> tuple[str, str]:
    if baseline is None:
        return "-", "does not fit into memory"
    note = f"{baseline.cost.batch_s / planned_s:.2f} x as long"
    if not baseline.cost.fits:
        note += ", and does not fit into memory"
    return seconds(baseline.cost.batch_s), note


def timeline_lines(timeline: Timeline, width: int = TIMELINE_WIDTH) -> list[str]:
    """A line a stage: what it does over time. A character is what the stage does most in its stretch of time."""
    rows: list[tuple[str, list[Stretch]]] = []
    for stage in range(1 + max((span.stage for span in timeline.spans), default=0)):
        spans = (span for span in timeline.spans if span.stage == stage)
        rows.append((f"stage {stage + 1}", [(s.start_s, s.end_s, _sign(s.work, s.micro_batch)) for s in spans]))
    return [*timeline_text(rows, timeline.round_s, width), LEGEND]


def _sign(work: str, micro_batch: int) -> str:
    return UPDATE if work == "update" else pass_sign(work, micro_batch)


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """What ``plan --json`` prints."""
    task, planned = comparison.task, comparison.planned
    return {
        "model": {
            "name": task.model.name,
            "blocks": [block.name for block in task.model.blocks],
            "training_flops": task.model.training_flops,
            "parameter_bytes": task.model.parameter_bytes,
        },
        "plan": json.loads(planned.plan.to_json()),
        "hash": planned.plan.hash,
        "preferred_peer": comparison.preferred_peer,
        "latency_s": task.latency_s,
        "batches_in_a_row": task.batches,
        "bytes_sent_for_one": {"activations": task.forward_wire, "gradients": task.backward_wire},
        "peers": [
            {
                "name": peer.name,
                "flops_per_s": peer.flops_per_s,
                "memory_bytes": peer.memory_bytes,
                "link_bytes_per_s": min(peer.link_bytes_per_s, task.rate_bytes_per_s),
                "times": "measured" if peer.times else "profile",
            }
            for peer in task.peers
        ],
        "links": [{"peers": [pair.one, pair.other], "bytes_per_s": pair.bytes_per_s} for pair in task.pair_rates],
        **_cost(planned.cost, planned.plan),
        "spans": _spans(planned.cost.timeline, len(planned.plan.stages)),
        "baselines": {
            name: None if each is None else {"plan": json.loads(each.plan.to_json()), **_cost(each.cost, each.plan)}
            for name, each in comparison.baselines.items()
        },
    }


def _cost(cost: PlanCost, plan: PipelinePlan) -> dict[str, Any]:
    return {
        "batch_s": cost.batch_s,
        "bound_s": cost.bound_s,
        "dominant_step_s": cost.dominant_step_s,
        "fits": cost.fits,
        "memory_bytes": [list(each) for each in cost.memory_bytes],
        "busy": [cost.timeline.busy_share(stage) for stage in range(len(plan.stages))],
    }


def _spans(timeline: Timeline, num_stages: int) -> list[list[Sequence[Any]]]:
    """Of each stage: [work, micro-batch, start, end]."""
    by_stage = {stage: list(spans) for stage, spans in itertools.groupby(timeline.spans, key=lambda span: span.stage)}
    return [
        [[span.work, span.micro_batch, span.start_s, span.end_s] for span in by_stage.get(stage, [])]
        for stage in range(num_stages)
    ]
