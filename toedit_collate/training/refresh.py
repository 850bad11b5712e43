"""Generations of the prior in one run of training: when it is swapped, for what, and after a kill.

A swap happens on all ranks at the same step, or on none. What is needed to resume stands in the
Trainer's checkpoint: in `trainer_state.json`, which generation the prior is of, and beside it the
prior's weights where they are not those of the checkpoint itself.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

# Folder of saved priors, in a checkpoint and in the output folder; each in a folder of its own in
# it. (On resuming, a Trainer puts every adapter on the trainee that lies right below a checkpoint.)
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


@dataclass(frozen=True)
class _Start:
    """A prior as it was before the first swap of a run.

    Attributes:
        model: of the prior.
        adapter: of a shared prior.
        generation: number of swaps before.
        discard: takes away the adapter that the first swap added.
        saved: folder with the weights that the first swap replaced; None: it added an adapter.
    """

    model: Any
    adapter: str | None
    generation: int
    discard: Callable[[], Any]
    saved: Path | None


class Refresher:
    """Swaps a prior for the trainee as it is now, and remembers it across a kill.

    Args:
        prior: to swap.
        when: "epoch", "save", a number of steps, or None: never.
    """

    def __init__(self, prior: BasePrior, when: Refresh) -> None:
        # Where a swap is wanted, `check` has seen that the prior has weights.
        self.prior = cast(Prior, prior)
        self.when = when
        self.swapped_at: int | None = None
        self._start: _Start | None = None
        self._start_folder: Path | None = None

    def begin(self, args: Any) -> None:
        """Begin a run in which nothing was swapped yet."""
        self.swapped_at = self._start = None
        # Only with this setting does a Trainer begin again what it has given up.
        self._start_folder = None
        if args.auto_find_batch_size:
            self._start_folder = Path(args.output_dir) / FOLDER / "start"

    def restart(self) -> None:
        """Bring the prior back to where it was when the run began."""
        start, self._start = self._start, None
        if start is None:
            return
        if start.saved is not None:
            self.prior.swap(start.saved)
        else:
            start.discard()
            self.prior.model, self.prior.adapter = start.model, start.adapter
        self.prior.generation = start.generation

    def end(self, args: Any) -> None:
        """Forget where the prior was when the run began."""
        if self._start is not None and self._start.saved is not None and args.should_save:
            shutil.rmtree(self._start.saved, ignore_errors=True)
        self._start = None

    def check(self, args: Any, trainee: nn.Module) -> None:
        """Raise at the start of training where a swap could never work.

        Raises:
            ValueError: says why, and what to do instead.
        """
        if self.when is None:
            return
        self.prior.check_can_swap()
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
        has_adapter = active_adapter(model) is not None
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
        # What is quantised has other shapes than what it was made from.
        if not (self.prior.is_shared or _is_quantised(lm) or _is_quantised(unwrap_model(model))):
            _check_same_model(self.prior.model, model, same_values=has_adapter)
        if has_adapter and not is_zero3(trainee):
            self._try(trainee)

    def _try(self, trainee: nn.Module) -> None:
        """Prepare a swap as it will be, and undo that: PEFT may refuse a second adapter, say."""
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
        """Check a swap on all ranks: what is ready to be copied on all, or why it is not."""
        problem: str | None = None
        prepared = None
        try:
            prepared = self.prior.prepare_swap(source)
        except Exception as error:  # whatever is wrong with it: all ranks must hear of that
            problem = str(error)
        if all_reduce([float(problem is None)], "min")[0]:
            return prepared, None
        if prepared is not None:
            prepared.discard()
        return None, problem or "another rank could not read it"

    def swap_live(self, trainee: nn.Module, step: int) -> bool:
        """Take over the trainee's weights as they are in memory; True if it worked."""
        return self._swap(LiveWeights(trainee), f"the trainee at step {step}", step)

    def swap_saved(self, folder: Path, trainee: nn.Module, step: int) -> bool:
        """Take over a checkpoint that the Trainer has written; True if it worked.

        FSDP and DeepSpeed may write shards of their own and no safetensors; then the live weights,
        which are the same.
        """
        barrier()  # it may be that another rank writes it
        if is_sharded(trainee) or is_zero3(trainee):
            readable = any((folder / name).is_file() for name in _WEIGHTS)
            if not all_reduce([float(readable)], "max")[0]:
                return self.swap_live(trainee, step)
        return self._swap(folder, str(folder), step)

    def _swap(self, source: Path | Mapping[str, Tensor], name: str, step: int) -> bool:
        prepared, problem = self._prepare(source)
        if prepared is None:
            logger.error(
                "the prior was not swapped for %s: %s. It stays of generation %d, and training "
                "goes on with it",
                name,
                problem,
                self.prior.generation,
            )
            return False
        if self._start_folder is not None and self._start is None:
            self._start = self._keep(prepared, self._start_folder)
        self.prior.complete_swap(prepared)
        self.swapped_at = step
        return True

    def _keep(self, prepared: PreparedSwap, folder: Path) -> _Start:
        """What `restart` needs, before the first swap."""
        prior, saved = self.prior, None
        if prepared.replaces:
            if rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            barrier()
            save_prior(prior, folder, writes=rank() == 0)
            barrier()
            saved = folder
        return _Start(prior.model, prior.adapter, prior.generation, prepared.discard, saved)

    # What a checkpoint needs.

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
        """Save the prior, unless it can be had again, before a checkpoint is written."""
        if not self._must_be_stored:
            return
        folder = _stored(Path(args.output_dir), self.state)
        if not _exists_everywhere(folder):
            save_prior(self.prior, folder, writes=args.should_save)
        if args.should_save:
            _remove_older(folder)

    def link_into(self, checkpoint: Path, args: Any) -> None:
        """Put the saved prior into a checkpoint, so that it is whole by itself."""
        if self._must_be_stored:
            state = self.state
            if args.should_save:
                link_folder(_stored(Path(args.output_dir), state), _stored(checkpoint, state))

    @property
    def _must_be_stored(self) -> bool:
        # With "save", the prior is the checkpoint itself.
        return self.swapped_at is not None and self.when != "save"

    def restore(
        self, saved: dict[str, Any], checkpoint: Path, trainee: nn.Module, state: Any
    ) -> None:
        """Bring the prior to where it was when the uninterrupted run went on from a checkpoint.

        Args:
            saved: the `state` that was in the checkpoint.
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
        # The run saved its state, and then took the checkpoint up.
        if saved["refresh"] == "save" and self.swap_saved(checkpoint, trainee, step):
            return
        if saved["swapped_at"] is not None:
            self._restore_stored(saved, checkpoint)
        elif self.prior.fingerprint != saved["prior"]:
            raise ValueError(
                f"prior is not the one with which the run in {checkpoint} was edited (or it is in "
                "another precision); pass the same prior, or begin a new run"
            )
        # A checkpoint of an epoch's last step is written before the epoch is over; a run that is
        # resumed from it begins with the next.
        is_over = state.epoch is not None and state.epoch == int(state.epoch)
        if saved["refresh"] == self.when == "epoch" and is_over and self.swapped_at != step:
            self.swap_live(trainee, step)

    def _restore_stored(self, saved: dict[str, Any], checkpoint: Path) -> None:
        # A run that was killed right after it had written the checkpoint had not linked it yet.
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
    # With the fingerprint: another run in the same folder had other priors.
    name = f"generation-{state['generation']:04d}-{state['prior'][:12]}"
    return folder / FOLDER / name


def _exists_everywhere(folder: Path) -> bool:
    return bool(all_reduce([float(folder.is_dir())], "min")[0])


def _remove_older(folder: Path) -> None:
    """Keep the last two: a checkpoint of the one before may have no copy of its own yet."""
    others = [f for f in folder.parent.glob("generation-*") if f.is_dir() and f != folder]
    for old in sorted(others, key=lambda f: f.stat().st_mtime_ns)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def _is_quantised(lm: Any) -> bool:
    return bool(getattr(lm, "quantization_method", None))


def _check_same_model(prior: nn.Module, trainee: nn.Module, *, same_values: bool) -> None:
    """Raise unless both have the same weights: their shapes, or their values too."""
    ours, theirs = own_weights(prior), own_weights(trainee)
    names = f"({type(unwrap_model(prior)).__name__})", f"({type(unwrap_model(trainee)).__name__})"
    for name in sorted(set(ours) | set(theirs)):
        shapes = [tuple(global_shape(w[name])) if name in w else None for w in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"refresh puts the trainee's weights into the prior, but the prior {names[0]} is "
                f"another model than the trainee {names[1]}: {name!r} has shape {shapes[0]} in "
                f"the prior, {shapes[1]} in the trainee; load the trainee's own model as the "
                "prior, or set refresh=None"
            )
    if same_values:
        differ = [name for name in ours if not _about_equal(ours[name], theirs[name])]
        if differ:
            raise ValueError(
                "refresh puts the trainee's adapter over the prior's base, but that is another "
                f"base than the trainee's: they differ in {differ[0]!r}; load the trainee's base "
                "as the prior, or set refresh=None"
            )


def _about_equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether weights are the same up to their precision, by a few of them."""
    here = [getattr(t, "to_local", lambda t=t: t)() for t in (ours, theirs)]
    a, b = (tensor.detach().flatten()[:64].float().cpu() for tensor in here)
    if here[0].shape != here[1].shape:  # one of the two is spread over ranks
        return True
    return bool((a - b).abs().max() <= 0.02 * a.abs().max()) if len(a) else True
