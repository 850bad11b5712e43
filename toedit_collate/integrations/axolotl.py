"""A plugin for Axolotl: `toedit:` in its YAML, and its training batches are edited.

```yaml
plugins:
  - toedit_collate.integrations.axolotl.ToEditPlugin
toedit:
  policy: paper      # and any field of EditPolicy: threshold: 0.999, ...
  prior: shared      # the frozen base of the LoRA trainee; or a folder, or a hub id
```

Axolotl goes on without a plugin that can't be imported, so nothing is imported here that may be
missing. That it edits is said in its log: "toedit: training batches are edited".
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, model_validator  # Axolotl's own configs are made of it

from ..config.arguments import name_of
from ..config.models import attach_settings, check_shared, load_prior
from ..config.section import read_section
from ..errors import UnusableError
from ..training.attach import attach

try:
    from axolotl.integrations.base import BasePlugin
except ImportError:  # read without Axolotl, as the tests and the docs do
    BasePlugin = object

logger = logging.getLogger("toedit_collate")

# Settings of Axolotl under which a row is not a text to be predicted.
_NOT_LANGUAGE_MODELLING = ("rl", "reward_model", "process_reward_model")


class ToEditArgs(BaseModel):
    """What the plugin adds to Axolotl's config: the section `toedit`."""

    toedit: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_toedit(cls, data: Any) -> Any:
        try:
            edit = read_section(data.get("toedit"))
            check_shared(edit, bool(data.get("adapter")), setting="adapter: lora")
        except UnusableError as error:
            raise ValueError(str(error)) from None
        for name in _NOT_LANGUAGE_MODELLING:
            if data.get(name) and edit.policy() is not None:
                raise ValueError(
                    f"toedit edits texts that a language model is trained to predict, and {name}: "
                    f"{data[name]} trains on something else; remove {name}, or the plugin"
                )
        return data


class ToEditPlugin(BasePlugin):  # type: ignore[misc, valid-type]
    """Edits the training batches of the trainer that Axolotl makes."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the section's schema."""
        return f"{__name__}.ToEditArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Attach the edit; Axolotl calls this once, when trainer and callbacks are there.

        Args:
            cfg: its whole config.
            trainer: its `Trainer`.

        Raises:
            ValueError: the section can't be used, or the prior does not fit the trainee.
            UnusableError: the prior can't be loaded.
        """
        section = cfg.get("toedit")
        edit = read_section(None if section is None else dict(section))
        policy = edit.policy()
        if policy is None:
            return
        prior = load_prior(edit, trainer)
        attach(trainer, prior, policy, **attach_settings(edit, trainer.args.output_dir))
        name = name_of(edit.edit_policy, edit.changes())
        logger.warning("toedit: training batches are edited (%s, prior: %s)", name, edit.prior)
