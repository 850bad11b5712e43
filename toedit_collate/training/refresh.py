"""Swaps the prior during a run of training, and restores it when the run is resumed.

All ranks swap at the same step, or none does. The Trainer's checkpoint holds what resuming needs:
the prior's generation in `trainer_state.json`, and the prior's weights unless they are those of
the checkpoint itself.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from ..distributed import all_reduce, barrier, rank
from ..prior.adapters import active_adapter
from ..prior.base import BasePrior
from ..prior.families import unwrap_model
from ..prior.prior import Prior
from ..prior.sharding import has_fsdp1, is_sharded, is_zero3
from ..prior.swap import PreparedSwap
from .snapshot import LiveWeights, link_folder, own_weights, save_prior, unwrap_wrappers

logger = logging.getLogger("toedit_collate")

Refresh = Literal["epoch", "save"] | int | None

# Folder of saved priors, in a checkpoint and in the output folder; each prior has a sub-folder. (A
# Trainer that resumes loads every adapter right below a checkpoint into the trainee.)
FOLDER = "toedit_prior"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def check_refresh(refresh: Any) -> None:
    """Raise a ValueError for an unknown value of `refresh`."""
    if refresh in (None, "epoch", "save"):
        return
    if not isinstance(refresh, int) or refresh < 1:
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
        if is_zero3(trainee):
            return
        if not (self.prior.is_shared or is_sharded(trainee)):
            _check_same_base(self.prior.model, unwrap_wrappers(trainee))
        # PEFT may refuse a second adapter, for example.
        prepared, problem = self._prepare(LiveWeights(trainee))
        if prepared is None:
            raise ValueError(
                f"refresh={self.when!r} can never swap the prior for this trainee: {problem}. "
                "Train with LoRA for a shared prior, load the trainee's own base model as a "
                "separate one, or set refresh=None"
            )
        prepared.discard()

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

        `saved` is the `state` from the checkpoint, `trainee` has the checkpoint's weights, and
        `state` is its `TrainerState`. Raises a FileNotFoundError if the prior's weights are not in
        the checkpoint, and a ValueError if this prior is not the one of the run.
        """
        step = state.global_step
        self.prior.generation = saved["generation"]
        self.swapped_at = saved["swapped_at"]
        # The run saved its state first, and then swapped the checkpoint in.
        if saved["refresh"] == "save" and self.swap_saved(checkpoint, trainee, step):
            return
        if saved["swapped_at"] is not None:
            # A run that is killed right after it has written a checkpoint has not linked the prior.
            places = [_stored(checkpoint, saved), _stored(checkpoint.parent, saved)]
            stored = next((folder for folder in places if folder.is_dir()), None)
            if stored is None:
                raise FileNotFoundError(
                    f"checkpoint {checkpoint} was made with a prior of generation "
                    f"{saved['generation']}, whose weights are not in {places[0]}; resume from "
                    "another checkpoint"
                )
            self.prior.swap(stored)
            self.prior.generation = saved["generation"]
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


def _stored(folder: Path, state: dict[str, Any]) -> Path:
    # With the fingerprint: another run may use the same folder with other priors.
    name = f"generation-{state['generation']:04d}-{state['prior'][:12]}"
    return folder / FOLDER / name


def _remove_older(folder: Path) -> None:
    """Keep the last two: the previous checkpoint may have no copy of its own yet."""
    others = [f for f in folder.parent.glob("generation-*") if f.is_dir() and f != folder]
    for old in sorted(others, key=lambda f: f.stat().st_mtime_ns)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def _check_same_base(prior: nn.Module, trainee: nn.Module) -> None:
    """Raise a ValueError if the trainee's adapter was trained on another base than the prior's."""
    quantized = any(getattr(unwrap_model(m), "quantization_method", None) for m in (prior, trainee))
    if active_adapter(trainee) is None or quantized:
        return
    theirs = own_weights(trainee)
    for name, weight in own_weights(prior).items():
        if name not in theirs or weight.shape != theirs[name].shape:
            continue  # the swap that is tried next fails
        a, b = (t.detach().flatten()[:64].float().cpu() for t in (weight, theirs[name]))
        if (a - b).abs().max() > 0.02 * a.abs().max():  # more than rounding
            raise ValueError(
                "refresh puts the trainee's adapter over the prior's base, but that is another "
                f"base than the trainee's: they differ in {name!r}; load the trainee's own base "
                "model as the prior, or set refresh=None"
            )
