"""Pings that wait for their acks: how often one is sent again follows from how many get lost."""

from __future__ import annotations

import random

import pytest

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.probing import Probing
from p2ptrain.protocol.group.swim import LAN

TARGET, HELPER = PeerId("t" * 16), PeerId("h" * 16)


def after_probes(loss: float, num_probes: int = 200) -> Probing:
    """Of a living target that each ping and its ack reach by chance."""
    probing, rng = Probing(LAN), random.Random(3)
    for number in range(num_probes):
        sequence = probing.start(TARGET, float(number))
        probe = probing._probes[sequence]
        while rng.random() < 1 - (1 - loss) ** 2 and probe.pings < probing.most_pings():
            probing.sent_again(probe, (), number + 0.1)
        probing.acked(TARGET, sequence, number + 0.2)
    return probing


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 3, 3), (0.01, 3, 3), (0.1, 3, 6), (0.3, 7, 11), (0.5, 9, 12)])
def test_the_more_get_lost_the_more_often_one_is_sent(loss: float, least: int, most: int) -> None:
    assert least <= after_probes(loss).most_pings() <= most


def test_without_experience_three_are_sent() -> None:
    assert Probing(LAN).most_pings() == LAN.pings_min


def test_a_time_of_loss_is_forgotten() -> None:
    probing = after_probes(0.4)
    for number in range(200):
        probing.acked(TARGET, probing.start(TARGET, 1000.0 + number), 1000.1 + number)
    assert probing.most_pings() == LAN.pings_min


def test_whoever_was_asked_for_any_of_the_pings_may_answer() -> None:
    probing = Probing(LAN)
    sequence = probing.start(TARGET, 0.0)
    probe = probing._probes[sequence]
    assert probing.acked(HELPER, sequence, 0.1) is None
    probing.sent_again(probe, (HELPER,), 0.2)
    probing.sent_again(probe, (), 0.3)
    assert probing.acked(HELPER, sequence, 0.4) == TARGET and probing.acked(HELPER, sequence, 0.5) is None
