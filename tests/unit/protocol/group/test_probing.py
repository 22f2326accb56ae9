"""Pings that wait for their acks: how often one is sent again follows from how many get lost."""

from __future__ import annotations

import random

import pytest

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.probing import Probing
from p2ptrain.protocol.group.swim import LAN

TARGET, HELPER = PeerId("t" * 16), PeerId("h" * 16)


def after_probes(loss: float, num_members: int, num_probes: int = 200) -> Probing:
    """Of a living target that each ping and its ack reach by chance."""
    probing, rng = Probing(LAN), random.Random(3)
    for number in range(num_probes):
        sequence = probing.start(TARGET, float(number))
        probe = probing._probes[sequence]
        while rng.random() < 1 - (1 - loss) ** 2 and probe.pings < probing.most_pings(num_members):
            probing.sent_again(probe, (), number + 0.1)
        probing.acked(TARGET, sequence, number + 0.2)
    return probing


@pytest.mark.parametrize(
    ("loss", "num_members", "least", "most"),
    [(0.0, 1000, 3, 3), (0.01, 150, 3, 3), (0.3, 4, 3, 3), (0.1, 150, 3, 5), (0.3, 150, 7, 10), (0.3, 1000, 9, 12)],
)
def test_the_more_get_lost_and_the_larger_the_group_the_more_are_sent(
    loss: float, num_members: int, least: int, most: int
) -> None:
    assert least <= after_probes(loss, num_members).most_pings(num_members) <= most


def test_without_experience_three_are_sent() -> None:
    assert Probing(LAN).most_pings(150) == LAN.pings_min


def test_a_time_of_loss_is_forgotten() -> None:
    probing = after_probes(0.4, 150)
    for number in range(200):
        probing.acked(TARGET, probing.start(TARGET, 1000.0 + number), 1000.1 + number)
    assert probing.most_pings(150) == LAN.pings_min


def test_whoever_was_asked_for_any_of_the_pings_may_answer() -> None:
    probing = Probing(LAN)
    sequence = probing.start(TARGET, 0.0)
    probe = probing._probes[sequence]
    assert probing.acked(HELPER, sequence, 0.1) is None
    probing.sent_again(probe, (HELPER,), 0.2)
    probing.sent_again(probe, (), 0.3)
    assert probing.acked(HELPER, sequence, 0.4) == TARGET and probing.acked(HELPER, sequence, 0.5) is None
