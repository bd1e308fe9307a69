"""Teachers: what writes the minimum edits that the generative reward model learns from."""
