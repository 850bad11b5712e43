"""`toedit report`: what sets of data look like to a prior, beside each other."""

from .options import add_report

__all__ = ["add_report"]
