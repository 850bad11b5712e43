"""GPU kernels: optional, and loaded only when they are called for. Without triton, none."""

from .launch import check_usable, is_available, observed_logprob

__all__ = ["check_usable", "is_available", "observed_logprob"]
