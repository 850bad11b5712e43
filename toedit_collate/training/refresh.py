"""Swaps the prior during a run of training, and restores it when the run is resumed.

All ranks swap at the same step, or none does. The Trainer's checkpoint holds what resuming needs:
the prior's generation in `trainer_state.json`, and the prior's weights unless they are those of
the checkpoint itself.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from ..distributed import all_reduce, barrier, rank
from ..prior.adapters import active_adapter
from ..prior.base import BasePrior
from ..prior.families import unwrap_model
from ..prior.prior import Prior
from ..prior.sharding import global_shape, has_fsdp1, is_sharded, is_zero3
from ..prior.swap import PreparedSwap
from .snapshot import LiveWeights, link_folder, own_weights, save_prior, unwrap_wrappers

logger = logging.getLogger("toedit_collate")

Refresh = Literal["epoch", "save"] | int | None

# Folder of saved priors, in a checkpoint and in the output folder; each prior has a sub-folder. (A
# Trainer that resumes loads every adapter right below a checkpoint into the trainee.)
FOLDER = "toedit_prior"
_SAME_MODEL = "load the trainee's own base model as the prior, or set refresh=None"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def check_refresh(refresh: Any) -> None:
    """Raise a ValueError for an unknown value of `refresh`."""
    if refresh is None or refresh in ("epoch", "save"):
        return
    if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1:
        raise ValueError(
            "refresh must be None (never), 'epoch', 'save' or a positive number of steps, got "
            f"{refresh!r}"
        )


class Refresher:
    """Swaps a prior for the trainee's current weights, and restores it on resuming.

    `when` is "epoch", "save", a number of steps, or None (never).
    """

    def __init__(self, prior: BasePrior, when: Refresh) -> None:
        # If `when` is given, `check` makes sure that the prior can be swapped.
        self.prior = cast(Prior, prior)
        self.when = when
        self.swapped_at: int | None = None
        self._undo: Callable[[], None] | None = None  # of all swaps
        self._undo_folder: Path | None = None

    def begin(self, args: Any) -> None:
        """Start a run in which nothing was swapped yet."""
        self.swapped_at = self._undo = None
        # Only with this setting does a Trainer start again within `train()`.
        can_restart = args.auto_find_batch_size
        self._undo_folder = Path(args.output_dir) / FOLDER / "start" if can_restart else None

    def restart(self) -> None:
        """Bring the prior back to its state at the start of the run."""
        if self._undo is not None:
            self._undo()
        self._undo = None

    def end(self, args: Any) -> None:
        """Forget the prior's state at the start of the run."""
        if self._undo is not None and self._undo_folder is not None and args.should_save:
            shutil.rmtree(self._undo_folder, ignore_errors=True)
        self._undo = None

    def check(self, args: Any, trainee: nn.Module) -> None:
        """Raise a ValueError at the start of training if no swap can work."""
        if self.when is None:
            return
        self.prior.check_can_swap()
        if self.when == "save" and args.save_strategy == "no":
            raise ValueError(
                "refresh='save' swaps in the checkpoints that the Trainer saves, but "
                "save_strategy is 'no'; set save_strategy, or refresh='epoch'"
            )
        if has_fsdp1(trainee):
            raise ValueError(
                "refresh can't gather the weights of FSDP version 1; set fsdp_version: 2 (in "
                "fsdp_config, or accelerate's config)"
            )
        model = unwrap_wrappers(trainee)
        lm: Any = unwrap_model(self.prior.model)
        name = active_adapter(model)
        has_adapter = name is not None
        if has_adapter and getattr(model.peft_config[name], "is_prompt_learning", False):
            raise ValueError(
                f"refresh takes over trained weights, but {model.peft_config[name].peft_type.value}"
                " trains virtual tokens, which a prior doesn't have; train with LoRA, or set "
                "refresh=None"
            )
        if self.prior.is_shared and not has_adapter:
            raise ValueError(
                "refresh with a shared prior takes snapshots of the trainee's adapter, but it has "
                "none; train with LoRA (peft_config=...), or load a separate prior"
            )
        if _is_quantised(lm) and not has_adapter:
            raise ValueError(
                "refresh can't put full weights into a quantised prior; load the prior without "
                "quantization, or train with LoRA"
            )
        # Quantised weights have other shapes than the originals.
        if not (self.prior.is_shared or _is_quantised(lm) or _is_quantised(unwrap_model(model))):
            _check_same_model(self.prior.model, model, same_values=has_adapter)
        if has_adapter and not is_zero3(trainee):
            self._try(trainee)

    def _try(self, trainee: nn.Module) -> None:
        """Prepare a swap and discard it: PEFT may refuse a second adapter, for example."""
        with tempfile.TemporaryDirectory() as folder:
            source: Path | LiveWeights = LiveWeights(trainee)
            if self.when == "save" and not is_sharded(trainee):
                unwrap_wrappers(trainee).save_pretrained(folder)
                source = Path(folder)
            prepared, problem = self._prepare(source)
            if prepared is not None:
                prepared.discard()
        if problem is not None:
            raise ValueError(
                f"refresh={self.when!r} can never swap the prior for this trainee: {problem}. "
                "Change the adapter, or set refresh=None"
            )

    def _prepare(
        self, source: Path | Mapping[str, Tensor]
    ) -> tuple[PreparedSwap | None, str | None]:
        """Check a swap on all ranks: the prepared swap, or the reason why it is impossible."""
        prepared, problem = None, None
        try:
            prepared = self.prior.prepare_swap(source)
        except Exception as error:  # of any kind: all ranks must know
            problem = str(error)
        if all_reduce([float(problem is None)], "min")[0]:
            return prepared, None
        if prepared is not None:
            prepared.discard()
        return None, problem or "another rank could not read it"

    def swap_live(self, trainee: nn.Module, step: int) -> bool:
        """Swap in the trainee's weights from memory; True if it worked."""
        return self._swap(LiveWeights(trainee), f"the trainee at step {step}", step)

    def swap_saved(self, folder: Path, trainee: nn.Module, step: int) -> bool:
        """Swap in a checkpoint that the Trainer has written; True if it worked.

        FSDP and DeepSpeed may write shards in their own format and no safetensors. Then the live
        weights are used, which are the same.
        """
        barrier()  # another rank may write it
        if is_sharded(trainee) or is_zero3(trainee):
            readable = any((folder / name).is_file() for name in _WEIGHTS)
            if not all_reduce([float(readable)], "max")[0]:
                return self.swap_live(trainee, step)
        return self._swap(folder, str(folder), step)

    def _swap(self, source: Path | Mapping[str, Tensor], name: str, step: int) -> bool:
        prepared, problem = self._prepare(source)
        if prepared is None:
            logger.error(
                f"the prior was not swapped for {name}: {problem}. Training continues with the old "
                f"prior, of generation {self.prior.generation}"
            )
            return False
        if self._undo_folder is not None and self._undo is None:
            self._undo = self._remember_start(prepared, self._undo_folder)
        self.prior.complete_swap(prepared)
        self.swapped_at = step
        return True

    def _remember_start(self, prepared: PreparedSwap, folder: Path) -> Callable[[], None]:
        """Before the first swap: what brings the prior back to this state."""
        prior, replaces, discard = self.prior, prepared.replaces, prepared.discard
        model, adapter, generation = prior.model, prior.adapter, prior.generation
        if replaces:
            if rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            barrier()
            save_prior(prior, folder, writes=rank() == 0)
            barrier()

        def undo() -> None:
            if replaces:
                prior.swap(folder)
            else:
                discard()
                prior.model, prior.adapter = model, adapter
            prior.generation = generation

        return undo

    @property
    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        return {
            "refresh": self.when,
            "generation": self.prior.generation,
            "swapped_at": self.swapped_at,
            "prior": self.prior.fingerprint,
        }

    def store(self, args: Any) -> None:
        """Before a checkpoint is written: save the prior, unless it is saved already."""
        if not self._must_be_stored:
            return
        folder = _stored(Path(args.output_dir), self.state)
        if not all_reduce([float(folder.is_dir())], "min")[0]:
            save_prior(self.prior, folder, writes=args.should_save)
        if args.should_save:
            _remove_older(folder)

    def link_into(self, checkpoint: Path, args: Any) -> None:
        """Put the saved prior into a checkpoint, so that it is complete by itself."""
        if self._must_be_stored:
            state = self.state  # a collective
            if args.should_save:
                link_folder(_stored(Path(args.output_dir), state), _stored(checkpoint, state))

    @property
    def _must_be_stored(self) -> bool:
        # With "save", the prior is the checkpoint itself.
        return self.swapped_at is not None and self.when != "save"

    def restore(
        self, saved: dict[str, Any], checkpoint: Path, trainee: nn.Module, state: Any
    ) -> None:
        """Bring the prior to its state after the checkpoint in the uninterrupted run.

        Args:
            saved: the `state` from the checkpoint.
            checkpoint: its folder.
            trainee: with the checkpoint's weights.
            state: the `TrainerState` of the checkpoint.

        Raises:
            FileNotFoundError: the prior's weights are not in the checkpoint.
            ValueError: this prior is not the one of the run.
        """
        step = state.global_step
        self.prior.generation = saved["generation"]
        self.swapped_at = saved["swapped_at"]
        # The run saved its state first, and then swapped the checkpoint in.
        if saved["refresh"] == "save" and self.swap_saved(checkpoint, trainee, step):
            return
        if saved["swapped_at"] is not None:
            self._restore_stored(saved, checkpoint)
        elif self.prior.fingerprint != saved["prior"]:
            raise ValueError(
                f"prior is not the one that edited the run in {checkpoint} (or it is in another "
                "precision); pass the same prior, or start a new run"
            )
        # The checkpoint of an epoch's last step is written before the epoch ends. A run that
        # resumes from it starts with the next epoch.
        is_over = state.epoch is not None and state.epoch == int(state.epoch)
        if saved["refresh"] == self.when == "epoch" and is_over and self.swapped_at != step:
            self.swap_live(trainee, step)

    def _restore_stored(self, saved: dict[str, Any], checkpoint: Path) -> None:
        # A run that is killed right after it has written a checkpoint has not linked the prior.
        places = [_stored(checkpoint, saved), _stored(checkpoint.parent, saved)]
        for folder in places:
            if folder.is_dir():
                self.prior.swap(folder)
                self.prior.generation = saved["generation"]
                return
        raise FileNotFoundError(
            f"checkpoint {checkpoint} was made with a prior of generation {saved['generation']}, "
            f"whose weights are not in {places[0]}; resume from another checkpoint"
        )


def _stored(folder: Path, state: dict[str, Any]) -> Path:
    # With the fingerprint: another run may use the same folder with other priors.
    name = f"generation-{state['generation']:04d}-{state['prior'][:12]}"
    return folder / FOLDER / name


def _remove_older(folder: Path) -> None:
    """Keep the last two: the previous checkpoint may have no copy of its own yet."""
    others = [f for f in folder.parent.glob("generation-*") if f.is_dir() and f != folder]
    for old in sorted(others, key=lambda f: f.stat().st_mtime_ns)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def _is_quantised(lm: Any) -> bool:
    return bool(getattr(lm, "quantization_method", None))


def _check_same_model(prior: nn.Module, trainee: nn.Module, *, same_values: bool) -> None:
    """Raise unless both models have weights of the same shapes, or also the same values."""
    ours, theirs = own_weights(prior), own_weights(trainee)
    for name in sorted(set(ours) | set(theirs)):
        shapes = [tuple(global_shape(w[name])) if name in w else None for w in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "refresh puts the trainee's weights into the prior, but the prior "
                f"({type(unwrap_model(prior)).__name__}) is another model than the trainee "
                f"({type(unwrap_model(trainee)).__name__}): {name!r} has shape {shapes[0]} in the "
                f"prior, {shapes[1]} in the trainee; {_SAME_MODEL}"
            )
    for name in ours if same_values else ():
        if not _about_equal(ours[name], theirs[name]):
            raise ValueError(
                "refresh puts the trainee's adapter over the prior's base, but that is another "
                f"base than the trainee's: they differ in {name!r}; {_SAME_MODEL}"
            )


def _about_equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the first weights are the same up to rounding."""
    here = [getattr(t, "to_local", lambda t=t: t)() for t in (ours, theirs)]
    a, b = (tensor.detach().flatten()[:64].float().cpu() for tensor in here)
    if here[0].shape != here[1].shape:  # one of the two is sharded
        return True
    return bool((a - b).abs().max() <= 0.02 * a.abs().max()) if len(a) else True
