"""Push-sum finds the mean although some push more than others and messages are lost; one-sided averaging does not."""

from __future__ import annotations

import random
import statistics
from typing import NamedTuple

from seeds import seeds

from p2ptrain.protocol.push_sum import halve, merge

NUM_PEERS = 12
NUM_PUSHES = 400
NUM_SEEDS = 200
LOSS = 0.2


class Errors(NamedTuple):
    """Mean that the group ends with, minus the true one (the values go from 0 to 11)."""

    push_sum: float
    push_sum_losing: float
    one_sided: float


def run(seed: int, eagerness: list[int]) -> Errors:
    """``push_sum`` takes back the mass of a payload that nobody fetched; ``push_sum_losing`` leaves it lost."""
    rng = random.Random(seed)
    start = [number + rng.gauss(0, 1) for number in range(NUM_PEERS)]
    start_masses = [rng.uniform(0.5, 2.0) for _ in range(NUM_PEERS)]
    truth = sum(mass * value for mass, value in zip(start_masses, start, strict=True)) / sum(start_masses)
    kept, kept_masses = [[value] for value in start], list(start_masses)
    lost, lost_masses = [[value] for value in start], list(start_masses)
    plain = list(start)
    for _ in range(NUM_PUSHES):
        sender = rng.choices(range(NUM_PEERS), eagerness)[0]
        receiver = rng.choice([number for number in range(NUM_PEERS) if number != sender])
        for source, target in ((sender, receiver), (receiver, sender)):
            arrives = rng.random() >= LOSS
            lost_masses[source], sent = halve(lost_masses[source])
            if arrives:
                lost[target], lost_masses[target] = merge(lost[target], lost_masses[target], lost[source], sent)
                left, sent = halve(kept_masses[source])
                kept_masses[source] = left
                kept[target], kept_masses[target] = merge(kept[target], kept_masses[target], kept[source], sent)
                if target == receiver:
                    plain[target] = (plain[target] + plain[source]) / 2
            else:
                break  # nothing was merged, so there is no reply
    return Errors(
        _mean(kept, kept_masses) - truth,
        _mean(lost, lost_masses) - truth,
        statistics.fmean(plain) - statistics.fmean(start),
    )


def _mean(values: list[list[float]], masses: list[float]) -> float:
    return sum(mass * value[0] for mass, value in zip(masses, values, strict=True)) / sum(masses)


def _over_seeds(eagerness: list[int]) -> tuple[Errors, float]:
    runs = [run(seed, eagerness) for seed in range(NUM_SEEDS)]
    standard_error = statistics.stdev(errors.push_sum_losing for errors in runs) / NUM_SEEDS**0.5
    return Errors(*(statistics.fmean(column) for column in zip(*runs, strict=True))), standard_error


def test_push_sum_is_unbiased_under_loss_where_one_sided_averaging_is_not() -> None:
    """The eager hold the high values: the worst case for whoever counts pushes instead of samples."""
    errors, standard_error = _over_seeds([1 + number for number in range(NUM_PEERS)])
    print(f"eager peers: {errors}, standard error {standard_error:.3f}")
    assert abs(errors.push_sum) < 1e-9
    assert abs(errors.push_sum_losing) < abs(errors.one_sided) / 3
    assert errors.one_sided > 1.0


def test_lost_mass_does_not_bias_when_all_push_alike() -> None:
    errors, standard_error = _over_seeds([1] * NUM_PEERS)
    print(f"equal peers: {errors}, standard error {standard_error:.3f}")
    assert abs(errors.push_sum) < 1e-9
    assert abs(errors.push_sum_losing) < 3 * standard_error


def test_without_loss_the_mean_is_exact() -> None:
    for seed in seeds(20):
        rng = random.Random(seed)
        masses = [rng.uniform(0.0, 2.0) for _ in range(8)]
        values = [[rng.gauss(0, 1)] for _ in range(8)]
        truth = sum(mass * value[0] for mass, value in zip(masses, values, strict=True)) / sum(masses)
        for _ in range(800):
            source, target = rng.sample(range(8), 2)
            masses[source], sent = halve(masses[source])
            values[target], masses[target] = merge(values[target], masses[target], values[source], sent)
        assert all(abs(value[0] - truth) < 1e-9 for value in values), f"P2PTRAIN_SEED={seed}"
