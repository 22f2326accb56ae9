"""Who made a group's code, whom that one admits, and how a new code reaches those that stay."""
