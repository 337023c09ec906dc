"""Clips as WebDataset tars with an index: written, and read from any position."""
