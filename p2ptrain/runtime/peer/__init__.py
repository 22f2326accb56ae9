"""A peer's and an observer's machines, wired together, without I/O."""
