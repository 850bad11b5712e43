"""Puts the recipes, whose home is the top of the checkout, into the package of a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["toedit_collate*"]), "toedit_collate.recipes_data"],
    package_dir={"toedit_collate.recipes_data": "recipes"},
)
