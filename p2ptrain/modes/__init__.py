"""What a group can train: a mode is a folder. Nothing outside these folders branches on a mode."""
