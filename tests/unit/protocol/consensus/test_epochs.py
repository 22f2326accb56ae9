"""Numbers of epochs, and what people see of them."""

from __future__ import annotations

import random

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.epochs import CLASSES, GENERATION, epoch_apart, epoch_words


def test_an_epoch_that_a_majority_came_to_is_said_as_it_is() -> None:
    assert [epoch_words(epoch) for epoch in (1, 7, GENERATION - 1)] == ["1", "7", str(GENERATION - 1)]


def test_epochs_that_somebody_came_to_alone_are_short_and_no_two_are_alike() -> None:
    rng = random.Random(0)
    epochs = {epoch_apart(rng.randrange(1, 4 * CLASSES * GENERATION), PeerId(f"peer{i}")) for i in range(500)}
    epochs |= {epoch + 1 for epoch in epochs} | set(range(1, 50))
    said = {epoch_words(epoch) for epoch in epochs}
    assert len(said) == len(epochs) and max(map(len, said)) <= 8
    own = epoch_apart(3, PeerId("peer"))
    first, second = epoch_words(own), epoch_words(own + 1)
    assert (first[:2], second[:2]) == ("1-", "2-") and first[2:] == second[2:], "plans of one line show it"
