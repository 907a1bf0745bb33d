"""Recipes: one complete JSON file a run, all of them checked at once before anything is loaded.

A recipe says the science: model, data, training. The machine is the launcher's business.
Reading a recipe is instant and needs neither torch nor a GPU.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_seg.problem import RecipeError
from hf_seg.recipe.keys import SECTIONS, DataRecipe, ModelRecipe, TrainingRecipe, key_types, section_schemas
from hf_seg.recipe.passthrough import training_arguments
from hf_seg.recipe.reading import problem_of, read_files
from hf_seg.recipe.rules import check_name


@dataclass(kw_only=True)
class Recipe:
    """One run.

    Args:
        name (`str`): the file's name without `.json`; also the name of the run's folder.
        path (`Path`): the file.
        model ([`ModelRecipe`]), data ([`DataRecipe`]), training ([`TrainingRecipe`]): the three sections.
        encoder_recipe (`str`, *optional*): name of the recipe whose run gives the encoder.
    """

    name: str
    path: Path
    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    encoder_recipe: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The effective recipe: every key with its value. Saved as JSON, it loads as the same recipe again."""
        sections = {section: dataclasses.asdict(getattr(self, section)) for section in SECTIONS}
        sections["training"] |= sections["training"].pop("arguments")
        return sections


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, for editors; arguments are those of the installed Trainer."""
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
        "properties": {"$schema": {"type": "string", "description": "Where this schema is, for editors."}} | sections,
        "required": list(SECTIONS),
        "additionalProperties": False,
    }


def load_recipes(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[Recipe]:
    """Read and check recipes, and put them in training order.

    Args:
        paths (`Sequence[str | Path]`): recipe files; one may name another one's encoder.
        overrides (`Sequence[str]`): `--section.key value` pairs (also `--section.key=value`), as on the command line;
            they hold for each of `paths`, not for a recipe that is loaded only because one of them needs its encoder.
            A value is read as JSON where it is JSON, else as text.

    Returns:
        `list[Recipe]`: in the order given, except that a recipe comes after the one whose encoder it starts from,
        which is added when it was not given.

    Raises:
        RecipeError: with every problem of every file.
    """
    recipes = []
    for name, draft in read_files([Path(path) for path in paths], overrides).items():
        training, own = draft.sections["training"], key_types()["training"]
        arguments = {key: training.pop(key) for key in list(training) if key not in own}
        recipes.append(
            Recipe(
                name=name,
                path=draft.path,
                model=ModelRecipe(**draft.sections["model"]),
                data=DataRecipe(**draft.sections["data"]),
                training=TrainingRecipe(**training, arguments=arguments),
                encoder_recipe=draft.encoder_recipe,
            )
        )
    return recipes


def over_seeds(recipes: Sequence[Recipe], named: Container[str], seeds: Sequence[int]) -> list[Recipe]:
    """Each of the recipes named once for each seed, as `NAME-seedN`; the others stay as they are.

    The encoder of a recipe that is named itself is the one of the same seed.

    Raises:
        RecipeError: when a name gets too long.
    """
    repeated = []
    for recipe in recipes:
        if recipe.name not in named:
            repeated.append(recipe)
            continue
        for seed in seeds:
            encoder = recipe.encoder_recipe
            repeated.append(
                dataclasses.replace(
                    recipe,
                    name=f"{recipe.name}-seed{seed}",
                    training=dataclasses.replace(recipe.training, seed=seed),
                    encoder_recipe=f"{encoder}-seed{seed}" if encoder in named else encoder,
                )
            )
    wrong = [(recipe.path, check_name(recipe.name)) for recipe in repeated]
    problems = [problem_of(path, f"with the seed, {what}", "rename the file") for path, what in wrong if what]
    if problems:
        raise RecipeError(problems=problems)
    return repeated
