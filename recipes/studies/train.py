"""One run of a study: a plain PyTorch loop over edited batches, with what is measured after it."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from common.precision import fast_dtype, fast_precision
from torch import Tensor, nn

from toedit_collate.prior.base import BasePrior
from toedit_collate.training.collator import ToEditCollator

from .evaluation import evaluate
from .loss import backward
from .settings import RunSettings
from .world import TokenRows, World
from .writing import complete_rows

_WARM_UP, _LAST_RATE, _CLIP = 0.05, 0.1, 1.0


def train(
    world: World,
    settings: RunSettings,
    seed: int,
    *,
    prior: BasePrior | None = None,
    rows: TokenRows | None = None,
    validation: TokenRows | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one model.

    The order of the rows, the weights and the draws of edits follow from the seed. The model is
    that of the epoch with the lowest loss on `validation`; without such rows, the last one.

    Args:
        world: data, prior and trainee.
        settings: how to train.
        seed: of everything.
        prior: that edits or gives soft targets; default: the world's.
        rows: to train on; default: the world's.
        validation: rows that choose the epoch; None: the last is taken.

    Returns:
        The model, in eval mode; and `validation` (loss of each epoch), `best_epoch`, `train_loss`
        of the last epoch, `steps`, `seconds` (of training, evaluation excluded), and
        `edit`: the edit's counts and seconds.
    """
    rows = world.rows(world.settings.train) if rows is None else rows
    prior = prior or (world.prior if settings.policy or settings.kl_weight else None)
    model: Any = world.new_trainee(seed, settings.lora_rank)
    backbone = (model.get_base_model() if settings.lora_rank else model).base_model
    _add_dropout(model, settings.dropout)
    collator = _collator(world, settings, seed, prior, rows)
    teacher, soft = None, None
    if settings.kl_weight and prior is not None:
        soft = world.hidden_of(rows)
        teacher = prior.model.get_output_embeddings().weight  # type: ignore[attr-defined]
    every, orders = _orders(world, settings, seed, rows)
    num_steps = sum(len(order) for order in orders)
    optimizer, schedule = _optimizer(model, settings, num_steps)
    head = model.get_output_embeddings().weight
    chance = random.Random(seed)
    losses: list[float] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    seconds, epoch_loss = 0.0, 0.0
    for epoch, order in enumerate(orders):
        started = time.perf_counter()
        model.train()
        if collator is not None:
            collator.set_epoch(epoch)
        total = 0.0
        for places in order:
            ids, labels, draws = _batch(collator, every, places, len(rows))
            states = None if soft is None else soft[places]
            if settings.on_policy and chance.random() < settings.on_policy:
                given = TokenRows(ids, labels, rows.is_padded)
                own = complete_rows(model, given, world.tokenizer)
                model.train()
                ids, labels, states = own.input_ids, own.labels, world.hidden_of(own)
            ids, labels = ids.to(world.device), labels.to(world.device)
            with fast_precision(world.device):
                hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
            total += backward(
                hidden, head, labels,
                label_smoothing=settings.label_smoothing,
                kl_weight=settings.kl_weight,
                kl_beta=settings.kl_beta,
                draws=draws,
                prior_hidden=states,
                prior_head=teacher,
                dtype=fast_dtype(world.device),
            )  # fmt: skip
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        seconds += time.perf_counter() - started
        epoch_loss = total / len(order)
        if validation is not None:
            losses.append(evaluate(model, validation.input_ids, validation.labels).loss)
            if best is None or losses[-1] < best[0]:
                best = (losses[-1], epoch + 1, copy.deepcopy(model.state_dict()))
    if best is not None:
        model.load_state_dict(best[2])
    model.eval()
    found: dict[str, Any] = {
        "validation": losses,
        "best_epoch": best[1] if best else settings.epochs,
        "train_loss": epoch_loss,
        "steps": num_steps,
        "seconds": seconds,
    }
    if collator is not None:
        stats = collator.stats
        found["edit"] = {name: stats[name] for name in ("scored", "selected", "changed", "seconds")}
    return model, found


def measure(world: World, model: nn.Module, *, groups: Tensor | None = None) -> dict[str, Any]:
    """Evaluate a model on the test rows and the others."""
    own = world.settings
    test = world.rows(own.test)
    others = {
        name: evaluate(model, rows.input_ids, rows.labels).loss
        for name, rows in ((name, world.rows(wanted)) for name, wanted in own.others.items())
    }
    return {
        "test": asdict(evaluate(model, test.input_ids, test.labels, groups=groups)),
        "others": others,
    }


def _collator(
    world: World, settings: RunSettings, seed: int, prior: BasePrior | None, rows: TokenRows
) -> ToEditCollator | None:
    policy = settings.edit_policy(seed)
    if policy is None or prior is None:
        return None

    def collate(places: list[int]) -> dict[str, Tensor]:
        some = rows[places]
        batch = {"input_ids": some.input_ids, "labels": some.labels}
        return batch | {"attention_mask": some.attention_mask} if rows.is_padded else batch

    # Many draws are kept if they are made once; one of the whole vocabulary is not kept at all.
    is_kept = policy.sampler != "full" or (policy.num_draws > 1 and policy.redraw == "never")
    cache = world.cache if is_kept else None
    return ToEditCollator(
        prior, policy, base_collator=collate, tokenizer=world.tokenizer, cache=cache
    )


def _batch(
    collator: ToEditCollator | None, every: TokenRows, places: list[int], num_own: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, labels and draws (of labels made of many) of a step; replayed rows stay as they are.

    Raises:
        ValueError: a step has replayed rows, and labels of many draws, which those lack.
    """
    ids, labels = every.input_ids[places], every.labels[places]
    own = [n for n, place in enumerate(places) if place < num_own]
    draws = None
    if collator is not None and own:
        edited = collator([places[n] for n in own])
        ids, labels = ids.clone(), labels.clone()
        removed = ids.shape[1] - edited["input_ids"].shape[1]  # some policies remove tokens
        ids[own] = F.pad(edited["input_ids"].cpu(), (0, removed))
        labels[own] = F.pad(edited["labels"].cpu(), (0, removed), value=-100)
        draws = edited.get("draws")
        if draws is not None and len(own) < len(places):
            raise ValueError("replay can't be combined with num_draws > 1; leave one of them out")
    return ids, labels, draws


def _orders(
    world: World, settings: RunSettings, seed: int, rows: TokenRows
) -> tuple[TokenRows, list[list[list[int]]]]:
    """All rows, those to replay last; and for each epoch the rows of its steps."""
    generator = torch.Generator().manual_seed(seed)
    every, extra = rows, 0
    if settings.replay:
        if world.settings.replay is None:
            raise ValueError("an arm has replay, and the world has no replay rows; add them")
        more = world.rows(world.settings.replay)
        every = TokenRows.join([rows, more])
        extra = len(more)
    orders = []
    for _ in range(settings.epochs):
        places = torch.randperm(len(rows), generator=generator)
        if extra:
            size = (round(settings.replay * len(rows)),)
            some = torch.randint(extra, size, generator=generator)
            places = torch.cat([places, len(rows) + some])
            places = places[torch.randperm(len(places), generator=generator)]
        orders.append([part.tolist() for part in places.split(settings.batch_rows)])
    return every, orders


def _optimizer(model: nn.Module, settings: RunSettings, num_steps: int) -> tuple[Any, Any]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    warm_up = max(1, round(_WARM_UP * num_steps))
    lowest, rest_of_steps = _LAST_RATE * settings.learning_rate, max(1, num_steps - warm_up)
    rates = torch.optim.lr_scheduler
    warming = rates.LinearLR(optimizer, 1 / warm_up, total_iters=warm_up)
    falling = rates.CosineAnnealingLR(optimizer, rest_of_steps, eta_min=lowest)
    return optimizer, rates.SequentialLR(optimizer, [warming, falling], [warm_up])


def _add_dropout(model: nn.Module, probability: float) -> None:
    """Dropout after the embeddings and after the output of each layer; Llama has none."""
    if not probability:
        return

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return F.dropout(output, probability, module.training)

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.endswith((".o_proj", ".down_proj")):
            module.register_forward_hook(drop)
