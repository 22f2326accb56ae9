"""Which p2ptrain this is."""

__version__ = "0.1.0"
SOFTWARE = f"p2ptrain/{__version__}"
"""As it says itself to other peers."""
