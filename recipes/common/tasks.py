"""Downstream tasks of lm-evaluation-harness for the model that a Trainer has trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from toedit_collate.config.arguments import RunArguments
from toedit_collate.distributed import rank, world_size
from toedit_collate.errors import UnusableError, first_line
from toedit_collate.prior.sharding import has_fsdp1, is_sharded, is_zero3

Results = dict[str, dict[str, float]]
# Rounded to bfloat16, the log-probabilities of different choices are often equal.
SOFTMAX_DTYPE = "float32"
# What tells a process that it is one of several.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT")


def check_tasks(run_args: RunArguments) -> None:
    """See that the tasks can be run, before a model is loaded.

    Raises:
        UnusableError: lm-evaluation-harness is not installed, or a task does not exist.
    """
    if run_args.has_tasks:
        _find_tasks(run_args)


def check_evaluation(trainer: Any, run_args: RunArguments) -> None:
    """See that what a Trainer trains can be evaluated afterwards.

    Raises:
        UnusableError: conversations are asked for and there is no chat template, or ZeRO-3 will
            not save whole weights.
    """
    template = getattr(trainer.processing_class, "chat_template", None)
    if run_args.has_tasks and run_args.eval_chat_template and template is None:
        raise UnusableError(
            "eval_chat_template is true, and the tokenizer has no chat template; set "
            "chat_template_path, or leave eval_chat_template out"
        )
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    zero = {} if plugin is None else plugin.deepspeed_config.get("zero_optimization", {})
    saves = zero.get("stage3_gather_16bit_weights_on_model_save", False)
    if zero.get("stage") == 3 and not saves and (run_args.has_tasks or trainer.eval_dataset):
        raise UnusableError(
            "held_out and eval_tasks are measured on the saved model, and ZeRO-3 is going to save "
            "parts of it only; set zero3_save_16bit_model: true in accelerate's config "
            "(stage3_gather_16bit_weights_on_model_save in DeepSpeed's), or leave both out"
        )


def run_tasks(trainer: Any, run_args: RunArguments) -> Results:
    """Run the tasks that are asked for; a collective.

    The main process evaluates the model in memory or, where FSDP or ZeRO-3 spreads its weights over
    ranks, has another process evaluate what `trainer.save_model` has saved.

    Returns:
        For each task, and each group with a metric of its own, the metrics by name:
        {"piqa": {"acc": 0.5, "acc_stderr": 0.1}}. On the other processes: nothing.
    """
    if not run_args.has_tasks:
        return {}
    with _others_wait() as is_main:
        try:
            return _run_tasks(trainer, run_args) if is_main else {}
        except Exception as error:  # any, since the model is trained: its report must be written
            print(f"eval_tasks failed: {first_line(error)}", flush=True)
            return {}


def _run_tasks(trainer: Any, run_args: RunArguments) -> Results:
    args = trainer.args
    names, manager = _find_tasks(run_args)
    settings = {
        "tasks": names,
        "include_path": run_args.eval_tasks_path,
        "num_fewshot": run_args.eval_num_fewshot,
        "limit": run_args.eval_limit,
        "batch_size": args.per_device_eval_batch_size,
        "apply_chat_template": run_args.eval_chat_template,
        "seed": args.seed,
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_sharded(model) or has_fsdp1(model) or is_zero3(model):
        adapters = getattr(model, "peft_config", None)
        base = adapters[model.active_adapter].base_model_name_or_path if adapters else None
        return evaluate_saved(args.output_dir, settings, device=str(args.device), base=base)
    return evaluate(model, trainer.processing_class, settings, manager)


def evaluate(model: Any, tokenizer: Any, settings: Mapping[str, Any], manager: Any) -> Results:
    """Evaluate a model in memory by `lm_eval.simple_evaluate`.

    Args:
        model: a causal language model of transformers, also with adapters of PEFT.
        tokenizer: of the model.
        settings: as `lm-eval run` names them.
        manager: of the harness, which knows the tasks.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    own = {name: value for name, value in settings.items() if name != "include_path"}
    seed = own.pop("seed")
    # The harness ties weights anew, which would overwrite a head that PEFT trains.
    model.tie_weights = lambda *args, **kwargs: None
    loaded = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=own["batch_size"],
        softmax_dtype=SOFTMAX_DTYPE,
    )
    found = simple_evaluate(
        loaded,
        task_manager=manager,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        **own,
    )
    return flatten_results(found["results"])


def evaluate_saved(
    folder: str, settings: Mapping[str, Any], *, device: str, base: str | None = None
) -> Results:
    """Evaluate a saved model by `lm-eval run`, in a process of its own.

    Args:
        folder: of the model, or of an adapter; with the tokenizer.
        settings: as `lm-eval run` names them; None: left out.
        device: to load the model on.
        base: the model that an adapter belongs to; None: `folder` is a whole model.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    model = {"pretrained": base or folder, "tokenizer": folder, "softmax_dtype": SOFTMAX_DTYPE}
    model |= {} if base is None else {"peft": folder}
    options = {**settings, "tasks": ",".join(settings["tasks"]), "device": device, "model": "hf"}
    options["model_args"] = ",".join(f"{name}={value}" for name, value in model.items())
    words = [sys.executable, "-m", "lm_eval", "run"]
    for name, value in options.items():
        if value not in (None, False):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    own = {name: value for name, value in os.environ.items() if name not in _LAUNCHED}
    own = {name: value for name, value in own.items() if not name.startswith("ACCELERATE_")}
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([*words, "--output_path", place], check=True, env=own)
        (path,) = Path(place).rglob("results*.json")
        return flatten_results(json.loads(path.read_text())["results"])


def _find_tasks(run_args: RunArguments) -> tuple[list[str], Any]:
    """The tasks that `eval_tasks`, or else `eval_tasks_path`, names; and the harness's manager."""
    path = run_args.eval_tasks_path
    if path is not None and not Path(path).is_dir():
        raise UnusableError(
            f"eval_tasks_path must be a folder with tasks as YAML files, got {path!r}"
        )
    try:
        import lm_eval.models.huggingface  # noqa: F401
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UnusableError(
            f'eval_tasks need lm-evaluation-harness ({error}); pip install "toedit_collate'
            '[evaluation]"'
        ) from error
    # To list the thousands of tasks of the harness takes seconds.
    manager = TaskManager(include_path=path, include_defaults=path is None)
    asked = run_args.eval_tasks or (manager.all_subtasks if path else [])
    if path is not None and not set(asked) <= set(manager.all_tasks):
        manager = TaskManager(include_path=path)
    unknown = [task for task in asked if not manager.match_tasks([task])]
    if unknown or not asked:
        raise UnusableError(
            f"no task {', '.join(unknown) or 'at all'} in lm-evaluation-harness or in "
            f"eval_tasks_path (it is {path}); `lm-eval ls tasks` lists the harness's own, and a "
            "task of yours is a YAML file with `task: NAME`"
        )
    return manager.match_tasks(asked), manager


@contextmanager
def _others_wait() -> Iterator[bool]:
    """Whether this is the main process; the others wait until it has left the block; collective."""
    if world_size() == 1:
        yield True
        return
    # A group of its own: NCCL gives up after minutes.
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    try:
        yield rank() == 0
    finally:
        torch.distributed.barrier(group)
        torch.distributed.destroy_process_group(group)


def flatten_results(results: Mapping[str, Mapping[str, Any]]) -> Results:
    """The harness's metrics as numbers by name; a task without any is left out.

    Example:
        >>> flatten_results({"qa": {"alias": "qa", "acc,none": 0.5, "acc_stderr,none": "N/A"}})
        {'qa': {'acc': 0.5}}
        >>> flatten_results({"gsm8k": {"exact_match,strict-match": 0.25}})
        {'gsm8k': {'exact_match,strict-match': 0.25}}
    """
    found = {
        task: {
            # A name without a filter describes the task; the filter "none" is no filter.
            key.removesuffix(",none"): float(value)
            for key, value in sorted(entries.items())
            if "," in key and isinstance(value, Real)
        }
        for task, entries in results.items()
    }
    return {task: metrics for task, metrics in found.items() if metrics}
