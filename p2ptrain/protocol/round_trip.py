"""How long an answer may take, learnt from how long answers took.

Invariant: a time-out lies within the bounds that it is asked for with.
"""

from __future__ import annotations


class RoundTrip:
    """The smoothed time and its variation (Jacobson 1988; RFC 6298, section 2)."""

    __slots__ = ("_mean_s", "_variation_s")

    def __init__(self) -> None:
        self._mean_s = -1.0
        self._variation_s = 0.0

    def add(self, sample_s: float) -> None:
        if self._mean_s < 0:
            self._mean_s, self._variation_s = sample_s, sample_s / 2
        else:
            self._variation_s += (abs(sample_s - self._mean_s) - self._variation_s) / 4
            self._mean_s += (sample_s - self._mean_s) / 8

    def timeout_s(self, floor_s: float, ceiling_s: float, *, first_s: float) -> float:
        """``first_s``: while there is no sample."""
        expected = first_s if self._mean_s < 0 else self._mean_s + 4 * self._variation_s
        return min(max(expected, floor_s), ceiling_s)
