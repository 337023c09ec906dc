"""mer_dist: from short video clips to emotion labels, on one workstation or many nodes."""

__version__ = "0.1.0"
