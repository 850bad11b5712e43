"""Puts the recipes, whose home is the top of the checkout, into the package of a wheel."""

from setuptools import find_namespace_packages, find_packages, setup

recipes = "toedit_collate.recipes_data"
setup(
    packages=[
        *find_packages(include=["toedit_collate*"]),
        recipes,
        *(f"{recipes}.{folder}" for folder in find_namespace_packages("recipes")),
    ],
    package_dir={recipes: "recipes"},
)
