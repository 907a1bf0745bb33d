"""From recipe files and the command line to checked sections in training order.

Like the checks, this raises nothing for bad input: problems are collected, and a launch reports all of them at once.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_seg.problem import did_you_mean
from hf_seg.recipe.rules import (
    Keys,
    Problem,
    check_data,
    check_keys,
    check_model,
    check_name,
    check_training,
    encoder_differences,
    is_path_or_hub_id,
)

RUN_FORMAT = "hf_seg_run"  # the key of a run's record, run.json, that tells it from a recipe


@dataclass
class Draft:
    """A recipe on its way: sections hold what passed the checks, so that one mistake does not hide the next."""

    path: Path
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    encoder_recipe: str | None = None


def read_files(
    paths: Sequence[Path], overrides: Sequence[str], sections: Mapping[str, Keys], problems: list[str]
) -> dict[str, Draft]:
    """Read recipes and those whose encoders they need.

    Args:
        paths (`Sequence[Path]`): the files named on the command line; `overrides` are for these.
        overrides (`Sequence[str]`): see [`~hf_seg.recipe.load_recipes`].
        sections (`Mapping[str, Keys]`): the keys that there are.
        problems (`list[str]`): every problem found is added.

    Returns:
        `dict[str, Draft]`: by recipe name, in training order. To be used only when no problem was found.
    """
    changes, wrong = parse_overrides(overrides, sections)
    problems += [f"command line: {problem}" for problem in wrong]
    if not paths:
        problems.append("no recipe given; name one or more, e.g. recipes/quickstart/*.json")
    drafts: dict[str, Draft] = {}
    for path in paths:
        if path.stem not in drafts:
            drafts[path.stem] = _read(path, changes, sections, problems)
        elif _same_file(path, drafts[path.stem].path):
            problems.append(f"{path}: is given twice; name it once")
        else:
            problems.append(_same_folder(path, drafts[path.stem].path))
    _link(drafts, sections, problems)
    return {name: drafts[name] for name in _training_order(drafts, problems)}


def parse_json(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity, no number beyond a float's range, no key twice.

    Raises:
        ValueError: with line and column where the standard parser knows them.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ValueError(f'the key "{key}" stands there twice; keep one of the two')
            seen[key] = value
        return seen

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number} is not a finite number; write one")
        return value

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=finite, parse_float=finite)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not JSON: {error.msg} at {place}; correct it") from None
    except RecursionError:
        raise ValueError("is nested too deeply for a recipe") from None


def parse_overrides(arguments: Sequence[str], sections: Mapping[str, Keys]) -> tuple[dict[str, Any], list[str]]:
    """Command-line overrides → ({"training.learning_rate": value}, problems).

    Not argparse: it takes `--training.learning_rat` for `--training.learning_rate`.
    """
    changes: dict[str, Any] = {}
    problems = []
    waiting = list(arguments)
    while waiting:
        flag, equals, text = waiting.pop(0).partition("=")
        is_flag = flag.startswith("--")
        has_value = bool(equals) or bool(is_flag and waiting and not waiting[0].startswith("--"))
        if has_value and not equals:
            text = waiting.pop(0)
        name = flag.removeprefix("--")
        parts = name.split(".")
        if not is_flag or len(parts) < 2 or "" in parts:
            homes = [home for home, keys in sections.items() if is_flag and name in keys]
            hint = f'; did you mean "--{homes[0]}.{name}"?' if homes else f", section being {' or '.join(sections)}"
            problems.append(f"{flag}: is not understood; write --section.key value{hint}")
        elif parts[0] not in sections:
            hint = did_you_mean(parts[0], sections, f"; sections are {', '.join(sections)}")
            problems.append(f'{flag}: there is no section "{parts[0]}"{hint}')
        elif not has_value:
            problems.append(f"{flag}: has no value; write {flag} VALUE")
        elif name in changes:
            problems.append(f"{flag}: is given twice; keep one of the two")
        else:
            try:
                changes[name] = parse_json(text)
            except ValueError:
                changes[name] = text
    return changes, problems


def apply_overrides(recipe: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Write overrides into a recipe as read from its file, in place."""
    for name, value in changes.items():
        *parents, key = name.split(".")
        inner = recipe
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                inner[parent] = {}
            inner = inner[parent]
        inner[key] = copy.deepcopy(value)  # each recipe's own: the next override may write into it


def _same_file(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _same_folder(path: Path, other: Path) -> str:
    return f'{path}: would write to the same folder "{path.stem}" as {other}; rename one of the two'


def _read(path: Path, changes: Mapping[str, Any], sections: Mapping[str, Keys], problems: list[str]) -> Draft:
    draft = Draft(path)
    if wrong := check_name(path.stem):
        problems.append(f"{path}: {wrong}; rename the file")
        return draft
    try:
        recipe = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        neighbours = [other.name for other in path.parent.glob("*.json")] if path.parent.is_dir() else []
        problems.append(f"{path}: there is no such file{did_you_mean(path.name, neighbours, '; check the path')}")
        return draft
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}; name a recipe's file")
        return draft
    except UnicodeDecodeError:
        problems.append(f"{path}: is not text in UTF-8; save it as UTF-8")
        return draft
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return draft
    if not isinstance(recipe, dict):
        problems.append(f"{path}: must be an object {{...}} with the sections {', '.join(sections)}")
        return draft
    if RUN_FORMAT in recipe and isinstance(recipe.get("recipe"), dict):
        recipe = recipe["recipe"]
    apply_overrides(recipe, changes)
    found: list[Problem] = []
    for section in recipe:
        if section not in sections and section != "$schema":
            homes = [home for home, keys in sections.items() if section in keys]
            accepted = f"; sections are {', '.join(sections)}"
            hint = f'; it belongs to "{homes[0]}"' if homes else did_you_mean(section, sections, accepted)
            found.append((section, f"unknown section{hint}"))
    for section in sections:
        if section not in recipe:
            found.append((section, f'the section is missing; add "{section}": {{...}}'))
        elif not isinstance(recipe[section], dict):
            found.append((section, "must be an object {...}"))
        else:
            values, wrong = check_keys(section, recipe[section], sections)
            setattr(draft, section, values)
            found += wrong
    found += [
        *check_model(draft.model),
        *check_data(draft.data),
        *check_training(draft.training, sections["training"]),
    ]
    for key, problem in found:
        # Said once for the command line, not again for each recipe that it applies to.
        overridden = any(f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.") for name in changes)
        origin = "command line" if overridden else path
        problems.append(f"{origin}: {key}: {problem}")
    return draft


def _link(drafts: dict[str, Draft], sections: Mapping[str, Keys], problems: list[str]) -> None:
    """Find the recipes whose runs give encoders, and read those that were not named on the command line."""
    named = set(drafts)
    waiting = list(drafts.values())
    for draft in waiting:
        weights = draft.model.get("encoder_weights")
        if draft.model.get("init") != "checkpoint" or not isinstance(weights, str):
            continue
        neighbour = draft.path.parent / f"{weights}.json"
        if weights not in named and Path(weights).name == weights and os.path.isfile(neighbour):
            if weights not in drafts:
                drafts[weights] = _read(neighbour, {}, sections, problems)
                waiting.append(drafts[weights])
            elif not _same_file(neighbour, drafts[weights].path):
                problems.append(_same_folder(neighbour, drafts[weights].path))
        if weights in drafts:
            draft.encoder_recipe = weights
            for difference in encoder_differences(drafts[weights].model, draft.model):
                problem = f'"{weights}" is a checkpoint of another architecture: {difference}'
                problems.append(f"{draft.path}: model.encoder_weights: {problem}")
        elif not is_path_or_hub_id(weights):
            names = {*drafts, *(other.stem for other in draft.path.parent.glob("*.json"))} - {draft.path.stem}
            hint = did_you_mean(weights, sorted(names), "; name one of these")
            problems.append(
                f'{draft.path}: model.encoder_weights: "{weights}" is no recipe in this launch or beside this file, '
                f"no existing path and no Hub id of the form org/name{hint}"
            )


def _training_order(drafts: dict[str, Draft], problems: list[str]) -> list[str]:
    order: list[str] = []
    for first in drafts:
        chain: list[str] = []
        name: str | None = first
        while name is not None and name not in order:
            if name in chain:
                circle = " → ".join([*chain[chain.index(name) :], name])
                problem = f"goes round in a circle, {circle}; start one of them from something else"
                problems.append(f"{drafts[name].path}: model.encoder_weights: {problem}")
                break
            chain.append(name)
            name = drafts[name].encoder_recipe
        order += reversed(chain)
    return order
