"""What the recipes have in common: arguments, data, runs, their comparison and their folders.

Words:
    run: one training, with what is measured after it, in a folder of its own.
    variant: a policy that is compared with others; baseline: the run without editing.
    report: what came of a run, as `metrics.json` has it.
    held out: text that is never trained on nor edited, on which perplexity is measured.
"""

from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.parse import parse
from toedit_collate.config.priors import attach_edit, load_prior
from toedit_collate.data import load_rows

from .arguments import DataArguments, RunArguments, as_mapping
from .data import load_held_out, load_training
from .generations import run_generations
from .mixing import limit_tokens, load_mixture, mix, pack_text
from .models import load_tokenizer, model_options, start
from .runs import RunReport
from .training import run

__all__ = [
    "DataArguments",
    "EditArguments",
    "RunArguments",
    "RunReport",
    "as_mapping",
    "attach_edit",
    "limit_tokens",
    "load_held_out",
    "load_mixture",
    "load_prior",
    "load_rows",
    "load_tokenizer",
    "load_training",
    "mix",
    "model_options",
    "pack_text",
    "parse",
    "run",
    "run_generations",
    "start",
]
