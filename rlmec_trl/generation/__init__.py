"""A model on many sequences: in this process or behind a server."""
