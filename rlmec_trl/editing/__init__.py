"""Minimum edits: their alignment, and the teachers that write them."""
