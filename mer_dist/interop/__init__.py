"""Import and export of features and models."""
