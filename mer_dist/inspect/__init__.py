"""Reads a run folder and runs nothing: verify, explain, score, quarantine."""
