"""Generations: edit, train, let the trained model edit, train again (Eq. 3 and Table 9).

python recipes/self_edit.py --config recipes/configs/self_edit_tiny.yaml [--field value ...]
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common import (
    DataArguments,
    EditArguments,
    RunArguments,
    load_held_out,
    load_mixture,
    load_tokenizer,
    model_options,
    parse,
    run_generations,
    start,
)
from peft import AutoPeftModelForCausalLM
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config


@dataclass
class GenerationArguments:
    """How many generations, and where each of them starts."""

    generations: int = field(default=3, metadata={"help": "How many."})
    start: Literal["base", "previous"] = field(
        default="base",
        metadata={"help": "base: each trains the base afresh; previous: it goes on training."},
    )


def main() -> None:
    run_args, data, edit, loop, args, model_args = parse(
        RunArguments, DataArguments, EditArguments, GenerationArguments, SFTConfig, ModelConfig
    )
    name = model_args.model_name_or_path
    tokenizer = load_tokenizer(name, args, model_args.model_revision)
    args.model_init_kwargs = options = model_options(model_args, args)
    train_dataset = load_mixture(data, tokenizer, args)
    held_out = load_held_out(data, tokenizer, args.max_length)

    def make_trainer(args: SFTConfig, weights: Path | None) -> SFTTrainer:
        model, peft_config = str(weights or name), get_peft_config(model_args)
        quantization_config = get_quantization_config(model_args)
        if weights is not None and peft_config is not None:  # an adapter, which goes on training
            model = AutoPeftModelForCausalLM.from_pretrained(
                weights,
                is_trainable=True,
                quantization_config=quantization_config,
                **options,
            )
            peft_config = quantization_config = None
        return SFTTrainer(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=held_out,
            processing_class=tokenizer,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )

    run_generations(
        make_trainer, args, run_args, edit, generations=loop.generations, start=loop.start
    )


if __name__ == "__main__":
    start(main)
