"""`toedit bench`: what editing a batch costs beside one forward pass of the prior's trunk."""

from .options import add_bench

__all__ = ["add_bench"]
