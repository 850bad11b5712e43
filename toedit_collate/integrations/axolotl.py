"""A plugin for Axolotl: `toedit:` in its YAML, and its training batches are edited.

Axolotl skips a plugin that can't be imported. If its log says "toedit: training batches are
edited", the plugin works.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator  # like Axolotl's own configs

from ..config.priors import attach_edit, check_shared
from ..config.section import read_section
from ..errors import UnusableError

try:
    from axolotl.integrations.base import BasePlugin
except ImportError:  # in tests and docs
    BasePlugin = object

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
        """Attach the edit; Axolotl calls this once, when trainer and callbacks exist."""
        section = cfg.get("toedit")
        edit = read_section(None if section is None else dict(section))
        attach_edit(trainer, edit, edit.policy())
