"""Which actor gets which work, and what happens to those that fail."""
