"""Teachers behind an API: questions, answers on disk, costs."""
