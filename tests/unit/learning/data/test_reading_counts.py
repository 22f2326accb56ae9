"""What several threads count while they decode adds up."""

from __future__ import annotations

import threading

import pytest

from p2ptrain.learning.data.reading import Reading


@pytest.mark.parametrize("counted", ["moving", "silent", "cut"])
def test_who_counts_between_a_read_and_a_write_is_not_lost(counted: str) -> None:
    others: list[threading.Thread] = []
    kept = {"moving": 0, "silent": 0, "cut": 0}

    class Interrupted(Reading):
        """Another thread counts as soon as one has read what was counted so far."""

    def between(name: str) -> property:
        def read(self: Reading) -> int:
            value = kept[name]
            if name == counted and not others:
                others.append(threading.Thread(target=lambda: self.count(**{counted: 1})))
                others[0].start()
                others[0].join(0.1)  # with a lock it can't be done yet
            return value

        return property(read, lambda self, value: kept.__setitem__(name, value))

    for name in kept:
        setattr(Interrupted, f"num_{name}", between(name))
    reading = Interrupted()
    reading.count(**{counted: 1})
    others[0].join()
    assert kept[counted] == 2
