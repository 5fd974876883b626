"""Conditioners: what a sample says, as a Cond."""
