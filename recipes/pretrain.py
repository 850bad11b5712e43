"""Pretraining from scratch on token-edited text, packed, streamed if you like, also mixed data.

python recipes/pretrain.py --config recipes/configs/pretrain_tiny.yaml [--field value ...]
"""

from dataclasses import dataclass, field
from typing import Any

from common import (
    DataArguments,
    EditArguments,
    RunArguments,
    as_mapping,
    attach_edit,
    limit_tokens,
    load_held_out,
    load_mixture,
    load_tokenizer,
    load_training,
    mix,
    pack_text,
    parse,
    run,
    start,
)
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from toedit_collate import EditPolicy
from toedit_collate.errors import UnusableError


@dataclass
class PretrainArguments:
    """The architecture, and a second dataset to mix in (section 2.1 of the paper)."""

    config_name: str = field(metadata={"help": "Folder or hub id whose architecture is taken."})
    config_overrides: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Values of its config to change."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Folder or hub id. Default: config_name."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in TRL's ModelConfig: sdpa, flash_attention_2, ..."}
    )
    synthetic_fraction: float = field(
        default=0.0, metadata={"help": "Share of the tokens from the synthetic dataset, 0 to 1."}
    )
    synthetic_dataset_name: str | None = field(default=None, metadata={"help": "As dataset_name."})
    synthetic_dataset_config: str | None = field(
        default=None, metadata={"help": "As dataset_config."}
    )
    synthetic_dataset_split: str = field(
        default="train", metadata={"help": "As dataset_train_split."}
    )
    synthetic_dataset_columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "As dataset_columns."}
    )

    unique_tokens: float | None = field(
        default=None,
        metadata={
            "help": "Train on the first so many tokens of the mixture, again in each epoch. "
            "max_steps or num_train_epochs then says how often."
        },
    )

    def __post_init__(self) -> None:
        self.config_overrides = as_mapping("config_overrides", self.config_overrides)
        if not 0 <= self.synthetic_fraction <= 1:
            raise ValueError(
                f"synthetic_fraction must lie in [0, 1], got {self.synthetic_fraction}; it is a "
                "share of the tokens: write 0.25 for 25 %"
            )
        if self.synthetic_fraction and self.synthetic_dataset_name is None:
            raise ValueError("synthetic_fraction is above 0: name a synthetic_dataset_name")
        if self.unique_tokens is not None and self.unique_tokens < 1:
            raise ValueError(f"unique_tokens must be a number from 1, got {self.unique_tokens}")


def main() -> None:
    run_args, data, edit, pretrain, args = parse(
        RunArguments, DataArguments, EditArguments, PretrainArguments, SFTConfig
    )
    tokenizer = load_tokenizer(pretrain.tokenizer_name or pretrain.config_name, args)
    config = AutoConfig.from_pretrained(pretrain.config_name, **pretrain.config_overrides)
    synthetic = DataArguments(
        dataset_name=pretrain.synthetic_dataset_name,
        dataset_config=pretrain.synthetic_dataset_config,
        dataset_train_split=pretrain.synthetic_dataset_split,
        dataset_columns=pretrain.synthetic_dataset_columns,
        dataset_streaming=data.dataset_streaming,
    )
    held_out = load_held_out(data, tokenizer, args.max_length)

    def packed(source: DataArguments) -> Any:
        if source.sources:
            args.packing = True
            return load_mixture(source, tokenizer, args)
        return pack_text(load_training(source, tokenizer), tokenizer, args)

    fraction = pretrain.synthetic_fraction
    if data.sources and fraction:
        raise UnusableError("datasets and synthetic_fraction exclude each other; use weights")
    human = None if fraction == 1 else packed(data)
    train_dataset = mix(human, packed(synthetic) if fraction else None, fraction, args.seed)
    if pretrain.unique_tokens is not None:
        train_dataset = limit_tokens(train_dataset, pretrain.unique_tokens, args)
    args.dataset_kwargs = {"skip_prepare_dataset": True}  # it is tokenized and packed

    def make_trainer(args: SFTConfig, policy: EditPolicy | None) -> SFTTrainer:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_config(
                config, attn_implementation=pretrain.attn_implementation
            ),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        attach_edit(trainer, edit, policy)
        return trainer

    run(make_trainer, args, run_args, edit)


if __name__ == "__main__":
    start(main)
