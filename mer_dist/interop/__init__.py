"""Features and models from and to other tools."""
