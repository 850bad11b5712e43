"""What the recipes have in common: arguments, data, runs, their comparison and their folders."""

from ..tools.datafiles import load_rows
from .arguments import DataArguments, EditArguments, RunArguments, as_mapping
from .data import load_held_out, load_training
from .generations import run_generations
from .mixing import mix, pack_text
from .models import attach_settings, load_prior, load_tokenizer, model_options
from .parse import parse, start
from .report import RunReport
from .training import run

__all__ = [
    "DataArguments",
    "EditArguments",
    "RunArguments",
    "RunReport",
    "as_mapping",
    "attach_settings",
    "load_held_out",
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
