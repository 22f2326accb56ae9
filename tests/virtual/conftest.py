"""What tests of rooms share."""

from __future__ import annotations

from collections.abc import Iterator

import kept_rooms
import pytest


@pytest.fixture(scope="module", autouse=True)
def no_rooms_of_other_modules() -> Iterator[None]:
    """They may have been made while something else was patched."""
    yield
    kept_rooms.forget()
