"""Whatever happens to a pipeline, and whenever: one plan an epoch, every batch once, nobody waits for ever.

``scripts/explore.py 10000`` looks at as many seeds, on all cores.
"""

from __future__ import annotations

import os

import pytest
from explorer import explore
from seeds import seeds

pytestmark = pytest.mark.usefixtures("no_work_for_messages")


@pytest.mark.parametrize("seed", seeds(int(os.environ.get("P2PTRAIN_EXPLORE", "10"))))
def test_whatever_happens(seed: int) -> None:
    explore(seed)
