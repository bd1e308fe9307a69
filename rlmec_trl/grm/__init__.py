"""The generative reward model: training and inference."""
