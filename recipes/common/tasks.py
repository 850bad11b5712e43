"""Downstream tasks of lm-evaluation-harness for the model that a Trainer has saved."""

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

from toedit_collate.distributed import rank, world_size
from toedit_collate.errors import UnusableError, first_line

from .arguments import RunArguments

Results = dict[str, dict[str, float]]
# Rounded to bfloat16, the log-probabilities of different choices are often equal.
SOFTMAX_DTYPE = "float32"
# AdaptLLM's tasks (`adaptllm_...`), which the harness lacks.
DOMAIN_TASKS = Path(__file__).parent / "domain_tasks"
# What tells a process that it is one of several.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT")


def check_tasks(run_args: RunArguments) -> None:
    """Check that the tasks can be run, before a model is loaded; the main process loads their data.

    Raises:
        UnusableError: lm-evaluation-harness is not installed, a task does not exist, or its data
            cannot be loaded.
    """
    if not run_args.has_tasks:
        return
    names, manager = _find_tasks(run_args)
    if rank() == 0:
        for name in names:
            try:
                manager.load([name])
            except Exception as error:
                raise UnusableError(
                    f"eval_tasks: {name} can't be loaded: {first_line(error)}; check the network, "
                    "the access to its dataset (`hf auth login`) and the packages that it needs, "
                    "or leave it out"
                ) from error


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


def run_tasks(trainer: Any, run_args: RunArguments, folder: str | Path | None = None) -> Results:
    """Run the tasks on the saved model, in a process of its own; a collective.

    The main process waits for that process, and the other ranks for the main process. So it works
    whatever spreads the weights over ranks in training.

    Args:
        trainer: has the settings.
        run_args: names the tasks.
        folder: of the saved model; default: the Trainer's `output_dir`.

    Returns:
        For each task, and each group with a metric of its own, the metrics by name:
        {"piqa": {"acc": 0.5, "acc_stderr": 0.1}}. On the other processes: nothing.
    """
    if not run_args.has_tasks:
        return {}
    args, adapters = trainer.args, getattr(trainer.model, "peft_config", None)
    base = adapters[trainer.model.active_adapter].base_model_name_or_path if adapters else None
    with _others_wait() as is_main:
        if not is_main:
            return {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the other process needs the memory
        settings = {
            "tasks": _find_tasks(run_args)[0],
            "include_path": run_args.eval_tasks_path,
            "num_fewshot": run_args.eval_num_fewshot,
            "limit": run_args.eval_limit,
            "batch_size": args.per_device_eval_batch_size,
            "apply_chat_template": run_args.eval_chat_template,
            "seed": args.seed,
        }
        try:
            saved = str(folder or args.output_dir)
            return evaluate_saved(saved, settings, device=str(args.device), base=base)
        except Exception as error:  # any, since the model is trained: its report must be written
            print(f"eval_tasks failed: {first_line(error)}", flush=True)
            return {}


def evaluate_saved(
    folder: str, settings: Mapping[str, Any], *, device: str, base: str | None = None
) -> Results:
    """Evaluate a saved model by `lm-eval run`, in a process of its own.

    AdaptLLM's tasks (`adaptllm_...`) run apart: their prompts get no beginning-of-sequence token,
    as in the authors' evaluation.

    Args:
        folder: of the model, or of an adapter; with the tokenizer. Or a hub id.
        settings: as `lm-eval run` names them; None: left out.
        device: to load the model on.
        base: the model that an adapter belongs to; None: `folder` is a whole model.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    model = {"pretrained": base or folder, "tokenizer": folder, "softmax_dtype": SOFTMAX_DTYPE}
    model |= {} if base is None else {"peft": folder}
    found: Results = {}
    for is_domain, more in ((True, {"add_bos_token": False}), (False, {})):
        tasks = [t for t in settings["tasks"] if _is_domain(t) == is_domain]
        if tasks:
            options = {**settings, "tasks": ",".join(tasks), "device": device, "model": "hf"}
            options |= {"include_path": DOMAIN_TASKS} if is_domain else {}
            arguments = {**model, **more}.items()
            options["model_args"] = ",".join(f"{name}={value}" for name, value in arguments)
            found |= _run_harness(options)
    return found


def _is_domain(task: str) -> bool:
    return task.startswith("adaptllm_")


def _run_harness(options: Mapping[str, Any]) -> Results:
    words = [sys.executable, "-m", "lm_eval", "run"]
    for name, value in options.items():
        if value is not None and value is not False:  # a seed may be 0
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
    folders = [DOMAIN_TASKS, *([path] if path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    asked = run_args.eval_tasks or [t for t in manager.all_subtasks if not _is_domain(t)]
    if not set(asked) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
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
