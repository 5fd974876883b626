"""Models: three parts wired together, and their typed descriptions."""
