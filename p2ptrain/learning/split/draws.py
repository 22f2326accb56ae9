"""Which of a global batch's samples come from whom, where all units train one model together.

The batches of a round are a uniform draw without replacement of all owners' samples together, cut into batches (as
GPSL does it with multivariate hypergeometric counts; arXiv 2407.15738). Local batches of one size each would not be:
with few classes a peer they trail far behind on accuracy.

Invariant: everyone computes the same counts, from the job's seed, the round and how many samples each owner has.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping


class Draws:
    """``samples``: of each owner. ``batch_size``: of all owners together."""

    def __init__(self, samples: Mapping[str, int], batch_size: int, *, seed: int, passes: float = 1.0) -> None:
        self.batch_size = min(batch_size, sum(samples.values()))
        self.steps_per_round = max(1, int(sum(samples.values()) * passes) // self.batch_size)
        self._samples = dict(sorted(samples.items()))
        self._seed = seed

    def of_round(self, round: int) -> list[dict[str, int]]:
        """For each of its steps, how many samples each owner gives."""
        owners = self._shuffled(round)
        return [dict(Counter(next(owners) for _ in range(self.batch_size))) for _ in range(self.steps_per_round)]

    def _shuffled(self, round: int) -> Iterator[str]:
        # Python's generator, as numpy's may give other numbers in other versions, and all peers need the same.
        number = 0
        while True:
            owners = [owner for owner, num in self._samples.items() for _ in range(num)]
            random.Random(f"{self._seed} {round} {number}").shuffle(owners)
            yield from owners
            number += 1


def micro_batches(rows: int, most: int) -> list[int]:
    """Rows of each micro-batch: as many of about equal size as there may be, and as there are rows for."""
    num = min(rows, most)
    return [rows // num + (place < rows % num) for place in range(num)] if num else []
