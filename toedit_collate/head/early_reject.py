"""What a prior's head remembers from batch to batch: which ids it should visit first."""

from __future__ import annotations

from torch import Tensor

from . import kernels
from .logprob import Competitors, measure_competitors
from .projection import Head


class EarlyReject:
    """The state of early reject: see `head.logprob.score_observed`.

    Attributes:
        competitors: the likely ids; None until they are measured.
        uses_kernel: whether the GPU kernel computes log P.
    """

    def __init__(self) -> None:
        self.competitors: Competitors | None = None
        self.uses_kernel = False

    def likely_competitors(self, head: Head, states: Tensor) -> Competitors | None:
        """The ids that a head should visit first; measured on the first states it is given.

        None for a head that only its module can compute: it is always computed whole.
        """
        if head.weight is None or len(states) == 0:
            return None
        known = self.competitors
        if (
            known is None
            or known.order.device != states.device
            or len(known.place) != head.vocab_size
        ):
            self.competitors = measure_competitors(head, states)
        return self.competitors

    def use_kernel(self, head: Head, wanted: bool) -> None:
        """Compute log P by the GPU kernel, or not.

        Raises:
            ValueError: the kernel can't be used with this head.
        """
        if wanted:
            kernels.check_usable(head)
        self.uses_kernel = wanted
