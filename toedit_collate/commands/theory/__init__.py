"""`toedit theory`: the linear process of the paper's section 3.2, simulated."""

from .options import add_theory

__all__ = ["add_theory"]
