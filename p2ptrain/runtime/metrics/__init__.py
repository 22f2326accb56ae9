"""Figures of a training that outlive it."""
