"""Who trains the front of which unit and who its tail: cost, search and the strategies beside it."""
