"""Clips, modalities, labels, early exits, logging and the metric: no torch, no files of a run."""
