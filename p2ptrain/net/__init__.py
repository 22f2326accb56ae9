"""Sockets, keys and discovery: moves frames between peers and interprets none."""
