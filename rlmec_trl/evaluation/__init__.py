"""How good a policy or a generative reward model is, in numbers."""
