"""Every key of a job, typed and checked; the reader of YAML that never guesses."""
