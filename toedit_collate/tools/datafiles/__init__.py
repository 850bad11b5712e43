"""Data files: reading and writing rows of token ids."""
