"""LoRA SFT on token-edited data: the trainee's own frozen base is the prior, or a model of its own.

python recipes/sft_lora.py --config recipes/configs/sft_lora_tiny.yaml [--field value ...]
"""

from common import (
    DataArguments,
    EditArguments,
    RunArguments,
    attach_edit,
    load_held_out,
    load_mixture,
    load_tokenizer,
    model_options,
    parse,
    run,
    start,
)
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from toedit_collate import EditPolicy


def main() -> None:
    run_args, data, edit, args, model_args = parse(
        RunArguments, DataArguments, EditArguments, SFTConfig, ModelConfig
    )
    name = model_args.model_name_or_path
    tokenizer = load_tokenizer(name, args, model_args.model_revision)
    args.model_init_kwargs = model_options(model_args, args)
    train_dataset = load_mixture(data, tokenizer, args)
    held_out = load_held_out(data, tokenizer, args.max_length)

    def make_trainer(args: SFTConfig, policy: EditPolicy | None) -> SFTTrainer:
        trainer = SFTTrainer(
            model=name,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=held_out,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
        attach_edit(trainer, edit, policy)
        return trainer

    run(make_trainer, args, run_args, edit)


if __name__ == "__main__":
    start(main)
