"""The embedded example: a tiny base model and generated tasks, so that a first run needs no download."""
