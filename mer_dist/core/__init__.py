"""Clips, modalities and labels, the two ways to end early, logging and the metric: no torch, no file of a run."""
