"""Recipes: one complete JSON file per run. All of them are checked before anything is loaded.

A recipe describes model, data and training; the launcher describes the machine. Reading a recipe needs neither torch
nor a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from hf_seg.problem import RecipeError
from hf_seg.recipe.keys import SECTIONS, DataRecipe, ModelRecipe, Recipe, TrainingRecipe, section_schemas
from hf_seg.recipe.passthrough import training_arguments
from hf_seg.recipe.reading import load_recipes, problem_of
from hf_seg.recipe.rules import check_name

__all__ = ["DataRecipe", "ModelRecipe", "Recipe", "TrainingRecipe", "json_schema", "load_recipes", "over_seeds"]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe file, for editors. Its `training` section includes the
    arguments of the installed transformers."""
    sections = section_schemas()
    passed_on = {
        key: kind.json_schema() | {"description": "Passed on to transformers' TrainingArguments."}
        for key, kind in training_arguments().items()
    }
    sections["training"]["properties"] |= passed_on | sections["training"]["properties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hf_seg recipe",
        "description": inspect.getdoc(Recipe).splitlines()[0],
        "type": "object",
        "properties": {"$schema": {"type": "string", "description": "Path of this schema, for editors."}} | sections,
        "required": list(SECTIONS),
        "additionalProperties": False,
    }


def over_seeds(recipes: Sequence[Recipe], named: Container[str], seeds: Sequence[int]) -> list[Recipe]:
    """Repeat each recipe in `named` once per seed, as `NAME-seedN`; the others stay as they are.

    If its encoder comes from the run of a recipe that is also in `named`, it comes from that recipe's run of the same
    seed.

    Raises:
        RecipeError: when a name becomes too long.
    """
    repeated = []
    for recipe in recipes:
        if recipe.name not in named:
            repeated.append(recipe)
            continue
        for seed in seeds:
            encoder, training = recipe.encoder_recipe, replace(recipe.training, seed=seed)
            encoder = f"{encoder}-seed{seed}" if encoder in named else encoder
            name = f"{recipe.name}-seed{seed}"
            repeated.append(replace(recipe, name=name, training=training, encoder_recipe=encoder))
    wrong = [(recipe.path, check_name(recipe.name)) for recipe in repeated]
    problems = [problem_of(path, f"with the seed, {what}", "rename the file") for path, what in wrong if what]
    if problems:
        raise RecipeError(problems=problems)
    return repeated
