"""Seeds of tests in virtual time. A failing run names its own; ``P2PTRAIN_SEED=<seed> pytest <test>`` repeats it."""

from __future__ import annotations

import os


def seeds(count: int) -> list[int]:
    """``count`` of them, or the one to repeat."""
    wanted = os.environ.get("P2PTRAIN_SEED")
    return [int(wanted)] if wanted else list(range(count))
