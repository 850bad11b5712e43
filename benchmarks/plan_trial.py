"""What `toedit plan` estimates, built with random weights and counted."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from toedit_collate import EditPolicy, Prior, ToEditCollator
from toedit_collate.commands.measuring.calibrate import shape_head
from toedit_collate.commands.measuring.inputs import Inputs, Source
from toedit_collate.commands.measuring.memory import peak_bytes
from toedit_collate.commands.plan.estimate import Estimate, estimate_run
from toedit_collate.commands.plan.models import find_config
from toedit_collate.commands.plan.parameters import with_adapters
from toedit_collate.commands.plan.sharding import Sharding


def on_one(plan: Estimate) -> Estimate:
    """The same run in one process, on full rows."""
    run = replace(plan.run, fsdp=False, packing="wrapped")
    return estimate_run(run, plan.card, Sharding(), plan.mfu)


class Trial:
    """A trainee, a prior and batches, as one process of a recipe has them: no padding, no mask.

    On a CPU, memory is that of tensors alive at once; on a GPU, what the allocator gave out.
    """

    def __init__(self, plan: Estimate, device: str = "cpu") -> None:
        run = plan.run
        self.plan, self.device = plan, torch.device(device)
        dtype = {4: torch.float32, 2: torch.bfloat16}[plan.precision.weights]
        base = self._random(run.model, run.config_overrides, dtype)
        if run.attention is not None:
            base.set_attn_implementation(run.attention)
        self.head_is_fused = run.fused_head
        if run.fused_head:
            from trl.trainer.utils import add_fused_lm_head

            add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
        self.prior_model = None  # beside the trainee
        if plan.prior is not None:
            prior_dtype = torch.float32 if plan.prior.element == 4 else torch.bfloat16
            self.prior_model = self._random(str(run.prior), {}, prior_dtype)
        self.inputs: Inputs | None = None
        prior = None
        if run.prior is not None:
            scores = base if self.prior_model is None else self.prior_model
            direction = shape_head(scores.get_output_embeddings().weight.detach())
            prior = Prior(scores)
            source = Source(prior, "", 0, direction=direction)
            self.inputs = source.inputs(run.B, run.T, option="--max_length")
        self.trainee = base
        if run.lora is not None:
            base.requires_grad_(False)
            self.trainee = with_adapters(base, run.lora)
        if run.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            if run.lora is not None:
                base.enable_input_require_grads()
        if run.prior == "shared":
            prior = Prior.shared(self.trainee)
        self.trainee.train()
        self.collator = None
        if prior is not None:
            self.collator = ToEditCollator(prior, EditPolicy.paper(), base_collator=dict)
        self.trained = [p for p in self.trainee.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(run.optimizer, self.trainee, self.trained)

    def _random(self, name, overrides, dtype):
        from transformers import AutoModelForCausalLM

        config = find_config(name, overrides, field="model_name_or_path")
        torch.manual_seed(0)
        with self.device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype)

    def peak(self, *, edited: bool) -> float:
        """Bytes in use at once in a step, weights and optimizer included."""
        self._step(edited=edited)  # from which on optimizer states are kept
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            always = torch.cuda.memory_allocated(self.device)
        else:
            always = weight_bytes(self.trainee) + state_bytes(self.optimizer)
            if self.prior_model is not None:
                always += weight_bytes(self.prior_model)
        return always + peak_bytes(lambda: self._step(edited=edited), self.device)

    def edit(self):
        """An edited batch."""
        with self.inputs.in_place():
            return self.collator(self.inputs.batch(0)).to(self.device)

    def saved(self) -> int:
        """Bytes that autograd keeps for the backward pass."""
        batch = self._plain_batch()
        return saved_bytes(self.trainee, lambda: self._loss(batch))

    def gradient_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.trained)

    def _step(self, *, edited: bool) -> None:
        """As the Trainer does it: all batches are fetched, and so edited, before the first."""
        fetch = self.edit if edited else self._plain_batch
        for batch in [fetch() for _ in range(self.plan.run.accumulation)]:
            self._loss(batch).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _plain_batch(self):
        if self.inputs is not None:
            return {key: value.to(self.device) for key, value in self.inputs.batch(0).items()}
        run = self.plan.run
        ids = torch.randint(0, self.plan.layers.V, (run.B, run.T), device=self.device)
        return {"input_ids": ids, "labels": ids}

    def _loss(self, batch):
        options = {"fused_lm_head": True} if self.head_is_fused else {}
        casts = torch.autocast(self.device.type, torch.bfloat16) if self.plan.run.autocast else None
        with casts or nullcontext():
            given = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
            return self.trainee(**given, use_cache=False, **options).loss


def optimizer_of(name, model, weights) -> torch.optim.Optimizer:
    """The Trainer's own, by its name."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, optim=name, learning_rate=1e-6, report_to=[])
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind(weights, **options)


def saved_bytes(model: nn.Module, forward) -> int:
    """Bytes of distinct storages that a forward pass keeps, the model's own left out.

    What checkpointing computes again is not seen.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor))
