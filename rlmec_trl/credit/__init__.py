"""Token-level credit: from a row to rewards, imitation targets and weights."""
