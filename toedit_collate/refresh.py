"""Generations of the prior in one run of training: when it is swapped, for what, and after a kill.

A swap happens on all ranks at the same step, or on none. What is needed to resume stands in the
Trainer's checkpoint: in `trainer_state.json`, which generation the prior is of, and beside it the
prior's weights where they are not those of the checkpoint itself.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from .adapters import active_adapter
from .families import unwrap_model
from .prior import Prior
from .sharding import all_reduce, barrier, has_fsdp1, world_size
from .snapshot import LiveWeights, link_folder, save_prior, shapes, unwrap_wrappers

logger = logging.getLogger("toedit_collate")

Refresh = Literal["epoch", "save"] | int | None

# Folder of saved priors: in a checkpoint, and in the output folder.
FOLDER = "toedit_prior"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def check_refresh(refresh: Any) -> None:
    """Raise unless `refresh` says when the prior is swapped."""
    if refresh is None or refresh in ("epoch", "save"):
        return
    if isinstance(refresh, bool) or not isinstance(refresh, int):
        raise ValueError(
            f"refresh must be None, 'epoch', 'save' or a number of steps, got {refresh!r}"
        )
    if refresh < 1:
        raise ValueError(f"refresh must be at least 1 step, got {refresh}; None never swaps")


class Refresher:
    """Swaps a prior for the trainee as it is now, and remembers it across a kill.

    Args:
        prior: to swap.
        when: "epoch", "save", a number of steps, or None: never.
    """

    def __init__(self, prior: Prior, when: Refresh) -> None:
        self.prior = prior
        self.when = when
        self.has_swapped = False

    def check(self, args: Any, trainee: nn.Module) -> None:
        """Raise at the start of training where a swap could never work.

        Raises:
            ValueError: says why, and what to do instead.
        """
        if self.when is None:
            return
        if self.when == "save" and args.save_strategy == "no":
            raise ValueError(
                "refresh='save' takes up the checkpoints that the Trainer saves, but "
                "save_strategy is 'no'; set save_strategy, or refresh='epoch'"
            )
        if has_fsdp1(trainee):
            raise ValueError(
                "refresh can't gather the weights of FSDP version 1; set fsdp_version: 2 (in "
                "fsdp_config, or accelerate's config)"
            )
        model = unwrap_wrappers(trainee)
        lm: Any = unwrap_model(self.prior.model)
        if active_adapter(model) is None and self.prior.is_shared:
            raise ValueError(
                "refresh with a shared prior takes snapshots of the trainee's adapter, but it has "
                "none; train with LoRA (peft_config=...), or load a separate prior"
            )
        if active_adapter(model) is None and getattr(lm, "quantization_method", None):
            raise ValueError(
                "refresh can't put full weights into a quantised prior; load the prior without "
                "quantization, or train with LoRA"
            )
        if self.prior.is_shared or getattr(lm, "quantization_method", None):
            return
        ours, theirs = shapes(self.prior.model), shapes(model)
        differ = sorted(n for n in set(ours) | set(theirs) if ours.get(n) != theirs.get(n))
        if differ:
            raise ValueError(
                f"refresh puts the trainee's weights into the prior, but the prior "
                f"({type(lm).__name__}) is another model than the trainee "
                f"({type(unwrap_model(model)).__name__}): {differ[0]!r} has shape "
                f"{ours.get(differ[0])} in the prior, {theirs.get(differ[0])} in the trainee; "
                "load the trainee's own model as the prior, or set refresh=None"
            )

    def swap_live(self, trainee: nn.Module, step: int) -> bool:
        """Take over the trainee's weights as they are in memory; True if it worked."""
        return self._swap(LiveWeights(trainee), f"the trainee at step {step}")

    def swap_saved(self, folder: Path, trainee: nn.Module, step: int) -> bool:
        """Take over a checkpoint that the Trainer has written; True if it worked.

        Where it holds no safetensors (shards of FSDP or DeepSpeed), the live weights, which are
        the same.
        """
        barrier()  # it may be that another rank writes it
        readable = any((folder / name).is_file() for name in _WEIGHTS)
        if folder.is_dir() and not all_reduce([float(readable)], "max")[0]:
            return self.swap_live(trainee, step)
        return self._swap(folder, str(folder))

    def _swap(self, source: Path | Mapping[str, Tensor], name: str) -> bool:
        problem: Exception | None = None
        prepared = None
        try:
            prepared = self.prior.prepare_swap(source)
        except (ValueError, OSError) as error:
            problem = error
        if not all_reduce([float(problem is None)], "min")[0]:
            if prepared is not None:
                prepared.discard()
            logger.error(
                "the prior was not swapped for %s: %s. It stays of generation %d, and training "
                "goes on with it",
                name,
                problem or "another rank could not read it",
                self.prior.generation,
            )
            return False
        assert prepared is not None
        self.prior.complete_swap(prepared)
        self.has_swapped = True
        return True

    # What a checkpoint needs.

    def store(self, args: Any) -> None:
        """Save the prior, unless it can be had again, before a checkpoint is written."""
        if not self.has_swapped or self.when == "save":
            return
        folder = self._stored(Path(args.output_dir))
        if not _exists_everywhere(folder):
            save_prior(self.prior, folder, writes=args.should_save)
        if args.should_save:
            _remove_older(folder)

    def link_into(self, checkpoint: Path, args: Any) -> None:
        """Put the saved prior into a checkpoint, so that it is whole by itself."""
        if self.has_swapped and self.when != "save" and args.should_save:
            link_folder(self._stored(Path(args.output_dir)), checkpoint / FOLDER)

    def _stored(self, output_dir: Path) -> Path:
        return output_dir / FOLDER / f"generation-{self.prior.generation:04d}"

    def restore(self, saved: dict[str, Any], checkpoint: Path, trainee: nn.Module) -> None:
        """Bring the prior to where it was when the uninterrupted run went on from a checkpoint.

        Args:
            saved: what was in the checkpoint's state: `generation`, `has_swapped`, `prior`.
            checkpoint: its folder.
            trainee: with the checkpoint's weights.

        Raises:
            FileNotFoundError: the prior's weights are not in the checkpoint.
            ValueError: this prior is not the one of the run.
        """
        generation = saved["generation"]
        self.has_swapped = False
        if self.when == "save":
            # The run saved its state, and then took the checkpoint up.
            step = int(re.sub(r"\D", "", checkpoint.name) or 0)
            if self.swap_saved(checkpoint, trainee, step):
                self.prior.generation = generation + 1
                return
        if saved["has_swapped"]:
            self._restore_stored(generation, checkpoint)
            return
        if self.prior.fingerprint != saved["prior"]:
            raise ValueError(
                f"prior is not the one with which the run in {checkpoint} was edited (or it is in "
                "another precision); pass the same prior, or begin a new run"
            )
        self.prior.generation = generation

    def _restore_stored(self, generation: int, checkpoint: Path) -> None:
        self.prior.generation = generation
        for folder in (checkpoint / FOLDER, self._stored(checkpoint.parent)):
            if folder.is_dir():
                self.prior.swap(folder)
                self.prior.generation = generation
                self.has_swapped = True
                return
        raise FileNotFoundError(
            f"checkpoint {checkpoint} was made with a prior of generation {generation}, whose "
            f"weights are not in {checkpoint / FOLDER}; resume from another checkpoint"
        )


def _exists_everywhere(folder: Path) -> bool:
    return bool(all_reduce([float(folder.is_dir())], "min")[0])


def _remove_older(folder: Path) -> None:
    """Keep the last two: a checkpoint of the one before may have no copy of its own yet."""
    kept = sorted(f for f in folder.parent.iterdir() if re.fullmatch(r"generation-\d+", f.name))
    for old in kept[:-2]:
        shutil.rmtree(old, ignore_errors=True)


def share_run(run: str, journal_attempt: int | None) -> tuple[str, int | None]:
    """The identity of the run and of its last attempt, as rank 0 has them; a collective."""
    if world_size() == 1:
        return run, journal_attempt
    from accelerate.utils import broadcast_object_list

    shared: list[Any] = [run, journal_attempt]
    broadcast_object_list(shared)
    return shared[0], shared[1]
