"""The parts of the bench, in the order in which they are measured."""

PARTS = ("edit", "head", "memory", "host", "survivors", "agreement", "training", "journal")
