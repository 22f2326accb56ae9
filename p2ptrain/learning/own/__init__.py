"""Models of a user's own: how they are built, what they return, and whose fault it is when they fail."""
