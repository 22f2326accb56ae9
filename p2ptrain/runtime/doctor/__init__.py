"""``p2ptrain doctor``: why two devices don't meet."""
