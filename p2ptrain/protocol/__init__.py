"""Sans-IO state machines and the wire codec: no clock, no socket, no randomness of its own."""
