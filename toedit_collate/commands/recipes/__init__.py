"""`toedit recipes`: the training recipes that come with the package, to be copied and changed.

A recipe is a script (`cpt`); a config is a YAML file that one of them takes (`cpt_tiny`).
"""

from .options import add_recipes

__all__ = ["add_recipes"]
