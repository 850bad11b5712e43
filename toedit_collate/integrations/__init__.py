"""One file for each framework in which people train, or edit text at scale."""
