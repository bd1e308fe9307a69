"""The console script `rlmec-trl`."""
