"""The loss of labels that are made of many draws.

The batch holds `draws` (see `head.soft_labels`), which the model's `forward` gets as one more
argument. `use_drawn_labels` replaces `forward` by one that returns the loss (for `Trainer`) or the
log-probabilities (for TRL's `SFTTrainer`, which passes `fused_lm_head=True`), computed from the
hidden states without the (B, T, V) logits. Calls without `draws` (evaluation, generation) go to
the model's own `forward`. So accumulation, DDP, FSDP2, autocast, torch.compile and gradient
checkpointing work as before.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..head.projection import Head
from ..head.soft_labels import KEY, drawn_log_prob, expected_log_prob, num_labels
from ..prior.families import find_head, find_trunk, is_plain, unwrap_model

_MARK = "_toedit_own_forward"
# The head's logits may differ from the model's own by this share of the largest: the rounding of
# bfloat16. Another formula is off by far more.
_TOLERANCE = 2.0**-5


@dataclass
class DrawnOutput(ModelOutput):
    """The output of a model for a batch with drawn labels; 0 and False where there is no label."""

    loss: Tensor | None = None  # (), nats per label
    log_probs: Tensor | None = None  # (B, T - 1) float32, expected log probability of the label
    entropy: Tensor | None = None  # (B, T - 1) float32, of the prediction, in nats
    is_top1: Tensor | None = None  # (B, T - 1) bool, whether the likeliest id is that of `labels`
    label_mask: Tensor | None = None  # (B, T - 1) bool, where there is a label
    aux_loss: Tensor | None = None  # of a router


def uses_drawn_labels(model: Any) -> bool:
    """Whether a model knows drawn labels, inside its wrappers: nobody has replaced `forward`."""
    forward = inspect.unwrap(unwrap_model(model).forward, stop=lambda f: hasattr(f, _MARK))
    return hasattr(forward, _MARK)


def check_uses_drawn_labels(model: Any) -> None:
    """Raise a ValueError for a model that would ignore the draws of its batches."""
    if not uses_drawn_labels(model):
        raise ValueError(
            "the policy has num_draws > 1, but the model in training would ignore the draws and "
            "learn the source text; use attach(trainer, prior, policy), or pass "
            "callbacks=[ToEditCallback(collator)]; and let nothing replace the model's `forward` "
            "during training"
        )


def install_drawn_loss(trainer: Any, model: Any) -> None:
    """Give a Trainer's model the loss of drawn labels; a ValueError if the Trainer can't use it."""
    if trainer is None:
        use_drawn_labels(model)
    else:
        check_can_use_draws(trainer)
        use_drawn_labels(model, trainer.accelerator.autocast)


def use_drawn_labels(
    model: Any, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    """Let a model compute its loss from `draws`, if a batch has them; a second call does nothing.

    Args:
        model: the model in training, perhaps inside PEFT, DDP, FSDP2 or torch.compile; changed in
            place. It must be a causal language model of transformers (else a TypeError).
        autocast: makes the context in which the model computes the loss. A Trainer whose model is
            prepared already has put its own around `forward`, which is replaced here.
    """
    if uses_drawn_labels(model):
        return
    lm = unwrap_model(model)
    find_trunk(lm)
    own = lm.forward
    with autocast():
        fusible = _has_plain_head(lm, own)
    # An attribute of the model, so that a copy of the model calls its own weights.
    setattr(lm, _MARK, own)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own, draws = getattr(self, _MARK), kwargs.pop(KEY, None)
        if draws is None:
            return own(*args, **kwargs)
        head = _find_head(self) if fusible else None
        if head is None or getattr(self.config.get_text_config(), "output_router_logits", False):
            return _by_logits(self, own, draws, args, kwargs)
        with autocast():
            return _by_states(self, head, draws, args, kwargs)

    # A Trainer drops columns that are not in the signature of `forward`.
    taken = inspect.signature(own)
    of_self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [of_self, *taken.parameters.values()]
    forward.__signature__ = taken.replace(parameters=parameters)  # type: ignore[attr-defined]
    setattr(forward, _MARK, True)

    # accelerate's unwrap_model(keep_fp32_wrapper=False) replaces `forward` by the innermost
    # function that `__wrapped__` leads to, which must be the one above.
    @functools.wraps(forward)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    lm.forward = types.MethodType(outer, lm)


def _by_states(
    lm: Any, head: Head, draws: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DrawnOutput:
    labels, count = _take_labels(kwargs)
    kwargs = {**kwargs, "use_cache": False}
    hidden = find_trunk(lm)(*args, **kwargs)[0]
    log_probs, entropy, is_top1, known = drawn_log_prob(head, hidden, draws, labels)
    loss = -log_probs.sum() / num_labels(known, count)
    return DrawnOutput(loss, log_probs, entropy, is_top1, known)


def _by_logits(
    lm: Any, own: Callable[..., Any], draws: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DrawnOutput:
    """For heads that only their module can compute, and for the loss of a router."""
    labels, count = _take_labels(kwargs)
    outputs = own(*args, **{**kwargs, "use_cache": False})
    logits = outputs.logits
    log_probs, known = expected_log_prob(logits, draws, labels)
    loss = -log_probs.sum() / num_labels(known, count)
    aux = getattr(outputs, "aux_loss", None)
    if aux is not None:
        loss = loss + getattr(lm.config.get_text_config(), "router_aux_loss_coef", 0.0) * aux
    with torch.no_grad():
        log_p = logits[:, :-1].float().log_softmax(-1)
        entropy = torch.where(known, -(log_p.exp() * log_p).sum(-1), 0)
        is_top1 = (log_p.argmax(-1) == labels[:, 1:]) & known
    return DrawnOutput(loss, log_probs, entropy, is_top1, known, aux)


def _take_labels(kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
    kwargs.pop("fused_lm_head", None)
    kwargs.pop("shift_labels", None)  # None: `check_can_use_draws` refuses trainers that shift
    labels = kwargs.pop("labels", None)
    if labels is None:
        raise ValueError(
            f"the batch has {KEY!r} and no labels; do not remove labels from the collator's batch "
            "(a compute_loss_func does: leave it out with num_draws > 1)"
        )
    return labels, kwargs.pop("num_items_in_batch", None)


def _find_head(lm: Any) -> Head | None:
    """The whole vocabulary projection; None if only the model can compute it."""
    module = lm.get_output_embeddings()
    weight = getattr(module, "weight", None)
    # An adapter or quantization; or a sharded weight (ZeRO-3, a head that FSDP2 wraps on its own,
    # tensor parallelism): only its module averages gradients over ranks.
    if type(module) is not torch.nn.Linear or not is_plain(weight):
        return None
    if hasattr(weight, "ds_id") or hasattr(weight, "full_tensor"):
        return None
    return find_head(lm)


@torch.no_grad()
def _has_plain_head(lm: Any, own: Callable[..., Any]) -> bool:
    """Whether the head's formula gives the model's own logits, on a few tokens."""
    head = _find_head(lm)
    if head is None or any(hasattr(p, "full_tensor") for p in lm.parameters()):
        return False
    in_training = [module for module in lm.modules() if module.training]
    lm.eval()
    try:
        device = next(lm.parameters()).device
        ids = torch.arange(8, device=device)[None] % head.vocab_size
        logits = own(input_ids=ids, use_cache=False).logits.float()
        hidden = find_trunk(lm)(input_ids=ids, use_cache=False)[0]
        ours = head.logits(hidden[0])[None].to(logits.device)
    finally:
        for module in in_training:
            module.training = True
    largest = logits.abs().max().clamp(min=1e-6)
    return ours.shape == logits.shape and bool((ours - logits).abs().max() <= _TOLERANCE * largest)


def check_can_use_draws(trainer: Any) -> None:
    """Raise a ValueError that names the option of a Trainer which does not fit drawn labels."""
    args = trainer.args
    loss_type = getattr(args, "loss_type", None)
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    for option, is_set in {
        f"label_smoothing_factor={args.label_smoothing_factor}": args.label_smoothing_factor,
        f"loss_type={loss_type!r}": loss_type not in (None, "nll"),
        "compute_loss_func": trainer.compute_loss_func is not None,
        f"DataParallel over {args.n_gpu} GPUs without torchrun": args.n_gpu > 1,
        "parallelism_config.cp_enabled": getattr(parallel, "cp_enabled", False),
        "parallelism_config.sp_enabled": getattr(parallel, "sp_enabled", False),
    }.items():
        if is_set:
            raise ValueError(
                f"num_draws > 1 does not support {option}, since each label has several draws; "
                "leave the option out, or use num_draws=1"
            )
