"""What a device finds out about the way to another one: whether anybody listens there, and what passes."""
