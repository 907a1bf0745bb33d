"""Runs on the same test images, side by side: what their scores show, and what they do not."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_seg.problem import RecipeError
from hf_seg.runs.record import (
    PER_IMAGE,
    RESULTS,
    ROC,
    SAMPLES,
    changed_keys,
    differing_keys,
    load_arrays,
    load_results,
)

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 50  # resamples at a time: a matrix for each of them is held


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder (`Path`): where it is.
        results (`dict`): its `results.json`.
        per_image (`np.ndarray` of shape `(images, C, C)`, *optional*): confusion matrices of the test images; None
            where the file is gone.
        samples (`dict[str, np.ndarray]`, *optional*): bytes of some test images: `pixel_values` of shape
            `(samples, 3, height, width)`, `labels` and `predictions` of shape `(samples, height, width)`, and the
            classes' `palette` of shape `(C, 3)`.
        roc (`dict[str, np.ndarray]`, *optional*): `fpr` and `tpr` of shape `(C, points)`, NaN where a class does not
            occur.
    """

    folder: Path
    results: dict[str, Any]
    per_image: np.ndarray | None
    samples: dict[str, np.ndarray] | None
    roc: dict[str, np.ndarray] | None

    @property
    def name(self) -> str:
        return self.results["recipe"]["name"]

    @property
    def recipe(self) -> dict[str, Any]:
        return {section: keys for section, keys in self.results["recipe"].items() if section != "name"}

    @property
    def seed(self) -> int:
        return self.recipe["training"]["seed"]


@dataclass(frozen=True)
class Arm:
    """The runs of one recipe, which differ in their seeds only; what is compared.

    Args:
        name (`str`): of the recipe.
        runs (`tuple[Run, ...]`): by seed.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def hardware(self) -> list[str]:
        """What the runs were trained on, and in which precision; more than one where seeds differ in it."""
        results = [run.results for run in self.runs]
        return sorted({f"{each['environment']['hardware']}, {each['train']['precision']}" for each in results})

    def mean(self, value) -> float:
        """The mean over seeds of what a function takes from `results.json`."""
        return statistics.fmean(value(run.results) for run in self.runs)

    def deviation(self, value) -> float | None:
        """The sample standard deviation over seeds; None of a single one."""
        return statistics.stdev(value(run.results) for run in self.runs) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class Difference:
    """How much higher the test mIoU of `first` is than that of `second`.

    Args:
        first ([`Arm`]), second ([`Arm`]): what is compared.
        mean (`float`): of the difference, over seeds, in [-1, 1].
        interval (`tuple[float, float]`, *optional*): 95 % confidence interval of it over test images.
        by_class (`dict[str, float]`): of the IoU of each class that both have.
    """

    first: Arm
    second: Arm
    mean: float
    interval: tuple[float, float] | None
    by_class: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Arms in the order of their test mIoU, the best one first.

    Args:
        arms (`tuple[Arm, ...]`): what was compared.
        differences (`tuple[Difference, ...]`): of all pairs of them.
        protocol (`dict[str, list]`): the keys of data and training in which the arms were not trained alike, such as
            "training.learning_rate", with the value of each arm.
    """

    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]
    protocol: dict[str, list[Any]]


def mean_iou(results: dict[str, Any]) -> float:
    """A run's test mIoU."""
    return results["test"]["mean_iou"]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare finished runs.

    Args:
        folders (`Sequence[Path]`): of runs, at least two. Runs whose recipes differ in the seed only are one arm.

    Raises:
        RecipeError: when a folder holds no finished run, or the runs were not tested on the same images and classes.
    """
    runs = [load_run(folder) for folder in dict.fromkeys(map(Path.resolve, folders))]
    check_comparable(runs)
    arms = sorted(group(runs), key=lambda arm: -arm.mean(mean_iou))
    known = {arm.name: [run.per_image for run in arm.runs] for arm in arms}
    known = {name: matrices for name, matrices in known.items() if all(each is not None for each in matrices)}
    resampled = dict(zip(known, bootstrap([*known.values()]), strict=True))
    differences = [difference(first, second, resampled) for first, second in combinations(arms, 2)]
    protocol = differing_keys([arm.runs[0].recipe | {"model": {}} for arm in arms])
    protocol.pop("training.seed", None)
    return Comparison(tuple(arms), tuple(differences), protocol)


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        RecipeError: when there is none.
    """
    results = load_results(folder)
    test = results["test"]
    scores = {f"test.{key}": test[key] for key in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    scores |= {
        "test.boundary_iou.mean": test["boundary_iou"]["mean"],
        "test.native.mean_iou": test["native"]["mean_iou"],
        "validation.mean_iou": results["validation"]["mean_iou"],
    }
    for key in [key for key, score in scores.items() if score is None]:
        raise RecipeError(f"{folder / RESULTS}: {key} is null, so there is nothing to compare; leave this run out")
    files = (load_arrays(folder / name, len(results["data"]["class_names"])) for name in (PER_IMAGE, SAMPLES, ROC))
    kept, samples, roc = files
    per_image = None if kept is None else kept["confusion"]
    if per_image is not None and per_image.sum(axis=0).tolist() != results["test"]["confusion_matrix"]:
        raise RecipeError(f"{folder / PER_IMAGE}: is not of the run in {folder / RESULTS}; train the run again")
    return Run(folder, results, per_image, samples, roc)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose scores do not stand on the same test pixels.

    Raises:
        RecipeError: naming the first pair that differs, and in what.
    """
    if len(runs) < 2:
        raise RecipeError("compare: name at least two runs")
    for run in runs[1:]:
        for what, value in (
            ("data, by fingerprint", lambda r: r["data"]["fingerprint"]),
            ("number of test images", lambda r: r["data"]["counts"]["test"]),
            ("classes", lambda r: r["data"]["class_names"]),
            ("data.image_size", lambda r: r["recipe"]["data"]["image_size"]),
        ):
            ours, theirs = value(runs[0].results), value(run.results)
            if ours != theirs:
                raise RecipeError(
                    f"{run.folder}: was tested on another {what} ({theirs}) than {runs[0].folder} ({ours}), so their "
                    "scores cannot be compared"
                )


def group(runs: Sequence[Run]) -> list[Arm]:
    """Put runs together whose recipes differ in the seed only; their names differ in `-seedN` at most."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        name = re.sub(r"-seed\d+$", "", run.name)
        first = arms.setdefault(name, [run])[0]
        if run is first:
            continue
        changed = [key for key in changed_keys(first.recipe, run.recipe) if ".seed: " not in key]
        if changed or run.seed in {other.seed for other in arms[name]}:
            why = "; ".join(changed) or f"both have the seed {run.seed}"
            raise RecipeError(f"{run.folder} and {first.folder}: are two runs named {name}, but not two seeds ({why})")
        arms[name].append(run)
    return [Arm(name, tuple(sorted(members, key=lambda run: run.seed))) for name, members in arms.items()]


def difference(first: Arm, second: Arm, resampled: Mapping[str, np.ndarray]) -> Difference:
    """The difference of two arms' test scores, with an interval where [`bootstrap`] has scores of both, by name."""

    def by_class(arm: Arm, name: str) -> list[float | None]:
        return [run.results["test"]["per_category_iou"].get(name) for run in arm.runs]

    classes, interval = {}, None
    for name in first.runs[0].results["data"]["class_names"]:
        ours, theirs = by_class(first, name), by_class(second, name)
        if None not in ours and None not in theirs:
            classes[name] = statistics.fmean(ours) - statistics.fmean(theirs)
    if first.name in resampled and second.name in resampled:
        interval = percentile_interval(resampled[first.name] - resampled[second.name])
    return Difference(first, second, first.mean(mean_iou) - second.mean(mean_iou), interval, classes)


def bootstrap(
    arms: Sequence[Sequence[np.ndarray]], *, statistic=None, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Scores under resampled test images: what the paired percentile bootstrap takes the differences of.

    Each resample draws as many images as there are, with replacement, and takes the *same* ones for all arms: what
    makes an image hard for two of them does not blur their difference. The runs are taken as they are; how much
    another training would differ is for seeds to say.

    Args:
        arms (`Sequence[Sequence[np.ndarray]]`): of each arm's runs the confusion matrices, integers of shape
            `(images, C, C)`, of the same images in the same order.
        statistic (`Callable`, *optional*): maps matrices `(resamples, C, C)` to a score each; the mIoU by default.
        resamples (`int`): how many are drawn.
        seed (`int`): of the drawing.

    Returns:
        `np.ndarray` of shape `(arms, resamples)`: each arm's score, the mean over its runs.

    Raises:
        ValueError: when the runs do not have the same images and classes.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    shapes = {matrices.shape for runs in arms for matrices in runs}
    if len(shapes) > 1:
        raise ValueError(f"per-image matrices of different shapes: {sorted(shapes)}")
    if not shapes:
        return np.empty((0, resamples))
    [(images, *_)] = shapes
    statistic = statistic or mean_iou_of
    random = np.random.default_rng(seed)
    arms = [[matrices.astype(np.float64) for matrices in runs] for runs in arms]
    scores = []
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        times = random.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)
        scores.append(
            [np.mean([statistic(np.tensordot(times, matrices, axes=1)) for matrices in runs], axis=0) for runs in arms]
        )
    return np.concatenate(scores, axis=1)


def percentile_interval(differences: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle share `level`, in (0, 1), of resampled differences: the ends of their confidence interval."""
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_iou_of(matrices: np.ndarray) -> np.ndarray:
    """The mIoU of each of `(n, C, C)` confusion matrices, classes that are absent from one left out of its mean."""
    intersection = np.diagonal(matrices, axis1=1, axis2=2)
    union = matrices.sum(axis=1) + matrices.sum(axis=2) - intersection
    present = union > 0
    iou = np.divide(intersection, union, out=np.zeros(union.shape), where=present)
    return iou.sum(axis=1) / present.sum(axis=1)


def verdict(difference: Difference) -> str:
    """One sentence on what a difference shows, and what it does not."""
    first, second = difference.first, difference.second
    points = f"{100 * difference.mean:.1f} points of mIoU"
    if difference.interval is None:
        return (
            f"{first.name} scores {points} above {second.name}; without per-image matrices of all runs there is no "
            "interval to judge that by."
        )
    low, high = (100 * end for end in difference.interval)
    interval = f"95 % interval over test images: {low:+.1f} to {high:+.1f}"
    if low <= 0:
        said = f"{first.name} and {second.name} cannot be told apart on these test images: {points} ({interval})"
    else:
        said = f"{first.name} scores {points} above {second.name} on these test images ({interval})"
    seeds = [[mean_iou(run.results) for run in arm.runs] for arm in (first, second)]
    if min(map(len, seeds)) < 2:
        return f"{said}; with a single seed on a side, whether training again would say the same is not known."
    overlap = min(seeds[0]) <= max(seeds[1])
    return f"{said}; the scores of their seeds {'overlap' if overlap else 'do not overlap'}."
