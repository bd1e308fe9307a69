"""The RLMEC trainer: its losses, batches and configuration."""
