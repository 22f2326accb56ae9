"""Imports without the garbage collector.

What is imported stays, so looking through it again and again while it grows finds nothing: that was a sixth of what it
takes to import torch.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within it nothing is collected, and what is there at its end never will be looked through."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
