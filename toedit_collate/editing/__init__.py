"""Algorithm 1 on one batch: as it is, with a cache of decisions, with a journal."""
