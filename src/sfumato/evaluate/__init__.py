"""Measures of a model, as streams that the caller drives."""
