"""Clips as WebDataset tars with an index: writing, and random access."""
