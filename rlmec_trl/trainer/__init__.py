"""Policy training with token-level credit."""
