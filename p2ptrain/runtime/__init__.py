"""Where clocks, randomness, processes and all that is below meet: node, trainer process, store, journal."""
