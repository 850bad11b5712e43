"""`toedit plan`: the memory and the time that a recipe's config will take, estimated."""

from .options import add_plan

__all__ = ["add_plan"]
