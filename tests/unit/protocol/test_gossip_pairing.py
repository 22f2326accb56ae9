"""Who averages with whom in a round: both sides say the same, all pairs come, and knowledge spreads fast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.protocol.pairing import partner_in
from p2ptrain.simulation.names import peer_ids


@given(st.integers(1, 24), st.integers(0, 10**6))
def test_a_partner_has_the_other_as_partner_and_of_an_odd_number_one_has_none(count: int, number: int) -> None:
    everyone = peer_ids(count)
    partners = {peer: partner_in(number, peer, everyone) for peer in everyone}
    assert all(partner is None or partners[partner] == peer for peer, partner in partners.items())
    assert all(partner != peer for peer, partner in partners.items())
    assert list(partners.values()).count(None) == count % 2


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_in_as_many_rounds_as_there_are_others_everybody_meets_everybody_once(count: int) -> None:
    everyone = peer_ids(count)
    for peer in everyone:
        met = [partner_in(number, peer, everyone) for number in range(5, 5 + count - 1 + count % 2)]
        assert sorted(partner for partner in met if partner) == sorted(set(everyone) - {peer})


@pytest.mark.parametrize("count", [4, 8, 32, 100])
def test_values_come_together_as_fast_as_with_random_pairs(count: int) -> None:
    """Each such average halves the spread, about: after the rounds that leaves a thousandth of it."""
    everyone = peer_ids(count)
    values = {peer: float(place) for place, peer in enumerate(everyone)}
    mean, start = sum(values.values()) / count, _spread(values.values())
    for number in range(12):
        partners = {peer: partner_in(number, peer, everyone) for peer in everyone}
        values = {peer: (values[peer] + values[partner or peer]) / 2 for peer, partner in partners.items()}
    assert sum(values.values()) / count == pytest.approx(mean)
    assert _spread(values.values()) < 1e-3 * start


def _spread(values: object) -> float:
    numbers = list(values)  # type: ignore[call-overload]
    mean = sum(numbers) / len(numbers)
    return float(sum((number - mean) ** 2 for number in numbers))
