"""Training: the loop as a generator, what it changes, and how it survives a stop."""
