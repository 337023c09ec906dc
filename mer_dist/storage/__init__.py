"""Files that are whole or not there, where everything in a run folder lies, and what is kept beside outputs."""
