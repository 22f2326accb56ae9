"""The node process: sockets, clock, disk and journal around the machines."""
