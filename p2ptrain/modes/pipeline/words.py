"""What people and programs are told of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.harvest import Harvest
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline import safety
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.states import Gathering, Lost, State
from p2ptrain.wire.messages import Record

REPORT_TITLES = ("from block", "blocks")


def job_lines(job: Job) -> list[str]:
    """What ``job check`` tells beside what all jobs have: nothing."""
    return []


def choice_lines(job: Job) -> list[str]:
    """Nothing that ``job check`` does not tell."""
    return []


def plan_lines(plan: Plan, job: Job) -> list[str]:
    """The parts say it all."""
    return []


def plan_plain(plan: Plan) -> Mapping[str, Any]:
    """The parts say it all."""
    return {}


def plan_sentence(plan: Plan, job: Job, own: PeerId) -> str:
    """What the plan gives this peer."""
    part, body = plan.part_of(own), body_of(plan)
    pipeline = body.pipeline
    start = f"plan of epoch {plan.epoch}, {len(pipeline.stages)} stage{'s' if len(pipeline.stages) > 1 else ''}"
    if part is None and own not in {peer.peer for peer in plan.peers}:
        return f"{start}: made before this peer joined; it stands by for the next one"
    if part is None and own not in {figures.peer for figures in body.figures}:
        return (
            f"{start}: without this peer, as the times of its blocks make no sense or its speed is not known; it "
            "stands by, and measures again when it is started anew"
        )
    if part is None:
        return f"{start}: without this peer, which would only slow it down; it stands by"
    stage = pipeline.stages[part.index]
    rows = stage.samples[stage.peers.index(own)]
    share = f", {rows} of the {pipeline.micro_batch} samples of each micro-batch" if len(stage.peers) > 1 else ""
    blocks = f"blocks {stage.start}-{stage.stop - 1} of {pipeline.num_blocks}"
    return f"{start}: this peer trains stage {part.index + 1}, {blocks}{share}"


def mode_sentence(plan: Plan, job: Job) -> str | None:
    """Nothing was chosen."""
    return None


def plan_notes(plan: Plan, job: Job, own: PeerId) -> list[str]:
    """The plan's sentence says it all."""
    return []


def waiting_words(plan: Plan, record: Record, state: State) -> str:
    """What the peer of this record waits for by the state of its stage; "" = nothing that the state tells."""
    own = record.peer
    part, body = plan.part_of(own), body_of(plan)
    if record.phase == "done":
        return ""
    if isinstance(state, Lost):
        return "a plan that begins at a saved step: this peer's stage was lost"
    if part is None and own not in {peer.peer for peer in plan.peers}:
        if not record.profile:
            return "a stage: this peer joined after this plan, and its speed is being measured"
        return "a stage: this peer joined after this plan; it gets one when a plan with it is clearly faster"
    if part is None and own not in {figures.peer for figures in body.figures}:
        return "a stage: nobody can plan with the times of this peer's blocks, which make no sense; start it again"
    if part is None:
        return "a stage: the plan is faster without this peer, and takes it when another is lost"
    if isinstance(state, Gathering):
        stage = body.pipeline.stages[part.index]
        return f"blocks {stage.start}-{stage.stop - 1} of step {body.from_step}, from whoever has them"
    return ""


def part_text(plan: Plan, job: Job, index: int) -> str:
    """``stage 1: blocks 0-3``."""
    stage = body_of(plan).pipeline.stages[index]
    return f"stage {index + 1}: blocks {stage.start}-{stage.stop - 1}"


def part_name(plan: Plan, job: Job, index: int) -> str:
    """What is missing where nobody has a part, in short."""
    return part_text(plan, job, index)


def part_classes(plan: Plan, job: Job | None, index: int) -> list[str]:
    """A stage has no classes of its own."""
    return []


def kept_lines(plan: Plan, here: Sequence[Record]) -> list[str]:
    """Who has copies of which blocks, and what would be lost with whom."""
    return safety.lines(plan, here)


def kept_plain(plan: Plan, here: Sequence[Record]) -> Mapping[str, Any] | None:
    return safety.plain(plan, here)


def harvest_head_line(harvest: Harvest) -> list[str]:
    """The last layer is trained as all others are."""
    return []


def harvest_lines(harvest: Harvest) -> list[str]:
    """Nobody looks at the model."""
    return []


def harvest_plain(harvest: Harvest) -> Mapping[str, Any]:
    """What ``harvest --json`` prints of this mode alone."""
    return {"validation": None}
