"""The options of `toedit recipes`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_recipes(commands: Any) -> None:
    """Add `recipes` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "recipes",
        help="list the training recipes and their configs, or copy one",
        description="Recipes are short scripts, each with configs for several models and data "
        "sets. Copy one, and change the copy.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="recipes and configs, with what they are for")
    listing.set_defaults(run=_list, command="recipes list")
    copy = actions.add_parser(
        "copy",
        help="copy a recipe and its configs, or one config and its recipe",
        description="Copy the recipe NAME with all of its configs, or the config NAME with its "
        "recipe, into DIR. Nothing is overwritten.",
    )
    copy.add_argument("name", metavar="NAME", help="as `toedit recipes list` has it")
    copy.add_argument("folder", type=Path, metavar="DIR", help="made if absent")
    copy.set_defaults(run=_copy, command="recipes copy")


def _list(args: argparse.Namespace) -> None:
    from .run import list_recipes

    list_recipes()


def _copy(args: argparse.Namespace) -> None:
    from .run import copy_recipe

    copy_recipe(args.name, args.folder)
