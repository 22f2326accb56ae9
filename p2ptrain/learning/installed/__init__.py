"""Models of packages that are installed on this device, by the names that the packages themselves list."""
