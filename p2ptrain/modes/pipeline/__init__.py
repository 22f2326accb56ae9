"""A pipeline: each peer trains a run of the model's blocks."""
