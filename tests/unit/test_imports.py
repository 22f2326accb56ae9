"""The garbage collector is off within, and as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from p2ptrain.imports import uncollected


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_as_it_was(was_on: bool) -> None:
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == was_on
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()
