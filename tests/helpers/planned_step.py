"""A real step of a planned run, with random weights: what `toedit plan` counts, measured."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext

import torch
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from toedit_collate import Prior, ToEditCollator
from toedit_collate.commands.bench import peak_bytes
from toedit_collate.commands.plan import Run, find_config


class RealStep:
    """A trainee, a prior and a batch, as one process of a recipe has them; full rows, no mask."""

    def __init__(self, run: Run, device: str = "cpu") -> None:
        from peft import get_peft_model
        from trl import get_peft_config

        self.run, self.device = run, torch.device(device)
        self.B, self.T, self.batches = run.rows_and_tokens
        dtype = run.model.dtype if run.model.dtype != "auto" else "float32"
        base = self._random(run.name, run.others.get("config_overrides") or {}, dtype)
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
        self.prior_model = None  # next to the trainee
        if run.policy is not None and run.edit.prior != "shared":
            self.prior_model = self._random(run.edit.prior, {}, dtype)
        self.trainee = base
        if run.model.use_peft:
            base.requires_grad_(False)
            self.trainee = get_peft_model(base, get_peft_config(run.model))
        if run.training.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        self.collator = None
        if run.policy is not None:
            shared = self.prior_model is None
            prior = Prior.shared(self.trainee) if shared else Prior(self.prior_model)
            self.collator = ToEditCollator(prior, run.policy, base_collator=dict)
        self.trainee.train()
        self.trained = [p for p in self.trainee.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(run.training.optim, self.trainee, self.trained)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, base.config.vocab_size, (self.B, self.T), generator=generator)
        self.batch = {"input_ids": ids, "labels": ids.clone()}

    def _random(self, name, overrides, dtype):
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with self.device:
            config, _ = find_config(name, overrides)
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))

    def peak(self) -> int:
        """Bytes in use at once in a step, weights and optimizer included."""
        self.step()  # from here on there are optimizer states
        always = weight_bytes(self.trainee) + state_bytes(self.optimizer)
        if self.prior_model is not None:
            always += weight_bytes(self.prior_model)
        return always + peak_bytes(self.step, self.device)

    def edit(self):
        """An edited batch."""
        if self.collator is None:
            return {key: value.to(self.device) for key, value in self.batch.items()}
        return self.collator({k: v.clone() for k, v in self.batch.items()}).to(self.device)

    def step(self) -> None:
        """As the Trainer does it: all batches are fetched, and so edited, before the first."""
        for batch in [self.edit() for _ in range(self.batches)]:
            casts = torch.autocast(self.device.type, torch.bfloat16)
            with casts if self.run.training.bf16 else nullcontext():
                loss = self.trainee(**batch, use_cache=False, fused_lm_head=True).loss
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def optimizer_of(name, model, weights) -> torch.optim.Optimizer:
    """The Trainer's own, by its name."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, optim=name, learning_rate=1e-6, report_to=[])
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind(weights, **options)


def weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor))
