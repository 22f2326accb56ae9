"""Whole groups on this machine, measured beside a baseline: what the demo and the benchmarks are made of."""
