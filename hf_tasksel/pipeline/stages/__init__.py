"""The stages of a run, one a file: what each reads and writes, what its result depends on, and its work."""
