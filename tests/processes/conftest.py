"""Groups of real peers, none of which outlives its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from group import PeerGroup, peer_group


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[PeerGroup]:
    with peer_group(tmp_path) as made:
        yield made
