"""What the group found when it looked at its model, in sentences: how good it is, and where a part alone is better.

Invariant: every number comes from the verdict, and nothing that is worse goes unsaid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.learning.candidates import FITTED, JOINED, owner_of, part_left_out, part_of
from p2ptrain.modes.tasks.head.verdict import Spoils, Verdict
from p2ptrain.words import listed, percent, word

MANY_CLASSES = 100
"""With more (of text each byte is one) it is nothing to warn of that some are never recognised."""


def verdict_lines(verdict: Verdict, plan: Plan, classes: Sequence[str], name: Callable[[PeerId], str]) -> list[str]:
    """``name``: what people call a peer."""
    if not verdict.samples:
        return []
    share = percent(verdict.accuracy())
    lines = [f"on {verdict.samples:,} validation samples of all devices: {share} right{_head(verdict, plan, name)}"]
    weak = [classes[c] for c, right in enumerate(verdict.per_class()) if right == 0]
    if weak and len(classes) <= MANY_CLASSES:
        lines.append(f"NONE of the validation samples of {listed(weak)} is recognised: bring more samples of them")
    best = verdict.best_member
    if best is not None and len(verdict.within) > 1 and verdict.chosen in (FITTED, JOINED):
        peer, own, group = best
        lines.append(
            f"best by itself, what {name(peer)} trained: {percent(own)} among its classes; the group's model there: "
            f"{percent(group)}"
        )
    for worse in verdict.worse():
        named = f", clearly so on {listed([classes[c] for c in worse.classes])}" if worse.classes else ""
        lines.append(
            f"THE GROUP MADE IT WORSE: among its classes what {name(worse.peer)} trained gets "
            f"{percent(worse.own_accuracy)} right by itself, the group's model {percent(worse.group_accuracy)}{named}. "
            + _advice(plan)
        )
    less = part_left_out(verdict.chosen)
    out = plan.parts[less].trainers if less is not None and less < len(plan.parts) else ()
    return lines + [_spoils(each, name, is_out=each.peer in out) for each in verdict.spoilers()]


def left_out_line(verdict: Verdict, left_out: Collection[PeerId]) -> str:
    """Of a model without what these trained: what is known of it."""
    if len(left_out) == 1 and verdict.samples and (right := verdict.without.get(*left_out)) is not None:
        whole = percent(sum(verdict.correct[verdict.order[0]]) / verdict.samples)
        without = percent(sum(right) / verdict.samples)
        return f"on {verdict.samples:,} validation samples of all devices: {without} right without it, {whole} with it"
    return "nobody has counted what the model gets right without these; test it with --data"


def _spoils(found: Spoils, name: Callable[[PeerId], str], *, is_out: bool) -> str:
    who = name(found.peer)
    advice = "It is left out" if is_out else f"Leave it out with `p2ptrain harvest --without {word(who)}`"
    own = f"; what it trained gets {percent(found.own_accuracy)} right by itself" if found.own_accuracy >= 0 else ""
    if found.is_worse:
        return (
            f"{who} MAKES THE MODEL WORSE: without what it trained {percent(found.without_accuracy)} of all are right, "
            f"with it {percent(found.accuracy)}{own}. {advice}"
        )
    return (
        f"WHAT {who} TRAINED KNOWS LITTLE: among its classes it gets {percent(found.own_accuracy)} right by itself, "
        f"that of others {percent(found.others_accuracy)}. The model is {percent(found.accuracy)} right with it, "
        f"{percent(found.without_accuracy)} without. {advice}"
    )


def _head(verdict: Verdict, plan: Plan, name: Callable[[PeerId], str]) -> str:
    """Which of the candidates was taken, where that is not the one that was meant to be."""
    part, owner = part_of(verdict.chosen), owner_of(verdict.chosen)
    if owner is not None:
        other = percent(verdict.accuracy(FITTED if FITTED in verdict.correct else JOINED))
        return f", by what {name(PeerId(owner))} trained alone: the mean of all devices' copies gets less ({other})"
    if part is not None:
        other = percent(verdict.accuracy(FITTED if FITTED in verdict.correct else JOINED))
        who = ", ".join(map(name, plan.parts[part].trainers)) if part < len(plan.parts) else ""
        return f", by the part of {who or part} alone: all parts together get less ({other})"
    less = part_left_out(verdict.chosen)
    if less is not None:
        who = ", ".join(map(name, plan.parts[less].trainers)) if less < len(plan.parts) else ""
        whole, doubt = percent(verdict.accuracy(verdict.order[0])), verdict.doubt
        if doubt is not None and doubt.part == less:
            why = "knows little by itself" if doubt.why == "knows little" else "outvotes all others together"
            return f", without the part of {who or less}, which {why} (with it: {whole})"
        return f", without the part of {who or less}: with it they get less ({whole})"
    if verdict.chosen == JOINED and FITTED in verdict.correct:
        return f", by the parts' own last layers: the fitted one gets less ({percent(verdict.accuracy(FITTED))})"
    return ""


def _advice(plan: Plan) -> str:
    if plan.mode == "tasks":
        return "Train longer (job new --rounds), or whole models (job new --mode replicas)"
    return "Train longer (job new --rounds), or bring more samples of these classes"


def verdict_plain(verdict: Verdict, classes: Sequence[str], name: Callable[[PeerId], str]) -> dict[str, Any]:
    """For programs."""
    best = verdict.best_member
    return {
        "samples": verdict.samples,
        "accuracy": verdict.accuracy() if verdict.samples else None,
        "head": verdict.chosen,
        "candidates": {name: sum(right) for name, right in verdict.correct.items()},
        "per_class": {
            name: right / total if total else None
            for name, right, total in zip(classes, verdict.correct[verdict.chosen], verdict.totals, strict=True)
        },
        "best_member": None if best is None else {"peer": best[0], "accuracy": best[1], "model_accuracy": best[2]},
        "contributions": [
            {
                "peer": peer,
                "name": name(peer),
                "own_accuracy": sum(own) / sum(asked) if sum(asked) else None,
                "accuracy_without": sum(verdict.without[peer]) / verdict.samples
                if peer in verdict.without and verdict.samples
                else None,
            }
            for peer, (asked, own, _) in sorted(verdict.within.items())
        ],
        "spoilers": [
            {"peer": each.peer, "name": name(each.peer), "makes_worse": each.is_worse} for each in verdict.spoilers()
        ],
        "worse": [
            {
                "peer": worse.peer,
                "classes": [classes[c] for c in worse.classes],
                "own_accuracy": worse.own_accuracy,
                "model_accuracy": worse.group_accuracy,
            }
            for worse in verdict.worse()
        ],
    }
