"""What people and programs are told of a pipeline."""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.core import no_words
from p2ptrain.core.plan import Plan, unlearnt_classes
from p2ptrain.core.stages.considered import is_among_some, words_of_considered
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline import safety
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.states import Gathering, Lost, State
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.wire.messages import Record

REPORT_TITLES = ("from block", "blocks")
job_lines = choice_lines = no_words.of_job
plan_plain = no_words.plain_plan
mode_sentence, part_classes = no_words.of_choice, no_words.classes
granted = no_words.of_links
coverage, flows = safety.coverage, safety.flows
kept_lines, kept_plain = safety.lines, safety.plain
harvest_head_line = harvest_lines = no_words.of_harvest
look_note = no_words.of_looks
harvest_plain = no_words.plain_harvest


def plan_lines(plan: Plan, job: Job) -> list[str]:
    """What ``status`` tells of the plan beside its stages."""
    return words_of_considered(plan, body_of(plan).figures)


def plan_sentence(plan: Plan, job: Job, own: PeerId) -> str:
    """What the plan gives this peer."""
    part, body = plan.part_of(own), body_of(plan)
    pipeline = body.pipeline
    stages = f"{len(pipeline.stages)} stage{'s' if len(pipeline.stages) > 1 else ''}"
    start = f"plan of epoch {epoch_words(plan.epoch)}, {stages}"
    if part is None and own not in {peer.peer for peer in plan.peers}:
        return f"{start}: made before this peer joined; it stands by for the next one"
    if part is None and own not in {figures.peer for figures in body.figures}:
        if is_among_some(plan, body.figures):
            return f"{start}: without this peer: of so many devices not all were looked at; it stands by"
        return (
            f"{start}: without this peer, which is about to leave, or whose speed was not known, or whose times of its "
            "blocks make no sense; it stands by"
        )
    if part is None:
        return f"{start}: without this peer, which would only slow it down; it stands by"
    stage = pipeline.stages[part.index]
    rows = stage.samples[stage.peers.index(own)]
    share = f", {rows} of the {pipeline.micro_batch} samples of each micro-batch" if len(stage.peers) > 1 else ""
    blocks = f"blocks {stage.start}-{stage.stop - 1} of {pipeline.num_blocks}"
    return f"{start}: this peer trains stage {part.index + 1}, {blocks}{share}"


def plan_notes(plan: Plan, job: Job, own: PeerId) -> list[str]:
    """What the person at this device should know about the plan."""
    return plan_lines(plan, job) + unlearnt_classes(plan, job, body_of(plan).pipeline.stages[0].peers)


def waiting_words(plan: Plan, record: Record, state: State, strategy: str) -> str:
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
        if strategy != "planned":
            return f"a stage: plans by the baseline {strategy!r} change for no newcomer; it gets one if another is lost"
        return "a stage: this peer joined after this plan; it gets one when a plan with it is clearly faster"
    if part is None and record.leaving:
        return "nothing: others train its blocks, and it may go"
    if part is None and own not in {figures.peer for figures in body.figures}:
        if not record.profile:
            return "a stage: its speed was not known when this plan was made, and is being measured"
        if is_among_some(plan, body.figures):
            return "a stage: of so many devices not all were looked at for this plan; the next one may have it"
        return (
            "a stage: its speed was not known when this plan was made, or the times of its blocks make no sense; the "
            "next plan may have it, else start it again"
        )
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


part_name = part_text
