"""Read recipe files and overrides from the command line, check them, and put the recipes in training order.

Problems are collected, and a launch reports all of them at once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_seg.files import parse_json
from hf_seg.problem import Problem, RecipeError, Refusal, did_you_mean
from hf_seg.recipe.keys import SECTIONS, DataRecipe, ModelRecipe, Recipe, TrainingRecipe, key_types
from hf_seg.recipe.rules import (
    Found,
    check_batches,
    check_data,
    check_keys,
    check_model,
    check_name,
    check_rates,
    check_training,
    config_of_size,
    encoder_differences,
    is_path_or_hub_id,
)

RUN_FORMAT = "hf_seg_run"  # a key of a run's record (run.json) that recipes do not have
COMMAND_LINE = "command line"
# The recipes that come with hf_seg are inside an installed package, but at the top level of a checkout.
_INSTALLED = Path(__file__).parents[1] / "recipes"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "recipes"


@dataclass
class Draft:
    """A recipe during the checks. Its sections hold only valid values, so that one mistake does not hide the next."""

    path: Path
    sections: dict[str, dict[str, Any]] = field(default_factory=lambda: {section: {} for section in SECTIONS})
    encoder_recipe: str | None = None

    def finish(self) -> Recipe:
        training, own = self.sections["training"], key_types()["training"]
        arguments = {key: training.pop(key) for key in list(training) if key not in own}
        return Recipe(
            name=self.path.stem,
            path=self.path,
            model=ModelRecipe(**self.sections["model"]),
            data=DataRecipe(**self.sections["data"]),
            training=TrainingRecipe(**training, arguments=arguments),
            encoder_recipe=self.encoder_recipe,
        )


def problem_of(place: str | Path, what: str, remedy: str = "") -> Problem:
    return Problem(code=RecipeError.default_code, place=str(place), what=what, remedy=remedy)


def load_recipes(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[Recipe]:
    """Read and check recipes, and put them in training order.

    Args:
        paths: files, or names of recipes that come with hf_seg, such as `quickstart-fcn`.
        overrides: `--section.key value` or `--section.key=value`, as on the command line. They apply to each of
            `paths`, not to a recipe that is added. A value is read as JSON if it is JSON, else as text.

    Returns:
        The recipes in the order given, except that a recipe comes after the one whose encoder it starts from. That one
        is added when it was not given.

    Raises:
        RecipeError: with every problem of every file.
    """
    changes, problems = parse_overrides(overrides)
    if not paths:
        problems.append(problem_of("", "no recipe given", "name one or more, such as quickstart-fcn"))
    drafts: dict[str, Draft] = {}
    for path in map(_find, paths):
        if path.stem not in drafts:
            drafts[path.stem] = _read(path, changes, problems)
        elif _same_file(path, drafts[path.stem].path):
            problems.append(problem_of(path, "is given twice", "name it once"))
        else:
            problems.append(_same_folder(path, drafts[path.stem].path))
    _link(drafts, problems)
    order = _training_order(drafts, problems)
    if problems:
        raise RecipeError(problems=problems)
    return [drafts[name].finish() for name in order]


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the recipes that come with hf_seg, by name."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.json"))}


def _find(path: str | Path) -> Path:
    return Path(path) if os.path.isfile(path) else shipped_recipes().get(str(path), Path(path))


def parse_overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Parse overrides to ({"training.learning_rate": value}, problems). argparse would accept abbreviated names."""
    changes: dict[str, Any] = {}
    problems = []
    waiting = list(arguments)
    while waiting:
        flag, has_value, text = waiting.pop(0).partition("=")
        is_flag = flag.startswith("--")
        if not has_value and is_flag and waiting and not waiting[0].startswith("--"):
            has_value, text = True, waiting.pop(0)
        name = flag.removeprefix("--")
        section, *keys = name.split(".")
        if not is_flag or not keys or "" in (section, *keys):
            homes = [home for home, known in key_types().items() if is_flag and name in known]
            hint = f'; did you mean "--{homes[0]}.{name}"?' if homes else f", where section is {' or '.join(SECTIONS)}"
            what, remedy = "is not understood", f"write --section.key value{hint}"
        elif section not in SECTIONS:
            what = f'there is no section "{section}"'
            remedy = did_you_mean(section, SECTIONS, f"sections are {', '.join(SECTIONS)}")
        elif not has_value:
            what, remedy = "has no value", f"write {flag} VALUE"
        elif name in changes:
            what, remedy = "is given twice", "keep one of the two"
        else:
            try:
                changes[name] = parse_json(text)
            except ValueError:
                changes[name] = text
            continue
        problems.append(problem_of(COMMAND_LINE, f"{flag}: {what}", remedy))
    return changes, problems


def _same_file(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _same_folder(path: Path, other: Path) -> Problem:
    return problem_of(path, f'would write to the same folder "{path.stem}" as {other}', "rename one of the two")


def _parse_file(path: Path) -> dict[str, Any]:
    if wrong := check_name(path.stem):
        raise RecipeError(path, wrong, "rename the file")
    try:
        recipe = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        neighbours = [other.name for other in path.parent.glob("*.json")] if path.parent.is_dir() else []
        neighbours += shipped_recipes() if path.name == str(path) else []
        remedy = did_you_mean(path.name, neighbours, "check the path")
        raise RecipeError(path, "there is no such file", remedy) from None
    except OSError as error:
        raise RecipeError(path, f"cannot be read: {error.strerror}", "name a recipe file") from None
    except UnicodeDecodeError:
        raise RecipeError(path, "is not text in UTF-8", "save it as UTF-8") from None
    except Refusal as error:
        raise RecipeError(path, error.problems[0].what, error.problems[0].remedy) from None
    except ValueError as error:  # an integer with thousands of digits
        raise RecipeError(path, str(error)) from None
    if not isinstance(recipe, dict):
        raise RecipeError(path, f"must be an object {{...}} with the sections {', '.join(SECTIONS)}")
    is_run = RUN_FORMAT in recipe and isinstance(recipe.get("recipe"), dict)
    return recipe["recipe"] if is_run else recipe


def _read(path: Path, changes: Mapping[str, Any], problems: list[Problem]) -> Draft:
    draft = Draft(path)
    try:
        recipe = _parse_file(path)
    except RecipeError as error:
        problems += error.problems
        return draft
    for name, value in changes.items():
        *parents, key = name.split(".")
        inner = recipe
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                inner[parent] = {}
            inner = inner[parent]
        inner[key] = copy.deepcopy(value)  # a copy per recipe: the next override may write into it
    for key, what, remedy in _check(recipe, draft):
        # The place is the command line, so that it is reported once, not for each recipe that the override applies to.
        overridden = any(f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.") for name in changes)
        problems.append(problem_of(COMMAND_LINE if overridden else path, f"{key}: {what}", remedy))
    return draft


def _check(recipe: dict[str, Any], draft: Draft) -> Iterator[Found]:
    """Yield what is wrong with a recipe; valid values go into the draft."""
    for section in recipe:
        if section not in SECTIONS and section != "$schema":
            homes = [home for home, keys in key_types().items() if section in keys]
            accepted = f"sections are {', '.join(SECTIONS)}"
            hint = f'it belongs to "{homes[0]}"' if homes else did_you_mean(section, SECTIONS, accepted)
            yield section, "unknown section", hint
    for section in SECTIONS:
        if section not in recipe:
            yield section, "the section is missing", f'add "{section}": {{...}}'
        elif not isinstance(recipe[section], dict):
            yield section, "must be an object {...}", ""
        else:
            draft.sections[section], found = check_keys(section, recipe[section])
            yield from found
    model = draft.sections["model"]
    yield from check_model(model)
    if model.get("arch") == "segformer" and "config" in model:
        model["config"] = (config_of_size(model.get("path")) or {}) | model["config"]
    yield from check_data(draft.sections["data"])
    yield from check_training(draft.sections["training"])
    yield from check_batches(draft.sections["data"], draft.sections["training"])
    yield from check_rates(draft.sections["model"], draft.sections["training"])


def _link(drafts: dict[str, Draft], problems: list[Problem]) -> None:
    """Find the recipes whose runs provide initial weights, and read those not named on the command line."""
    named = set(drafts)
    waiting = list(drafts.values())
    for draft in waiting:
        model = draft.sections["model"]
        weights = model.get("encoder_weights")
        if model.get("init") not in ("checkpoint", "model") or not isinstance(weights, str):
            continue
        neighbour = draft.path.parent / f"{weights}.json"
        if weights not in named and Path(weights).name == weights and os.path.isfile(neighbour):
            if weights not in drafts:
                drafts[weights] = _read(neighbour, {}, problems)
                waiting.append(drafts[weights])
            elif not _same_file(neighbour, drafts[weights].path):
                problems.append(_same_folder(neighbour, drafts[weights].path))
        if weights in drafts:
            draft.encoder_recipe = weights
            for difference in encoder_differences(drafts[weights].sections["model"], model):
                what = f'model.encoder_weights: "{weights}" is a checkpoint of another architecture: {difference}'
                problems.append(problem_of(draft.path, what, "make them equal"))
        elif not is_path_or_hub_id(weights):
            names = {*drafts, *(other.stem for other in draft.path.parent.glob("*.json"))} - {draft.path.stem}
            what = f'model.encoder_weights: "{weights}" is neither a recipe in this launch or next to this file, nor'
            what += " an existing path, nor a Hub id of the form org/name"
            problems.append(problem_of(draft.path, what, did_you_mean(weights, sorted(names), "name one of these")))


def _training_order(drafts: dict[str, Draft], problems: list[Problem]) -> list[str]:
    order: list[str] = []
    for first in drafts:
        chain: list[str] = []
        name: str | None = first
        while name is not None and name not in order:
            if name in chain:
                circle = " → ".join([*chain[chain.index(name) :], name])
                what = f"model.encoder_weights: is circular, {circle}"
                problems.append(problem_of(drafts[name].path, what, "start one of them from something else"))
                break
            chain.append(name)
            name = drafts[name].encoder_recipe
        order += reversed(chain)
    return order
