"""Class sub-models: which coordinates of the global model belong to whom, and how they are put back."""
