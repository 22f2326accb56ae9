"""How much a device computes for a job in all, in floating-point operations, beside central training.

Convolutions and matrix products count, as in ``blocks.flops``, of whatever a model is run on: training steps, looks at
validation samples, and the fit of the last layer. Averaging and other elementwise work does not.

Invariant: nothing is counted twice, and what central training costs is never said to be more than it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EIGENVECTORS = 9
"""Operations, times n^3, of a symmetric matrix' eigenvalues and vectors (Golub, Van Loan: Matrix Computations, 8.3)."""


class Work:
    """A running total. The trainer has one, whatever it trains."""

    def __init__(self) -> None:
        self.flops = 0

    def ran(self, flops_per_sample: int, samples: int) -> None:
        """A model on samples: forward, or forward and backward."""
        self.flops += flops_per_sample * samples

    def multiplied(self, rows: int, inner: int, columns: int, times: int = 1) -> None:
        """Matrices [rows, inner] and [inner, columns]."""
        self.flops += 2 * rows * inner * columns * times

    def found_eigenvectors(self, size: int) -> None:
        """Of a symmetric matrix [size, size]."""
        self.flops += EIGENVECTORS * size**3

    def resumed(self, flops: int) -> None:
        """What a snapshot of this device's own says, unless more is known."""
        self.flops = max(self.flops, flops)


def fewest_samples(counts: Iterable[Sequence[int]]) -> int:
    """Samples that devices have at least, by what each has of each class: whether they have the same ones they do not
    say. Exact where no class is on two devices, or all have the same samples."""
    return sum(max(each, default=0) for each in zip(*(c for c in counts if c), strict=True))


def central_flops(flops_per_sample: int, samples: int, epochs: float) -> int:
    """Of training the whole model by one device on all samples. ``flops_per_sample``: forward and backward."""
    return round(flops_per_sample * samples * epochs)
