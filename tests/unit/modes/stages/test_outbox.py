"""Stage messages between a trainer and its node: bounded on their way out, checked on their way in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from p2ptrain.core.stages.commands import Deliver, SendStageMessage, StageMessagesSent
from p2ptrain.errors import RemoteError
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.modes.stages import messages
from p2ptrain.modes.stages.messages import Outbox, read_message


def message(step: int) -> StageMessage:
    return StageMessage("b" * 16, "forward", step, 0, 0, {"x": torch.full((3,), float(step))})


def test_no_more_waits_at_the_node_than_it_is_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MESSAGES_AHEAD_BYTES", 1)
    said: list[Any] = []
    outbox = Outbox(said.append)
    outbox.begin(4)
    outbox.add(message(step) for step in range(3))
    outbox.hand_over()
    assert [sent.step for sent in said] == [0] and outbox and not outbox.has_room
    num_bytes = len(said[0].message)
    outbox.sent(StageMessagesSent(3, num_bytes))
    assert not outbox.has_room, "of another plan"
    outbox.sent(StageMessagesSent(4, num_bytes))
    outbox.sent(StageMessagesSent(4, 0))
    outbox.hand_over()
    assert [sent.step for sent in said] == [0, 1] and {sent.epoch for sent in said} == {4}
    outbox.drop(2)
    assert not outbox
    outbox.begin(5)
    assert outbox.has_room


def test_what_is_handed_over_is_what_is_read() -> None:
    said: list[Any] = []
    outbox = Outbox(said.append)
    outbox.begin(1)
    outbox.add([message(7)])
    outbox.hand_over()
    (sent,) = said
    assert isinstance(sent, SendStageMessage) and sent.to == "b" * 16
    read = read_message(Deliver(1, "a" * 16, sent.work, sent.step, sent.unit, sent.row, sent.message))
    assert (read.peer, read.work, read.step, read.unit, read.row) == ("a" * 16, "forward", 7, 0, 0)
    assert torch.equal(read.tensors["x"], torch.full((3,), 7.0))
    with pytest.raises(RemoteError):
        read_message(Deliver(1, "a" * 16, "forward", 7, 0, 0, sent.message[:-1]))
