"""Unlike devices on one machine: network namespaces, shaped links, CPU shares, memory limits, events. Run by lab.py."""
