"""What people and programs are told of split training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import no_words
from p2ptrain.core.plan import Plan, unlearnt_classes
from p2ptrain.ids import PeerId
from p2ptrain.modes.split import cover
from p2ptrain.modes.split.config import split_of
from p2ptrain.modes.split.plan import Run, SeenPace, ShutOut, body_of, needs_of, rates_of, workers
from p2ptrain.modes.split.rounds.states import Ended, Gathering, Lost, State
from p2ptrain.planning.split.pairing import choices
from p2ptrain.planning.split.units import SplitPlan, Unit
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.wire.schema import to_plain
from p2ptrain.words import mbit_s

REPORT_TITLES = ("from block", "blocks")
mode_sentence, part_classes = no_words.of_choice, no_words.classes
coverage, flows = cover.coverage, cover.flows
kept_lines, kept_plain = cover.lines, no_words.plain_copies
harvest_head_line = harvest_lines = no_words.of_harvest
look_note = no_words.of_looks
harvest_plain = no_words.plain_harvest


LEAVES = (
    "of a peer that is helped, the activations of the first layers and the labels of its samples go to its helper, and "
    "can tell of the samples; these themselves stay where they are"
)

LEAVES_WITHOUT_LABELS = (
    "of a peer that is helped, the activations of the first layers and the gradients of the last ones go to its "
    "helper, and can tell of the samples and of their labels; these themselves stay where they are"
)


def job_lines(job: Job) -> list[str]:
    """What ``job check`` tells beside what all jobs have."""
    return [f"leaves    {_leaves(job)}"]


def choice_lines(job: Job) -> list[str]:
    """What whoever chooses this mode for a new job should know."""
    hint = "" if split_of(job).labels == "stay" else '; with split.labels = "stay" labels stay, too'
    return [f"mode {job.mode}: {_leaves(job)}{hint}"]


def _leaves(job: Job) -> str:
    return LEAVES_WITHOUT_LABELS if split_of(job).labels == "stay" else LEAVES


def plan_lines(plan: Plan, job: Job) -> list[str]:
    """What ``status`` tells of the plan beside who trains which part."""
    body, split = body_of(plan), body_of(plan).split
    longer = f" ({body.stretch:.2g} times as long was seen)" if body.stretch > 1 else ""
    lines = [
        f"a round is planned to take {split.round_s:.3g} s{longer}, {split.exchange_s:.2g} s of it to average the "
        f"copies, which {body.averager} does"
    ]
    if not split.helpers:
        lines.append("nobody helps: by what was measured, no round would be shorter with anybody's help")
    for unit in split.units:
        if unit.helper is None:
            lines.append(f"{unit.owner} trains alone: a round takes {unit.round_s:.3g} s")
            continue
        lines.append(
            f"{unit.owner} trains {_own_blocks(split, unit)}, {unit.helper} the others: {unit.round_s:.3g} s a round, "
            f"{_number(unit.micro_batches, 'part', 'parts')} a batch, {unit.in_flight} of them under way; granted "
            f"{_rates(unit)}; coding {unit.activations}"
        )
    for helper in split.helpers:
        tails = split.units_of(helper)
        load_s = sum(unit.helper_s for unit in tails)
        whom = ", ".join(unit.owner for unit in tails)
        share = load_s / max(split.round_s, load_s, 1e-9)
        lines.append(f"{helper} helps {whom}: {load_s:.3g} s of each round, {100 * share:.0f} % of it")
    lines += words_of_pairs(plan)
    return lines + [f"{each.peer} is {each.words}" for each in _counted(plan)]


def _shut_out(plan: Plan) -> list[ShutOut]:
    body = body_of(plan)
    return [each for each in body.shut_out if body.is_shut_out(each.peer)]


def _seen(plan: Plan) -> list[SeenPace]:
    """Whose word on their speed does not count."""
    body = body_of(plan)
    return [each for each in body.seen if each.until_round > body.from_round]


def _counted(plan: Plan) -> list[ShutOut | SeenPace]:
    return [*_shut_out(plan), *_seen(plan)]


def _rates(unit: Unit) -> str:
    return f"{mbit_s(unit.up_bytes_per_s)} Mbit/s there and {mbit_s(unit.down_bytes_per_s)} back"


def granted(plan: Plan, peer: PeerId) -> Mapping[PeerId, float]:
    """Its shares of the links to its helper, or to those that it helps."""
    return rates_of(body_of(plan).split, peer)


def plan_plain(plan: Plan) -> Mapping[str, Any]:
    """What ``status --json`` prints of the plan in this mode alone."""
    body, split = body_of(plan), body_of(plan).split
    return {
        "units": [to_plain(unit) for unit in split.units],
        "standby": list(split.standby),
        "kept_from": split.kept_from,
        "averager": body.averager,
        "from_round": body.from_round,
        "round_s": split.round_s,
        "exchange_s": split.exchange_s,
        "stretch": body.stretch,
        "shut_out": [to_plain(each) for each in _shut_out(plan)],
        "seen": [to_plain(each) for each in _seen(plan)],
    }


def plan_sentence(plan: Plan, job: Job, own: PeerId) -> str:
    """What the plan gives this peer."""
    body, split = body_of(plan), body_of(plan).split
    helped = sum(not unit.is_alone for unit in split.units)
    copies = f"{_number(len(split.units), 'copy', 'copies')} of the model, {helped} with help"
    start = f"plan of epoch {epoch_words(plan.epoch)}, {copies}"
    if own not in {peer.peer for peer in plan.peers}:
        return f"{start}: made before this peer came; {NEXT}"
    if (shut_out := body.is_shut_out(own)) is not None:
        return f"{start}: this peer is {shut_out.words}"
    if plan.part_of(own) is None and own not in {figures.peer for figures in body.figures}:
        return (
            f"{start}: without this peer, as the times of its blocks make no sense or its speed is not known; it "
            "stands by, and measures again when it is started anew"
        )
    if num := _unused(plan, own):
        return f"{start}: without this peer and its {num} samples: {NO_ROOM}"
    if plan.part_of(own) is None:
        return f"{start}: without this peer, whose help would make no round shorter; it stands by"
    averages = "; it averages the copies after each round" if body.averager == own else ""
    return f"{start}: this peer trains {work_text(split, own)}{averages}"


NO_SENSE = "nobody can plan with the times of this peer's blocks, which make no sense; start it again"
NEXT = "another takes its place when a round begins, if this peer has samples or makes rounds shorter"
NO_ROOM = (
    "there is not the memory to train them here, alone or with help, or a round would take months, or they are fewer "
    "than batch normalisation takes; a smaller batch_size, a narrower model or another helper may do"
)


def _unused(plan: Plan, own: PeerId) -> int:
    """How many samples a peer has that no unit is trained on."""
    split = body_of(plan).split
    return sum(peer.num_samples for peer in plan.peers if peer.peer == own and split.unit_of(own) is None)


def work_text(split: SplitPlan, own: str) -> str:
    """Which blocks it trains, and with whom."""
    return " and ".join(_unit_text(split, unit, own) for unit in _units(split, own))


def _units(split: SplitPlan, peer: str) -> list[Unit]:
    """Those that it has a part of."""
    return [unit for unit in split.units if peer in (unit.owner, unit.helper)]


def _unit_text(split: SplitPlan, unit: Unit, own: str) -> str:
    if unit.helper is None:
        return f"all {split.num_blocks} blocks alone"
    if unit.owner == own:
        return f"{_own_blocks(split, unit)} of its copy, and {unit.helper} the others ({_rates(unit)})"
    return f"blocks {unit.cut}-{split.tail_stop - 1} for {unit.owner} ({_rates(unit)})"


def _own_blocks(split: SplitPlan, unit: Unit) -> str:
    """Those of a unit that its owner trains."""
    return blocks_text([(first, stop) for peer, first, stop in split.runs_of(unit) if peer == unit.owner])


def blocks_text(runs: Sequence[Run]) -> str:
    """``blocks 0-3 and 8-8``."""
    return "blocks " + " and ".join(f"{first}-{stop - 1}" for first, stop in runs)


def _number(num: int, one: str, many: str) -> str:
    return f"{num} {one if num == 1 else many}"


def words_of_pairs(plan: Plan) -> list[str]:
    """Where the search looked at some of the helpers for each owner only."""
    body = body_of(plan)
    known = {figures.peer for figures in body.figures}
    samples = [peer.num_samples for peer in plan.peers if peer.peer in known]
    owners, free = sum(num > 0 for num in samples), sum(num == 0 for num in samples)
    chosen = choices(owners, num_free=free, num_owning=owners)
    if chosen is None:
        return []
    return [
        f"{free + owners} devices: each of the {owners} with samples was planned with {chosen} of the helpers that it "
        "could have, drawn by name, faster ones more often; another plan may be faster"
    ]


def plan_notes(plan: Plan, job: Job, own: PeerId) -> list[str]:
    """What the person at this device should know about the plan."""
    split = body_of(plan).split
    helpers = [unit.helper for unit in _units(split, own) if unit.owner == own and unit.helper]
    what, stay = ("gradients", "; their labels stay here") if split.kept_from else ("their labels", "")
    lines = [f"activations of this device's samples, and {what}, go to {helper}{stay}" for helper in helpers]
    lines += unlearnt_classes(plan, job, [unit.owner for unit in split.units])
    lines += words_of_pairs(plan)
    return lines + [f"{each.peer} is {each.words}" for each in _counted(plan) if each.peer != own]


def waiting_words(plan: Plan, own: PeerId, state: State, missing: Sequence[PeerId], *, has_all: bool = False) -> str:
    """What a peer waits for by the state of its work; "" = nothing that the state tells. ``missing``: whose updates
    the averager waits for; ``has_all``: the blocks that it gathers are here."""
    body = body_of(plan)
    if isinstance(state, Lost):
        return "a plan that begins at a saved state: this peer's work of the round was lost"
    if own not in {peer.peer for peer in plan.peers}:
        return f"work: the plan in force was made before this peer came; {NEXT}"
    if (shut_out := body.is_shut_out(own)) is not None:
        return f"work: this peer is {shut_out.words}"
    if plan.part_of(own) is None and own not in {figures.peer for figures in body.figures}:
        return f"work: {NO_SENSE}"
    if num := _unused(plan, own):
        return f"another plan: nobody trains on this peer's {num} samples: {NO_ROOM}"
    if plan.part_of(own) is None:
        return "work: no round would be shorter with this peer's help; it is planned with when others come or go"
    if isinstance(state, Gathering) and has_all:
        return f"a second peer to have all of round {state.round}, so that no device's loss takes it away"
    if isinstance(state, Gathering):
        rounds = _number(state.round, "round", "rounds")
        return f"{blocks_text(needs_of(body.split, own))} after {rounds}, from whoever has them"
    if isinstance(state, Ended) and body.averager != own:
        return f"{body.averager} to average round {state.round}, when all are through"
    if isinstance(state, Ended) and missing:
        return f"the copies of round {state.round} of {', '.join(missing)}, to average them"
    return ""


def part_text(plan: Plan, job: Job, index: int) -> str:
    """``blocks 0-3 of its own``."""
    split = body_of(plan).split
    peer = workers(split)[index]
    texts = []
    for unit in _units(split, peer):
        where = "alone" if unit.helper is None else f"with {unit.helper}" if unit.owner == peer else f"for {unit.owner}"
        own = [(first, stop) for who, first, stop in split.runs_of(unit) if who == peer]
        texts.append(f"{blocks_text(own)} {where}")
    return ", ".join(texts)


part_name = part_text
