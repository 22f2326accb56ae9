"""Who has few samples gets no wider part for finishing early."""

from __future__ import annotations

import pytest

from p2ptrain.config import DataConfig, Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.plan import parts_of
from p2ptrain.modes.tasks.planning.assignment import first_plan


def shares(*counts: tuple[int, ...]) -> list[float]:
    """Of the width, by peer; all are as fast."""
    classes = tuple(f"c{i}" for i in range(len(counts[0])))
    job = Job(data=DataConfig(classes, (3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3))
    names = [PeerId(f"peer{i:012d}") for i in range(len(counts))]
    peers = [PeerSnapshot(name, 1e9, 0, each, ()) for name, each in zip(names, counts, strict=True)]
    held = {part.trainers[0]: part.share for part in parts_of(first_plan(job, peers, names[0]))}
    return [held[name] for name in names]


def test_a_peer_with_a_few_samples_gets_no_wide_part() -> None:
    few, many = shares((2, 0), (0, 1000))
    assert few == pytest.approx(0.25, abs=0.01) and many == pytest.approx(0.75, abs=0.01)
    few, many = shares((2, 2, 0, 0), (0, 0, 500, 500))
    assert few < 0.3 < 0.7 < many


def test_with_enough_samples_all_finish_together_as_before() -> None:
    fewer, more = shares((100, 0), (0, 400))
    assert fewer**2 * 100 == pytest.approx(more**2 * 400, rel=0.01)


def test_where_all_have_few_the_whole_width_is_used() -> None:
    assert sum(shares((5, 0), (0, 5))) == pytest.approx(1.0, abs=1e-5)
    assert sum(shares((3, 0, 0), (0, 4, 0), (0, 0, 5))) == pytest.approx(1.0, abs=1e-5)
