"""Split training: a peer's fronts, tails and whole units, and the average of a round over unequal runs of blocks."""
