"""`hf-seg doctor`: find problems of the data and the machine before a training run starts.

The order: packages → recipes → each data set once: its pairs, its splits, duplicates → disk space → a step of each
recipe. Errors that training would stop with are found by the same functions that training calls.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_seg.doctor.environment import check_gpu, check_packages, check_shared_memory
from hf_seg.problem import LEVELS, Problem, RecipeError, Refusal
from hf_seg.recipe import Recipe, load_recipes
from hf_seg.recipe.keys import DataRecipe, TrainingRecipe
from hf_seg.text import printable

if TYPE_CHECKING:  # at run time only after check_packages: hf_seg.data cannot be imported if torch is broken
    from hf_seg.data.pairs import Listing
    from hf_seg.data.spec import DatasetSpec
    from hf_seg.doctor.survey import Survey

Sections = list[tuple[DataRecipe, TrainingRecipe]]

FILES_SHOWN = 10  # problems shown per code, unless --all is given
# Recipes that differ only in these keys have the same pairs, which are examined once.
PREPARATION = {"image_size": 64, "resize": "stretch", "normalize": "none", "augment": "none", "cache": "auto"}


@dataclass(kw_only=True)
class Report:
    """The findings of the doctor."""

    problems: list[Problem] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)  # of each data set `name`, `place`, `splits`, `layout`
    # for each recipe `name`, `seconds` of an epoch without its validation, `epochs`, `megabytes` of memory or None
    estimates: list[dict[str, Any]] = field(default_factory=list)

    @property
    def would_start(self) -> bool:
        return all(problem.level != "error" for problem in self.problems)


def diagnose(paths: Sequence[str | Path], overrides: Sequence[str] = (), *, deep: bool = False) -> Report:
    """Examine data and machine for the runs of recipes. The report has an error exactly if training would refuse to
    start. Nothing is written, unpacked or trained.

    Args:
        paths: recipe files; a folder stands for the `recipe.json` in it, or without one for the data that it holds.
        overrides: `--section.key value` pairs, as in training.
        deep: decode all pictures again and compare them with each cache of resized pairs.
    """
    report = Report(problems=check_packages())
    if not report.would_start:
        return report
    report.problems += check_gpu()
    from hf_seg.data.sources import recognise  # only now, since it needs a working torch

    folders = [Path(path) for path in paths if Path(path).is_dir() and not (Path(path) / "recipe.json").is_file()]
    files = [Path(path) for path in paths if Path(path) not in folders]
    if overrides and not files:
        what = f"has no recipe that {overrides[0]} could change"
        raise RecipeError("hf-seg doctor", what, "name a recipe, or a folder with a recipe.json")
    recipes = _load([path / "recipe.json" if path.is_dir() else path for path in files], overrides, report)
    sections = [(recipe.data, recipe.training) for recipe in recipes]
    sections += [(data, TrainingRecipe()) for folder in folders for data in recognise(folder)]
    groups: dict[str, Sections] = {}  # runs on the same pairs, however these are prepared
    for data, training in sections:
        groups.setdefault(repr(dataclasses.replace(data, **PREPARATION)), []).append((data, training))
    for same in groups.values():
        data_set = _examine(same, report, deep)
        for recipe in recipes if data_set else ():
            if (recipe.data, recipe.training) in same:
                report.problems += _try_out(recipe, *data_set, report)
    return report


def _load(files: list[Path], overrides: Sequence[str], report: Report) -> list[Recipe]:
    """Load all recipes of a launch. If that fails, report why and return the recipes that can be loaded alone."""
    if not files:
        return []
    try:
        return load_recipes(files, overrides)
    except RecipeError as error:
        report.problems += error.problems
    recipes: dict[Path, Recipe] = {}
    for file in files:
        with suppress(RecipeError):  # already reported above
            recipes |= {recipe.path: recipe for recipe in load_recipes([file], overrides)}
    return list(recipes.values())


def _examine(same: Sections, report: Report, deep: bool) -> tuple[DatasetSpec, dict[str, int]] | None:
    """Examine the data set that all of `same` use, and add to the report. Return its spec and the number of usable
    pairs by split, for a trial step; None if training could not start on it."""
    from hf_seg.data.sources import examine_archives, list_data
    from hf_seg.doctor.survey import Survey, describe, find_problems, survey_pairs

    data, drop = same[0][0], same[0][0].on_bad_pair == "drop"
    listing = list_data(data)
    report.problems += examine_archives(data, Path(listing.place))
    report.problems += [problem for refusal in listing.refusals for problem in refusal.problems] + listing.notes
    survey = Survey()
    if listing.splits is not None:
        survey = survey_pairs(listing.splits, listing.spec)
    of_folder = {"layout": listing.layout} if listing.layout else {}
    report.data.append(
        {"name": data.name, "place": listing.place, **of_folder, "splits": describe(survey, listing.spec)}
    )
    for problem in listing.bad_pairs + survey.problems:
        left_out = drop and problem.level == "error" and problem.code != "mask-palettes"
        report.problems.append(dataclasses.replace(problem, level="warning") if left_out else problem)
    framings = [(data.size, data.resize) for data, _ in same if data.resize != "crop"]  # a crop is not enlarged
    size, resize = max(framings, default=((0, 0), "crop"))
    known = listing.split_known
    report.problems += find_problems(
        survey, listing.spec, place=listing.place, size=size, resize=resize, drop=drop, split_known=known
    )
    if not listing.spec or not known:
        return None
    report.problems += _check_caches(same, listing, survey, deep)
    usable = {name: len(rows) for name, rows in survey.usable.items()}
    if not all(usable.values()):
        return None
    report.problems += _check_labels(same, listing, survey)
    return listing.spec, usable


def _check_labels(same: Sections, listing: Listing, survey: Survey) -> list[Problem]:
    """Find splits in which no pixel has a class, as stored or as the runs resize the masks."""
    from hf_seg.data import check_labels
    from hf_seg.data.prepared import UncachedPairs
    from hf_seg.data.transforms import build_transforms

    splits = {name: split.select(list(survey.usable[name])) for name, split in listing.splits.items()}
    problems: list[Problem] = []
    for transforms in (build_transforms(data, listing.spec) for data, _ in same):
        pairs = {name: UncachedPairs(split, transforms[name]) for name, split in splits.items()}
        try:
            check_labels(listing.place, pairs, listing.spec.ignore_index)
        except Refusal as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def _check_caches(same: Sections, listing: Listing, survey: Survey, deep: bool) -> list[Problem]:
    """Find a lack of disk space or shared memory for the runs on a data set; with `deep`, also outdated caches."""
    from hf_seg.data.cache import SplitCache, find_obstacle, prepared_folder
    from hf_seg.data.check import in_memory
    from hf_seg.data.prepared import default_workers
    from hf_seg.data.transforms import build_transforms

    if in_memory(listing.splits):
        return []
    splits = dict(listing.splits)
    if same[0][0].on_bad_pair == "drop":  # a run then caches only the usable pairs
        splits = {name: split.select(list(survey.usable[name])) for name, split in splits.items()}
    caches: dict[tuple[Path, str], SplitCache] = {}
    problems = []
    for data, training in same:
        transforms = build_transforms(data, listing.spec)
        for name, split in splits.items() if data.cache is not False else ():
            folder, transform = prepared_folder(data.cache), transforms[name]
            cache = SplitCache(name=name, dataset=split, spec=listing.spec, transform=transform, folder=folder)
            caches[folder, cache.place.name] = cache
        wanted = default_workers() if data.cache is False else 0
        workers = training.arguments.get("dataloader_num_workers", wanted)
        batch = 4 * training.global_train_batch_size * math.prod(transforms["train"].prepared_size)
        problems += check_shared_memory(workers, batch)
    wanted = {prepared_folder(data.cache) for data, _ in same if data.cache not in ("auto", False)}
    for folder in dict.fromkeys(folder for folder, _ in caches):
        own = [cache for (place, _), cache in caches.items() if place == folder]
        problems += filter(None, [find_obstacle(own, folder, "error" if folder in wanted else "warning")])
    for cache in caches.values() if deep else ():
        for file in cache.find_stale():
            what = f"{cache.place} holds pixels of this pair that differ from its files"
            remedy = "Delete that folder: the next launch makes it again."
            problems.append(Problem(level="warning", code="stale-cache", place=file, what=what, remedy=remedy))
    return list(dict.fromkeys(problems))


def _try_out(recipe: Recipe, spec: DatasetSpec, counts: dict[str, int], report: Report) -> list[Problem]:
    """Take the trial step of a launch and return its problems; add an estimate of time and memory to the report."""
    from hf_seg.launch import estimate, try_out

    file = str(recipe.path)
    try:
        unused = try_out(recipe, spec, counts)
    except Refusal as error:
        of_step = {"code": "trial-step", "place": file}
        return [dataclasses.replace(each, what=f"{each.place}: {each.what}", **of_step) for each in error.problems]
    try:
        seconds, megabytes = estimate(recipe, spec, counts)
    except Refusal as error:  # a full batch failed; a launch does not try one, so this is a warning
        return [dataclasses.replace(each, level="warning", place=file) for each in error.problems]
    epochs = recipe.training.num_train_epochs
    report.estimates.append({"name": recipe.name, "seconds": seconds, "epochs": epochs, "megabytes": megabytes})
    if not unused:
        return []
    what = f"{len(unused)} parameters get no gradient, such as {unused[0]}"
    return [Problem(level="note", code="no-gradient", place=file, what=what, remedy="Training does not change them.")]


def as_json(report: Report) -> str:
    """The report as JSON: `findings`, and `summary` with `would_start`, `levels`, `codes`, `data` and `estimates`."""
    levels = Counter(problem.level for problem in report.problems)
    summary = {
        "would_start": report.would_start,
        "levels": {level: levels[level] for level in LEVELS},
        "codes": dict(Counter(problem.code for problem in report.problems)),
        "data": report.data,
        "estimates": report.estimates,
    }
    problems = [dataclasses.asdict(problem) for problem in report.problems]
    return json.dumps({"findings": problems, "summary": summary}, indent=2)


def as_text(report: Report, *, show_all: bool = False) -> str:
    """The report as text: the data sets, estimates, problems by level and code, and whether training would start."""
    lines = []
    for data in report.data:
        counts = ", ".join(f"{split['pairs']:,} {name}" for name, split in data["splits"].items())
        layout = f"; layout {data['layout']}" if "layout" in data else ""
        lines.append(f"{data['place']}: {counts or 'no pair was examined'}{layout}")
    for each in report.estimates:
        times = (each["seconds"], each["seconds"] * each["epochs"] / 60)
        epoch, total = (f"{time:,.0f}" if time >= 10 else f"{time:.1f}" for time in times)
        memory = f"; {each['megabytes'] / 1000:.1f} GB of memory" if each["megabytes"] else ""
        took = f"about {epoch} s per epoch and {total} min in total on this machine, without validation"
        lines.append(f"{each['name']}: {took}{memory}")
    kinds = Counter((LEVELS.index(problem.level), problem.code) for problem in report.problems)
    for (level, code), count in sorted(kinds.items()):
        problems = [f for f in report.problems if (f.level, f.code) == (LEVELS[level], code)]
        lines += ["", f"{LEVELS[level]}: {code} ({count:,})"]
        shown = problems if show_all else problems[:FILES_SHOWN]
        lines += [f"  {problem.place}: {problem.what}" for problem in shown]
        if len(shown) < count:
            lines.append(f"  … and {count - len(shown):,} more (--all)")
        lines += [f"  → {remedy}" for remedy in dict.fromkeys(problem.remedy for problem in problems) if remedy]
    levels = Counter(problem.level for problem in report.problems)
    counted = ", ".join(f"{levels[level]:,} {level}{'' if levels[level] == 1 else 's'}" for level in LEVELS)
    verdict = "training would start" if report.would_start else "training would be refused"
    return "\n".join(map(printable, [*lines, "", f"{counted}: {verdict}."]))
