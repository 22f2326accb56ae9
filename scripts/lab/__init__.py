"""Unlike devices on one machine: namespaces, shaped links, CPU shares, memory limits, events. Run: see __main__.py."""
