"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2ptrain.planning.pipeline import fleet


@pytest.fixture(scope="module")
def no_work_for_messages() -> Iterator[None]:
    """For models so small that passing stage messages on would be most of the work, and one peer alone the best plan.

    What it costs is tested in ``test_message_costs``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "MESSAGE_FLOPS", 0.0)
        patch.setattr(fleet, "BYTE_FLOPS", 0.0)
        yield
