"""Generation and log-probabilities for many sequences, in this process or with a server."""
