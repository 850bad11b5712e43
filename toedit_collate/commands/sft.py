"""`toedit sft`: TRL's own SFT script, with all of its options, on token-edited batches.

On several processes: `accelerate launch -m toedit_collate.commands.sft --config FILE.yaml`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from ..config.console import run_guarded
from ..errors import UnusableError

_EXAMPLE = """\
example: train on labels that a larger model of the same family draws:
  toedit sft --model_name_or_path Qwen/Qwen2.5-0.5B --use_peft --dataset_name trl-lib/Capybara \\
      --prior Qwen/Qwen2.5-7B --edit_policy distill --decision_cache true --output_dir out
"""


def add_sft(commands: Any) -> None:
    """Add `sft` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "sft", help="TRL's own SFT script, with all of its options, on token-edited batches"
    )

    def run(args: argparse.Namespace) -> None:
        run_sft(args.rest)

    # TRL's parser reads all words, `--help` too.
    parser.parse_known_args = lambda words, _: (argparse.Namespace(run=run, rest=words), [])


def run_sft(args: Sequence[str]) -> None:
    """Train as `trl sft` does, on edited batches. `args` are TRL's and those of `EditArguments`.

    Raises:
        UnusableError: an argument cannot be used, or TRL is not installed or has another script.
        SystemExit: `--help`, or an unknown argument.
    """
    from ..config.arguments import EditArguments  # late: `toedit --help` needs none of it
    from ..config.parse import parse

    try:
        import datasets
        import trl
        from trl.scripts import sft as script
    except ImportError as error:
        raise UnusableError(
            f'toedit sft is TRL\'s script ({error}); pip install "toedit_collate[recipes]"'
        ) from None
    types = script.make_parser().dataclass_types
    edit, *of_trl = parse(EditArguments, *types, args=args, prog="toedit sft", epilog=_EXAMPLE)
    made: list[Any] = []
    ours = {"load_dataset": _load_dataset}
    if edit.policy() is not None:
        ours["SFTTrainer"] = _editing_trainer(edit, made)
    with ExitStack() as stack:
        # TRL's script imports them when it is called; older ones when they were imported.
        for module, name in ((datasets, "load_dataset"), (trl, "SFTTrainer")):
            for place in (module, script):
                if name in ours and hasattr(place, name):
                    stack.enter_context(patch.object(place, name, ours[name]))
        script.main(*of_trl)
    if not made and edit.policy() is not None:
        raise UnusableError(
            "the SFT script of this version of TRL makes its trainer in another way, so nothing "
            "was edited; use a version of TRL that toedit_collate's metadata allows"
        )


def _editing_trainer(edit: Any, made: list[Any]) -> Any:
    """A subclass of TRL's trainer that attaches the edit. New trainers are appended to `made`."""
    from trl import SFTTrainer

    from ..config.card import add_to_card
    from ..config.priors import attach_edit
    from ..training.batch_keys import check_column_kept

    class EditingSFTTrainer(SFTTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)
            check_column_kept(kwargs.get("train_dataset"), self.train_dataset)
            attach_edit(self, edit, edit.policy())
            add_to_card(self)

    return EditingSFTTrainer


def _load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
    """`datasets.load_dataset` that also reads local files, as recipes do."""
    from datasets.load import load_dataset

    from ..data.reading import is_local, load_rows, parse_source

    if not is_local(path) or options.get("data_files") or options.get("data_dir"):
        return load_dataset(path, name, **options)
    source, config, own_split = parse_source(path, "dataset_name")
    streaming = bool(options.get("streaming"))

    class Splits(dict[str, Any]):
        def __missing__(self, split: str) -> Any:
            split = own_split if split == "train" else split
            return load_rows(
                source, name or config, split, streaming=streaming, option="dataset_name"
            )

    split = options.get("split")
    return Splits() if split is None else Splits()[split]


if __name__ == "__main__":
    sys.exit(run_guarded("toedit sft", lambda: run_sft(sys.argv[1:])))
