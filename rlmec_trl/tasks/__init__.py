"""Tasks: what a problem is, how it is worded, and how a solution is checked."""
