"""Sans-IO state machines: no clock, no socket, no randomness of its own."""
