"""VM files and the daemon's configuration: YAML text in, values or every fault out."""
