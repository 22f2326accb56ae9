"""How long things take on this device, measured and remembered."""
