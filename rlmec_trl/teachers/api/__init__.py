"""API teachers: requests, the journal of their answers, and their costs."""
