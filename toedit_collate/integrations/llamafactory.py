"""Runs LLaMA-Factory with a section `toedit:` in its YAML.

```bash
python -m toedit_collate.integrations.llamafactory train llama3_lora_sft.yaml
```

`key=value` after the file overrides a setting, as in LLaMA-Factory: `toedit.top_k=64`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback

from ..config.arguments import EditArguments
from ..config.priors import attach_edit, check_shared
from ..config.section import read_section
from ..errors import UnusableError
from ..training.call_site import calling_instance

_STAGES = ("pt", "sft")
# Settings of LLaMA-Factory with which no Trainer of transformers gets our callback.
_OTHER_TRAINERS = ("use_mca", "use_hyper_parallel", "use_ray")


class AttachCallback(TrainerCallback):
    """Attaches the edit of a section to its trainer, once that exists."""

    def __init__(self, edit: EditArguments) -> None:
        self.edit = edit

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the trainer whose constructor calls this."""
        attach_edit(calling_instance(Trainer), self.edit, self.edit.policy())


def read_config(config: dict[str, Any]) -> tuple[dict[str, Any], EditArguments]:
    """Split a config into LLaMA-Factory's part and the section `toedit`.

    An UnusableError is raised if the config trains on something that can't be edited.
    """
    rest = dict(config)
    if "toedit" not in rest:
        raise UnusableError(
            "the config has no section toedit; add `toedit: {policy: paper}`, or use "
            "llamafactory-cli to train without editing"
        )
    try:
        edit = read_section(rest.pop("toedit"))
    except ValueError as error:
        raise UnusableError(str(error)) from None
    if edit.policy() is None:
        return rest, edit
    stage = rest.get("stage", "sft")
    if stage not in _STAGES:
        raise UnusableError(
            "toedit edits texts that a language model is trained to predict: stage must be pt or "
            f"sft, got {stage!r}"
        )
    for name in _OTHER_TRAINERS:
        if rest.get(name):
            raise UnusableError(
                f"toedit edits in the Trainer of transformers, which {name}: {rest[name]} does not "
                f"use; remove {name}"
            )
    adapters = rest.get("finetuning_type", "lora") in ("lora", "oft")
    check_shared(edit, adapters, setting="finetuning_type: lora")
    return rest, edit


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train FILE.yaml [key=value ...]`; returns 2 if the arguments can't be used, else 0."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) < 2 or words[0] != "train" or not words[1].endswith((".yaml", ".yml", ".json")):
        command = "python -m toedit_collate.integrations.llamafactory"
        print(f"usage: {command} train FILE.yaml [key=value ...]", file=sys.stderr)
        return 2
    try:
        from llamafactory.hparams.parser import read_args
        from llamafactory.train.tuner import run_exp
    except ImportError as error:
        print(f"LLaMA-Factory can't be imported ({error}); pip install llamafactory")
        return 2
    sys.argv = [sys.argv[0], *words[1:]]  # where read_args looks
    try:
        config, edit = read_config(read_args())
        run_exp(config, callbacks=[AttachCallback(edit)])
    except UnusableError as error:
        print(f"toedit: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
