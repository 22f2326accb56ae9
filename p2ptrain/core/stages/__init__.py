"""What the modes share that train a model in runs of blocks: stage messages, blocks to get, figures to plan by."""
