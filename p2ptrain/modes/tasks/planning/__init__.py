"""Who trains which classes, in how much of the model: pure functions of what peers are and have."""
