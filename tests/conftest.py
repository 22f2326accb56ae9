"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2ptrain.planning.pipeline import fleet

REAL = [Path(__file__).with_name(name) for name in ("sockets", "processes")]
"""Tests of real peers."""
LONGEST = (
    *("test_stages", "test_recovery", "test_units", "test_peers", "test_bench", "test_job_defaults"),
    *("test_short_runs", "test_meeting", "test_long_run", "test_pipeline_runs", "test_lab_runs", "test_overlap"),
    *("test_next_day", "test_tour", "test_snippets", "test_transport"),
)
"""Files that take longest are begun first, so that not one of them is left when all else is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first. Tests of real peers have ten minutes each: every wait of theirs has a deadline of its
    own, all of which an overloaded machine may need."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        if item.path.parent in REAL and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing by more, and tests run beside each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def no_work_for_messages() -> Iterator[None]:
    """For models so small that passing stage messages on would be most of the work, and one peer alone the best plan.

    What it costs is tested in ``test_message_costs``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "MESSAGE_FLOPS", 0.0)
        patch.setattr(fleet, "BYTE_FLOPS", 0.0)
        yield
