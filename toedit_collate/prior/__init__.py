"""The frozen model: loading, sharing, scoring, swapping, over ranks."""
