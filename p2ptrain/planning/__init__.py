"""Pure functions that decide who trains what: plans, assignment, device profiles. No clock, no socket, no torch."""
