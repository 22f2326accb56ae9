"""Training one stage of a pipeline."""
