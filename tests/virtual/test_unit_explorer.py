"""Whatever happens to a group that trains split, and whenever.

``scripts/explore.py 10000 --mode split`` looks at as many seeds, on all cores.
"""

from __future__ import annotations

import os

import pytest
from seeds import seeds
from unit_explorer import explore


@pytest.mark.parametrize("seed", seeds(int(os.environ.get("P2PTRAIN_EXPLORE", "6"))))
def test_whatever_happens(seed: int) -> None:
    explore(seed)
