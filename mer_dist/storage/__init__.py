"""Atomic files, the layout of a run folder, and the records kept beside outputs."""
