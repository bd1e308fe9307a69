"""The generative reward model: its training, its scores, and the token rewards made from them."""
