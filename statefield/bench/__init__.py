"""Frozen measurements: a protocol is run, gives JSON, and tables are made from that: `statefield bench`."""
