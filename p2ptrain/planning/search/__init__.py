"""The search for the fastest pipeline: over groups of devices, cuts and micro-batches."""
