"""What arrives at a pipeline stage: stage messages not due or not sound are refused, and change nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from pipeline_group import Group, cuts, pipeline, same
from torch import Tensor

from p2ptrain.config import Coding
from p2ptrain.errors import RemoteError
from p2ptrain.learning.pipeline.codec import Encoder
from p2ptrain.learning.pipeline.rows import MESSAGE_BYTES, StageMessage, cut_rows, overlapping, row_ranges

PLAN = pipeline(cuts("lenet", ((5, 3), (2, 6), (8,))), units=4, warm_up=(3, 2, 1))


@cache
def recorded() -> tuple[tuple[str, StageMessage], ...]:
    """(sender, stage message) of everything that is sent in two batches."""
    group = Group("lenet", PLAN)
    sent: list[tuple[str, StageMessage]] = []
    deliver = group.deliver

    def noted(one: tuple[str, StageMessage]) -> None:
        sent.append(one)
        deliver(one)

    group.deliver = noted  # type: ignore[method-assign]
    group.run(2)
    return tuple(sent)


def before(work: str, receiver: str) -> tuple[Group, StageMessage]:
    """A group in which the next stage message to be delivered is the first such one of the second batch, and it."""
    group = Group("lenet", PLAN).run(1)
    for peer in group.peers.values():
        peer.stop_at = 2
    while True:
        group.advance_all()
        for place, (sender, message) in enumerate(group.pending):
            if message.work == work and message.peer == receiver:
                group.pending.pop(place)
                return group, dataclasses.replace(message, peer=sender)
        group.deliver(group.pending.pop(0))


Change = Callable[[StageMessage], StageMessage]


def fields(**values: object) -> Change:
    return lambda message: dataclasses.replace(message, **values)  # type: ignore[arg-type]


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda p: dataclasses.replace(p, tensors=p.tensors | {name: change(p.tensors[name])})


def spoilt(number: float) -> Callable[[Tensor], Tensor]:
    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[-1] = number
        return t

    return change


ROWS = {
    "stranger": (fields(peer="9z"), "stage-message-peer"),
    "of no neighbour": (fields(peer="1b"), "stage-message-peer"),
    "past": (fields(step=0), "stage-message-step"),
    "far ahead": (fields(step=3), "stage-message-step"),
    "negative step": (fields(step=-1), "stage-message-step"),
    "no such unit": (fields(unit=4), "stage-message-step"),
    "negative unit": (fields(unit=-1), "stage-message-step"),
    "not yet": (fields(unit=3), "stage-message-step"),
    "rows of others": (fields(row=5), "stage-message-rows"),
    "negative row": (fields(row=-1), "stage-message-rows"),
    "no tensors": (fields(tensors={}), "tensor-names"),
    "one too many": (lambda p: dataclasses.replace(p, tensors=p.tensors | {"1": p.tensors["0"]}), "tensor-names"),
    "number for rows": (tensor("0", lambda t: torch.tensor(1.0)), "tensor-shape"),
    "no rows": (
        lambda p: dataclasses.replace(p, tensors={n: t[:0] for n, t in p.tensors.items()}),
        "stage-message-rows",
    ),
    "more rows": (
        lambda p: dataclasses.replace(p, tensors={n: torch.cat([t] * 3) for n, t in p.tensors.items()}),
        "stage-message-rows",
    ),
    "other shape": (tensor("0", lambda t: t[:, :1]), "tensor-shape"),
    "other dtype": (tensor("0", lambda t: t.double()), "tensor-dtype"),
    "nan": (tensor("0", spoilt(math.nan)), "tensor-not-finite"),
    "infinite": (tensor("0", spoilt(-math.inf)), "tensor-not-finite"),
}
LABELS = {
    "class too high": (tensor("y", spoilt(5)), "tensor-range"),
    "class below zero": (tensor("y", spoilt(-1)), "tensor-range"),
    "labels of another kind": (tensor("y", lambda t: t.int()), "tensor-dtype"),
    "labels missing": (lambda p: dataclasses.replace(p, tensors={"0": p.tensors["0"]}), "tensor-names"),
    "fewer labels": (tensor("y", lambda t: t[:1]), "tensor-shape"),
    "labels a position": (tensor("y", lambda t: t[:, None].expand(-1, 9)), "tensor-shape"),
}


def refuses(receiver: str, group: Group, message: StageMessage, reason: str) -> None:
    with pytest.raises(RemoteError) as caught:
        group.peers[receiver].receive(message)
    assert caught.value.reason == reason


def goes_on(group: Group, receiver: str, message: StageMessage) -> bool:
    """Whether the right stage message is taken after the wrong one, and training ends as if there had been none."""
    group.peers[receiver].receive(message)
    return same(group.run(2).state(), straight())


@cache
def straight() -> dict[str, Tensor]:
    return Group("lenet", PLAN).run(2).state()


@pytest.mark.parametrize("kind", [*ROWS, *LABELS])
def test_activations_not_due_are_refused(kind: str) -> None:
    change, reason = (ROWS | LABELS)[kind]
    group, message = before("forward", "1a")
    assert message.peer == "0a"
    refuses("1a", group, change(message), reason)
    if kind == "not yet":  # three may be ahead of our backward passes
        group.peers["1a"].receive(dataclasses.replace(message, unit=2))
        refuses("1a", group, dataclasses.replace(message, unit=2), "stage-message-twice")
        return
    assert goes_on(group, "1a", message)
    refuses("1a", group, message, "stage-message-step")


@pytest.mark.parametrize("kind", ROWS)
def test_gradients_not_due_are_refused(kind: str) -> None:
    change, reason = ROWS[kind]
    group, message = before("backward", "0b")
    assert message.peer == "1b"
    if kind == "rows of others":
        change = fields(row=4)
    if kind == "of no neighbour":
        change = fields(peer="1a")
    refuses("0b", group, change(message), reason)
    assert goes_on(group, "0b", message)


SUMS = {
    "stranger": (fields(peer="9z"), "stage-message-peer"),
    "other stage": (fields(peer="1a"), "stage-message-peer"),
    "past": (fields(step=0), "stage-message-unit"),
    "far ahead": (fields(step=4), "stage-message-unit"),
    "other shard": (fields(unit=7), "stage-message-unit"),
    "other position": (fields(row=1_000_003), "stage-message-unit"),
    "nothing": (fields(tensors={}), "tensor-names"),
    "other name": (fields(tensors={"0": torch.zeros(1)}), "tensor-names"),
    "too short": (tensor("sum", lambda t: t[:-1]), "tensor-shape"),
    "other dtype": (tensor("sum", lambda t: t.half()), "tensor-dtype"),
    "nan": (tensor("sum", spoilt(math.nan)), "tensor-not-finite"),
}


@pytest.mark.parametrize("work", ["reduce", "gather"])
@pytest.mark.parametrize("kind", SUMS)
def test_parts_of_sums_not_due_are_refused(kind: str, work: str) -> None:
    change, reason = SUMS[kind]
    group, message = before(work, "0b")
    assert message.peer == "0a"
    refuses("0b", group, change(message), reason)
    assert goes_on(group, "0b", message)


@pytest.mark.parametrize(("work", "reason"), [("reduce", "stage-message-twice"), ("gather", "stage-message-unit")])
def test_parts_of_sums_are_taken_once(work: str, reason: str) -> None:
    group, message = before(work, "0b")
    group.peers["0b"].receive(message)
    refuses("0b", group, message, reason)
    group.advance_all()
    refuses("0b", group, message, reason)
    refuses("0b", group, dataclasses.replace(message, peer="0b"), "stage-message-peer")


def test_a_stage_of_one_takes_no_sums() -> None:
    group, message = before("reduce", "0b")
    refuses("2a", group, dataclasses.replace(message, peer="2a"), "stage-message-peer")


NORMS = {
    "stranger": (fields(peer="9z"), "stage-message-peer"),
    "not the first of its stage": (fields(peer="0b"), "stage-message-peer"),
    "past": (fields(step=0), "stage-message-step"),
    "ahead": (fields(step=2), "stage-message-step"),
    "a row": (fields(row=1), "stage-message-step"),
    "no such unit": (fields(unit=2), "stage-message-peer"),
    "nothing": (fields(tensors={}), "tensor-names"),
    "two": (tensor("square", lambda t: torch.cat([t, t])), "tensor-names"),
    "single": (tensor("square", lambda t: t.float()), "tensor-names"),
    "negative": (tensor("square", lambda t: -t - 1), "tensor-negative"),
    "nan": (tensor("square", spoilt(math.nan)), "tensor-negative"),
}


@pytest.mark.parametrize(("receiver", "sender"), [("1a", "2a"), ("1b", "0a")])
@pytest.mark.parametrize("kind", NORMS)
def test_norms_not_due_are_refused(kind: str, receiver: str, sender: str) -> None:
    change, reason = NORMS[kind]
    group, message = before("norm", receiver)
    assert message.peer == sender
    refuses(receiver, group, change(message), reason)
    group.peers[receiver].receive(message)
    refuses(receiver, group, message, "stage-message-twice")
    assert same(group.run(2).state(), straight())


def test_without_a_norm_none_is_taken() -> None:
    _, message = before("norm", "1a")
    refuses("1a", Group("lenet", PLAN, schedule="async"), message, "stage-message-peer")


# --- rows ---


def test_rows_go_to_those_who_own_them_in_pieces_of_limited_size() -> None:
    stage = dataclasses.replace(PLAN.stages[1], peers=("a", "b", "c"), samples=(2, 6, 4))
    ranges = row_ranges(stage)
    assert ranges == {"a": range(2), "b": range(2, 8), "c": range(8, 12)}
    own = range(1, 9)
    assert overlapping(range(2, 8), ranges) == {"b": range(2, 8)}
    receivers = overlapping(own, ranges)
    values = torch.arange(8.0)[:, None].expand(8, MESSAGE_BYTES // 4 // 3)  # three rows a stage message
    tensors = {"0": values, "y": torch.arange(8)}
    messages = list(cut_rows(tensors, own, receivers, Encoder("none", feedback=False).row_bytes(tensors)))
    assert [(peer, row, len(tensors["0"])) for peer, row, tensors in messages] == [
        ("a", 1, 1),
        *(("b", row, 2) for row in (2, 4, 6)),
        ("c", 8, 1),
    ]
    for _, row, tensors in messages:
        assert tensors["y"].tolist() == [row - 1 + n for n in range(len(tensors["0"]))]
        assert sum(t.nbytes for t in tensors.values()) <= MESSAGE_BYTES
    assert all(len(tensors["0"]) == 1 for _, _, tensors in cut_rows({"0": values}, own, receivers, MESSAGE_BYTES + 1))


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
@pytest.mark.parametrize("shape", [(300, 500), (7,), (1,), (16, 64, 64)])
def test_rows_are_cut_by_what_they_are_when_they_are_sent(coding: Coding, shape: tuple[int, ...]) -> None:
    encoder, rows = Encoder(coding, feedback=True), {"0": torch.randn(12, *shape), "y": torch.arange(12)}
    sent = [encoder.encode(cut) for *_, cut in cut_rows(rows, range(12), {"a": range(12)}, encoder.row_bytes(rows))]
    sizes = [sum(tensor.nbytes for tensor in payload.values()) for payload in sent]
    assert sum(sizes) == 12 * encoder.row_bytes(rows)
    assert max(sizes) <= MESSAGE_BYTES and len(sent) <= 1 + 2 * sum(sizes) // MESSAGE_BYTES, "none goes half empty"


def test_everything_that_is_sent_is_of_limited_size() -> None:
    sent = recorded()
    assert {message.work for _, message in sent} == {"forward", "backward", "reduce", "gather", "norm"}
    assert all(sum(t.nbytes for t in message.tensors.values()) <= MESSAGE_BYTES for _, message in sent)
