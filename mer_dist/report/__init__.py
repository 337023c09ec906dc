"""The page that shows a run, and its figures."""
