"""One file for each framework in which people train, or edit text at scale.

No file imports what may be missing; each is imported by its framework, or run as a command.
"""
