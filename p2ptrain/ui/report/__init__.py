"""What a group did, on one page that needs nothing else."""
