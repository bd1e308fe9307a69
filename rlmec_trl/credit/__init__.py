"""Token credit: from a row to rewards, targets and weights."""
