"""Looks at the whole model while it is trained: what is kept for them, when, and what all found together."""
