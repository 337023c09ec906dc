"""Ranks, launchers and signals; the only reader of launcher variables."""
