"""A model as a chain of blocks: how it is traced and cut, and what its blocks cost."""
