"""Feature sets: on disk, and joined by clip name for fusion."""
