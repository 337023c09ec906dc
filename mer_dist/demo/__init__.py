"""The generated corpus and its small models."""
