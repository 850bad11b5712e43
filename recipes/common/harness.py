"""Downstream tasks by lm-evaluation-harness, for a model in memory."""

from __future__ import annotations

import copy
import os
import random
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from toedit_collate.config.quiet import quiet
from toedit_collate.distributed import rank, world_size
from toedit_collate.errors import UnusableError
from toedit_collate.prior.sharding import has_fsdp1, is_sharded, is_zero3

T = TypeVar("T")

# Log-probabilities in bfloat16 have three digits: choices of a question would come out equal.
SOFTMAX_DTYPE = "float32"
LONGEST_EVALUATION = timedelta(days=7)


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    tasks_path: str | os.PathLike[str] | None = None,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    batch_size: int = 8,
    apply_chat_template: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Run tasks of lm-evaluation-harness on a model in memory; a collective.

    The main process evaluates with its replica, and the others wait for its result. The model (its
    modes, too), the tokenizer and the global random numbers are left as they were.

    Args:
        model: a causal language model of transformers, plain or of PEFT; DDP and torch.compile are
            taken off.
        tokenizer: the model's.
        tasks: names of tasks, groups or tags, or patterns such as "mmlu_*". Empty: all that
            `tasks_path` has.
        tasks_path: folder with tasks as YAML files, which come before those of the harness.
        num_fewshot: examples in each prompt, drawn by `seed`; None: as the task says. A task whose
            file says 0 stays there.
        limit: only the first so many questions of each task, or, below 1, such a share of them.
        batch_size: rows of a forward pass.
        apply_chat_template: put questions into the tokenizer's chat template.
        seed: of whatever the harness draws.

    Returns:
        For each task, and each group with a metric of its own, the metrics by name, on all ranks:
        {"local_qa": {"acc": 0.5, "acc_stderr": 0.1}}. Those of a named filter keep it, as in
        "exact_match,strict-match".

    Raises:
        UnusableError: the harness is not installed, it does not know a task, the folder or the chat
            template is missing, or the model's weights are spread over ranks.
    """
    tasks = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    if tasks_path is not None and not Path(tasks_path).is_dir():
        raise UnusableError(
            f"tasks_path must be a folder with tasks as YAML files, got {str(tasks_path)!r}"
        )
    if not tasks and tasks_path is None:
        raise UnusableError(
            "tasks is empty; name some (`lm-eval ls tasks` lists them), or give a tasks_path"
        )
    if apply_chat_template and getattr(tokenizer, "chat_template", None) is None:
        raise UnusableError(
            "apply_chat_template needs a tokenizer with a chat template, and this one has none; "
            "set tokenizer.chat_template, or leave apply_chat_template out"
        )
    options = {
        "--include_path": tasks_path,
        "--num_fewshot": num_fewshot,
        "--limit": limit,
        "--batch_size": batch_size,
        "--seed": seed,
    }
    _check_whole(model, tasks, options, apply_chat_template)
    check_installed()
    return _on_main_process(
        lambda: _evaluate(
            _unwrap(model),
            copy.deepcopy(tokenizer),  # the harness sets a pad token where there is none
            tasks,
            tasks_path,
            batch_size,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    )


def _check_whole(
    model: Any, tasks: list[str], options: Mapping[str, Any], apply_chat_template: bool
) -> None:
    """Raise where a rank holds only a part of the weights.

    Those that wait would be waited for: each forward pass takes all ranks.
    """
    if is_zero3(model):
        how = "DeepSpeed ZeRO-3"
    elif is_sharded(model) or has_fsdp1(model):
        how = "FSDP"
    else:
        return
    saved = "BASE,peft=FOLDER" if hasattr(model, "peft_config") else "FOLDER"
    command = ["lm-eval", "run", "--model", "hf", "--model_args"]
    command += [f"pretrained={saved},softmax_dtype={SOFTMAX_DTYPE}"]
    command += ["--tasks", ",".join(tasks) or "NAMES"]
    for name, value in options.items():
        command += [] if value is None else [name, str(value)]
    command += ["--apply_chat_template"] if apply_chat_template else []
    raise UnusableError(
        f"a model whose weights {how} spreads over ranks can't be evaluated on tasks; save it, and "
        f"run afterwards: {shlex.join(command)}"
    )


def check_installed() -> None:
    """Raise `UnusableError` where lm-evaluation-harness is not installed."""
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UnusableError(
            f"evaluating on tasks needs lm-evaluation-harness ({error}); "
            'pip install "toedit_collate[evaluation]"'
        ) from error


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile, with its adapters and its mixed precision."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_torch_compile=False)


def _on_main_process(function: Callable[[], T]) -> T:
    """What a function returns on rank 0, on all ranks; collective.

    Raises:
        UnusableError: on the other ranks, where it has failed on rank 0.
    """
    if world_size() == 1:
        return function()
    # Over a group of its own: NCCL gives up on those who wait for longer than its timeout.
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_EVALUATION)
    outcome: list[Any] = [None, None]
    error = None
    try:
        if rank() == 0:
            try:
                outcome[0] = function()
            except Exception as caught:
                error, outcome[1] = caught, str(caught) or type(caught).__name__
        torch.distributed.broadcast_object_list(
            outcome, src=0, group=group, device=torch.device("cpu")
        )
    finally:
        torch.distributed.destroy_process_group(group)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise UnusableError(f"the evaluation failed on rank 0: {outcome[1]}")
    return outcome[0]


def _evaluate(
    model: nn.Module,
    tokenizer: Any,
    tasks: list[str],
    tasks_path: str | os.PathLike[str] | None,
    batch_size: int,
    **settings: Any,
) -> dict[str, dict[str, float]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    names, manager = _find_tasks(tasks, tasks_path)
    with _left_as_it_was(model):
        with quiet():  # it warns of a model that is not given by name
            wrapped = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                softmax_dtype=SOFTMAX_DTYPE,
            )
        found = simple_evaluate(
            wrapped,
            tasks=names,
            task_manager=manager,
            batch_size=batch_size,
            log_samples=False,
            **settings,
        )
    if found is None:
        raise UnusableError(
            f"the harness evaluates in the first process of a machine only, and this one has "
            f"LOCAL_RANK={os.environ.get('LOCAL_RANK')} without torch.distributed; make the "
            "Trainer or an accelerate.PartialState() first"
        )
    return flatten_results(found["results"])


def _find_tasks(
    tasks: list[str], tasks_path: str | os.PathLike[str] | None
) -> tuple[list[str], Any]:
    """Names of tasks that exist, and the harness's manager that knows them."""
    from lm_eval.tasks import TaskManager

    manager = None
    if tasks_path is not None:
        # Without the thousands of tasks of the harness, which take seconds to be listed.
        manager = TaskManager(include_path=str(tasks_path), include_defaults=False)
        tasks = tasks or manager.all_subtasks
        if not tasks:
            raise UnusableError(
                f"tasks_path has no task in it, got {str(tasks_path)!r}; a task is a YAML file "
                "with `task: NAME`"
            )
    if manager is None or not set(tasks) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=None if tasks_path is None else str(tasks_path))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        elsewhere = "give the folder of your own tasks as tasks_path"
        if tasks_path is not None:
            elsewhere = f"mend the YAML files in {str(tasks_path)!r}"
        raise UnusableError(
            f"lm-evaluation-harness knows no task {', '.join(map(repr, unknown))}; "
            f"`lm-eval ls tasks` lists its own; or {elsewhere}"
        )
    return manager.match_tasks(tasks), manager


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what the harness does to a model and to the global random numbers."""
    import numpy as np

    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # Tying anew may overwrite a head that PEFT trains.
    model.__dict__["tie_weights"] = lambda *args, **kwargs: None
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        del model.__dict__["tie_weights"]
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, training in modes:
            module.training = training


def flatten_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The harness's metrics as numbers by name; a task without any is left out.

    Example:
        >>> flatten_results({"qa": {"alias": "qa", "acc,none": 0.5, "acc_stderr,none": "N/A"}})
        {'qa': {'acc': 0.5}}
        >>> flatten_results({"gsm8k": {"exact_match,strict-match": 0.25}})
        {'gsm8k': {'exact_match,strict-match': 0.25}}
    """
    found: dict[str, dict[str, float]] = {}
    for task, entries in results.items():
        # What has no filter in its name describes the task.
        metrics = {
            key: float(value)
            for key, value in entries.items()
            if "," in key and isinstance(value, Real)
        }
        if metrics:
            short = {key: key.removesuffix(",none") for key in metrics}
            found[task] = {
                key if short[key] in metrics else short[key]: value
                for key, value in metrics.items()
            }
            found[task] = dict(sorted(found[task].items()))
    return found
