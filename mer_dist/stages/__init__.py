"""The stages of a job, one file each, and `run`, which calls them in order."""
