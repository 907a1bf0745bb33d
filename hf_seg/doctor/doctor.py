"""`hf-seg doctor`: everything in the data and on the machine that would hurt a training run, before it starts.

The story: packages → recipes → each data set once: its pairs, what its splits hold, duplicates → disk space → a step
of each recipe.
What training would refuse is found by the functions that training refuses it with.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_seg.doctor.environment import check_folder, check_gpu, check_packages, check_shared_memory
from hf_seg.problem import LEVELS, Problem, RecipeError, Refusal
from hf_seg.recipe import Recipe, load_recipes
from hf_seg.recipe.keys import DataRecipe, TrainingRecipe
from hf_seg.text import printable

if TYPE_CHECKING:  # at run time only after check_packages: where torch is broken, hf_seg.data cannot be imported
    from hf_seg.data.gather import Gathered
    from hf_seg.data.spec import DatasetSpec

FILES_SHOWN = 10  # of a code, unless all are asked for
PREPARATION = {"image_size": 64, "normalize": "none", "augment": "none", "cache": True}  # not what is examined


@dataclass(kw_only=True)
class Report:
    """What the doctor found.

    Args:
        findings (`list[Problem]`): in the order in which they were found.
        data (`list[dict]`): of each data set `name`, `place` and `splits` (split → pairs, usable, shares).
    """

    findings: list[Problem] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)

    @property
    def would_start(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)


def diagnose(
    paths: Sequence[str | Path], overrides: Sequence[str] = (), *, deep: bool = False, disable_bar: bool | None = False
) -> Report:
    """Examine what the runs of recipes would meet. Nothing is written, unpacked or trained.

    Args:
        paths (`Sequence[str | Path]`): recipe files; a folder stands for the `recipe.json` in it, else for the
            pictures that it holds.
        overrides (`Sequence[str]`): `--section.key value` pairs, as in training.
        deep (`bool`): decode the pictures again for each cache of resized pairs, and compare.
        disable_bar (`bool`, *optional*): as tqdm's `disable`; None: a bar on terminals only.

    Returns:
        [`Report`]: with an error exactly where training would refuse to start.
    """
    report = Report(findings=check_packages())
    if not report.would_start:
        return report
    report.findings += check_gpu()
    folders = [Path(path) for path in paths if Path(path).is_dir() and not (Path(path) / "recipe.json").is_file()]
    files = [Path(path) for path in paths if Path(path) not in folders]
    recipes = _load([path / "recipe.json" if path.is_dir() else path for path in files], overrides, report)
    sections = [(recipe.data, recipe.training) for recipe in recipes]
    sections += [(data, TrainingRecipe()) for folder in folders for data in _recognise(folder)]
    for same in _group(sections):
        data_set = _examine(same, report, deep, disable_bar)
        if data_set is not None:
            for recipe in recipes:
                if (recipe.data, recipe.training) in same:
                    report.findings += _try_out(recipe, *data_set)
    return report


def _load(files: list[Path], overrides: Sequence[str], report: Report) -> list[Recipe]:
    """All recipes of a launch; when that would be refused, those that are in order by themselves."""
    if not files:
        return []
    try:
        return load_recipes(files, overrides)
    except RecipeError as error:
        report.findings += error.problems
    recipes: dict[Path, Recipe] = {}
    for file in files:
        try:
            recipes |= {recipe.path: recipe for recipe in load_recipes([file], overrides)}
        except RecipeError:
            continue  # among the problems above
    return list(recipes.values())


def _recognise(folder: Path) -> list[DataRecipe]:
    """The data sets that a folder holds."""
    from hf_seg.data.gather import OFFICIAL, PACKED
    from hf_seg.data.sources.download import find_folder
    from hf_seg.data.sources.table_files import is_table_folder

    if not (folder / "masks").is_dir():
        found = []
        for name, source in OFFICIAL.items():
            place = find_folder(str(folder), source.FOLDER_NAME, source.PARTS)
            # images/ may be anybody's: the other part, or an archive, tells
            if (place / source.PARTS[1]).is_dir() or any((place / file).is_file() for file in PACKED[name].values()):
                found.append(DataRecipe(name=name, root=str(folder)))
        if found:
            return found
        if is_table_folder(folder):
            return [DataRecipe(name="hub", path=str(folder))]
    return [DataRecipe(name="folder", root=str(folder))]


def _group(sections: list[tuple[DataRecipe, TrainingRecipe]]) -> list[list[tuple[DataRecipe, TrainingRecipe]]]:
    """Runs on the same pairs: these are examined once, however they are prepared."""
    groups: dict[str, list[tuple[DataRecipe, TrainingRecipe]]] = {}
    for data, training in sections:
        groups.setdefault(repr(dataclasses.replace(data, **PREPARATION)), []).append((data, training))
    return list(groups.values())


def _examine(
    same: list[tuple[DataRecipe, TrainingRecipe]], report: Report, deep: bool, disable_bar: bool | None
) -> tuple[DatasetSpec, dict[str, int]] | None:
    """Returns what a step can be tried with: the classes, and how many pairs of each split can be used."""
    from hf_seg.data.gather import gather
    from hf_seg.doctor.survey import describe, examine

    data = same[0][0]
    gathered = gather(data)
    report.findings += gathered.findings
    described: dict[str, Any] = {"name": data.name, "place": gathered.place, "splits": {}}
    report.data.append(described)
    if gathered.splits is not None:
        examination = examine(
            gathered.splits,
            gathered.spec,
            place=gathered.place,
            image_size=max(data.image_size for data, _ in same),
            drop=data.on_bad_pair == "drop",
            split_known=gathered.split_known,
            disable_bar=disable_bar,
        )
        report.findings += examination.findings
        described["splits"] = describe(examination, gathered.spec)
    report.findings += _check_disk(same, gathered)
    if deep:
        report.findings += _compare_caches([data for data, _ in same], gathered, disable_bar)
    usable = {name: split["usable"] for name, split in described["splits"].items()}
    whole = gathered.spec is not None and gathered.split_known and all(usable.values())
    return (gathered.spec, usable) if whole else None


def _compare_caches(sections: list[DataRecipe], gathered: Gathered, disable_bar: bool | None) -> list[Problem]:
    """Pairs of which a cache holds other pixels than the files give now."""
    from hf_seg.data.cache import find_stale, prepared_folder
    from hf_seg.data.check import find_bad_pairs, in_memory, without
    from hf_seg.data.transforms import build_transforms

    if gathered.splits is None or gathered.spec is None or not gathered.split_known or in_memory(gathered.splits):
        return []
    splits, spec, stale = gathered.splits, gathered.spec, {}
    if sections[0].on_bad_pair == "drop":  # as a run's cache is of those that are left
        splits = without(splits, {(pair.split, pair.index) for pair, _ in find_bad_pairs(splits, spec)})
    for data in sections:
        for name, transform in build_transforms(data, spec).items() if data.cache is not False else ():
            place, files = find_stale(
                name,
                splits[name],
                spec,
                prepare=transform.prepare,
                size=transform.prepared_size,
                folder=prepared_folder(data.cache),
                disable_bar=disable_bar,
            )
            stale[place] = files
    return [
        Problem(
            level="warning",
            code="stale-cache",
            place=file,
            what=f"{place} holds other pixels of this pair than its files give now",
            remedy="Delete that folder: the next launch makes it again.",
        )
        for place, files in stale.items()
        for file in files
    ]


def _try_out(recipe: Recipe, spec: DatasetSpec, counts: dict[str, int]) -> list[Problem]:
    """What a launch would find by its trial step."""
    from hf_seg.launch import try_out

    file = str(recipe.path)
    try:
        unused = try_out(recipe, spec, counts)
    except Refusal as error:
        return [
            dataclasses.replace(problem, code="trial-step", place=file, what=f"{problem.place}: {problem.what}")
            for problem in error.problems
        ]
    if not unused:
        return []
    what = f"{len(unused)} parameters get no gradient, as {unused[0]}"
    return [Problem(level="note", code="no-gradient", place=file, what=what, remedy="No step will change them.")]


def _check_disk(same: list[tuple[DataRecipe, TrainingRecipe]], gathered: Gathered) -> list[Problem]:
    """Disk and shared memory of the runs on one data set."""
    from hf_seg.data.cache import prepared_folder
    from hf_seg.data.check import in_memory
    from hf_seg.data.transforms import build_transforms

    if gathered.splits is None or gathered.spec is None or not gathered.split_known or in_memory(gathered.splits):
        return []
    caches: dict[Path, dict[tuple[str, int], int]] = {}
    findings = []
    for data, training in same:
        transforms = build_transforms(data, gathered.spec)
        folder = prepared_folder(data.cache or "")
        for name, split in gathered.splits.items():
            side = transforms[name].prepared_size
            if data.cache is not False:
                caches.setdefault(folder, {})[name, side] = 4 * len(split) * side**2
        workers = training.arguments.get("dataloader_num_workers", 0)
        batch = 4 * training.global_train_batch_size * transforms["train"].prepared_size ** 2
        findings += check_shared_memory(workers, batch) if workers else []
    for folder, sizes in caches.items():
        findings += check_folder(folder, sum(sizes.values()), "the resized pairs")
    return list(dict.fromkeys(findings))


def as_json(report: Report) -> str:
    """The report as one JSON object: `findings`, and `summary` with `would_start`, `levels`, `codes` and `data`."""
    levels = Counter(finding.level for finding in report.findings)
    summary = {
        "would_start": report.would_start,
        "levels": {level: levels[level] for level in LEVELS},
        "codes": dict(Counter(finding.code for finding in report.findings)),
        "data": report.data,
    }
    findings = [dataclasses.asdict(finding) for finding in report.findings]
    return json.dumps({"findings": findings, "summary": summary}, indent=2)


def as_text(report: Report, *, show_all: bool = False) -> str:
    """The report for people: what was looked at, findings by level and code, and whether training would start."""
    lines = []
    for data in report.data:
        counts = ", ".join(f"{split['pairs']:,} {name}" for name, split in data["splits"].items())
        lines.append(f"{data['place']}: {counts or 'no pair was examined'}")
    kinds = Counter((LEVELS.index(finding.level), finding.code) for finding in report.findings)
    for (level, code), count in sorted(kinds.items()):
        findings = [f for f in report.findings if (f.level, f.code) == (LEVELS[level], code)]
        lines += ["", f"{LEVELS[level]}: {code} ({count:,})"]
        shown = findings if show_all else findings[:FILES_SHOWN]
        lines += [f"  {finding.place}: {finding.what}" for finding in shown]
        if len(shown) < count:
            lines.append(f"  … and {count - len(shown):,} more (--all)")
        lines += [f"  → {remedy}" for remedy in dict.fromkeys(finding.remedy for finding in findings) if remedy]
    levels = Counter(finding.level for finding in report.findings)
    counted = ", ".join(f"{levels[level]:,} {level}{'' if levels[level] == 1 else 's'}" for level in LEVELS)
    verdict = "training would start" if report.would_start else "training would be refused"
    return "\n".join(map(printable, [*lines, "", f"{counted}: {verdict}."]))
