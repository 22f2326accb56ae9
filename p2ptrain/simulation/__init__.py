"""Groups of any size in virtual time, without a socket, a process or a clock: what tests and benchmarks share."""
