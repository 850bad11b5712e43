"""`toedit sft` from end to end: arguments, TRL's script, and our editing in its trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from ...config.arguments import EditArguments, name_of
from ...config.card import add_to_card
from ...config.models import attach_settings, load_prior
from ...config.parse import parse
from ...data.reading import is_local, load_rows, parse_source
from ...errors import UnusableError
from ...training.attach import attach


def run_sft(args: Sequence[str]) -> None:
    """Train as `trl sft` does, on batches that are edited as the arguments say.

    Args:
        args: those of TRL's script and the fields of `EditArguments`; `--config FILE.yaml` has
            either.

    Raises:
        UnusableError: an argument can't be used, or TRL is not installed or has another script.
        SystemExit: `--help`, or an argument that nobody knows.
    """
    try:
        from trl.scripts import sft as script
    except ImportError as error:
        raise UnusableError(
            f'toedit sft is TRL\'s script ({error}); pip install "toedit_collate[recipes]"'
        ) from None
    types = script.make_parser().dataclass_types
    *of_trl, edit = parse(*types, EditArguments, args=args, prog="toedit sft")
    _check(edit, of_trl)
    with _trainer_of_script(script, edit) as made, _local_files(script):
        script.main(*of_trl)
    if not made and edit.policy() is not None:
        raise UnusableError(
            "the SFT script of this version of TRL makes its trainer in another way, so nothing "
            "was edited; use a version of TRL that toedit_collate's metadata allows"
        )


def _check(edit: EditArguments, of_trl: list[Any]) -> None:
    """Refuse, before a model is loaded, what could not be done once it is."""
    uses_peft = any(getattr(one, "use_peft", False) for one in of_trl)
    if edit.policy() is not None and edit.prior == "shared" and not uses_peft:
        raise UnusableError(
            "prior is 'shared', the frozen base of a LoRA trainee, and this run trains all "
            "weights; name a prior by its folder or hub id (prior: NAME), or set use_peft: true"
        )


class _Splits:
    """What `datasets.load_dataset` returns without a split: the splits of a local source."""

    def __init__(self, name: str, config: str | None, streaming: bool) -> None:
        self._name, own_config, self._own_split = parse_source(name, "dataset_name")
        self._config, self._streaming = config or own_config, streaming

    def __getitem__(self, split: str) -> Any:
        split = self._own_split if split == "train" else split
        return load_rows(
            self._name, self._config, split, streaming=self._streaming, option="dataset_name"
        )


@contextmanager
def _local_files(script: Any) -> Iterator[None]:
    """In here, TRL's script reads local files as recipes do; `load_dataset` knows folders only."""
    import datasets

    original = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if not is_local(path) or options.get("data_files") or options.get("data_dir"):
            return original(path, name, **options)
        splits = _Splits(path, name, bool(options.get("streaming")))
        split = options.get("split")
        return splits if split is None else splits[split]

    places: list[Any] = [datasets, *([script] if hasattr(script, "load_dataset") else [])]
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(patch.object(place, "load_dataset", load_dataset))
        yield


@contextmanager
def _trainer_of_script(script: Any, edit: EditArguments) -> Iterator[list[Any]]:
    """In here, the trainer that TRL's script makes edits its batches; yields those made."""
    import trl

    policy = edit.policy()
    original = trl.SFTTrainer
    made: list[Any] = []

    class EditingSFTTrainer(original):  # type: ignore[misc, valid-type]
        """TRL's trainer with an edit attached as soon as it exists."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)
            settings = attach_settings(edit, self.args.output_dir)
            attach(self, load_prior(edit, self), policy, **settings)
            resumed = self.args.resume_from_checkpoint is not None
            name = name_of(edit.edit_policy, edit.changes())
            add_to_card(self, name, policy, is_resumed=resumed)

    if policy is None:
        yield made
        return
    # The script imports the class when it is called; older ones did when they were imported.
    places = [trl, *([script] if hasattr(script, "SFTTrainer") else [])]
    for place in places:
        place.SFTTrainer = EditingSFTTrainer
    try:
        yield made
    finally:
        for place in places:
            place.SFTTrainer = original
