"""Views of a running group: they read the journal or a status snapshot, nothing else."""
