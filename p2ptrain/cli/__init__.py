"""The command line: click, one file per command, thin, with lazy imports."""
