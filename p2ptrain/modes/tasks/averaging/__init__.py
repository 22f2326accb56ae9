"""Who averages a part with whom, what travels for it, and the outer optimizer between two exchanges."""
