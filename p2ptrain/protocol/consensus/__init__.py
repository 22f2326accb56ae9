"""How the group agrees on one plan."""
