"""Teachers behind an API: requests, the journal of their answers, and their costs."""
