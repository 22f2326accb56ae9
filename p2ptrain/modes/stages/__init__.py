"""What the modes share that train a model in runs of blocks and need the model itself; the rest is ``core.stages``."""
