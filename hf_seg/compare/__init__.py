"""Compare runs on the same test images: what the differences of their scores show, and what they do not."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_seg.problem import Refusal
from hf_seg.runs.page import describe_input
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
from hf_seg.scoring.confusion import mean_iou

RESAMPLES = 2000
LEVEL = 0.95  # of the confidence intervals
CHUNK = 50  # resamples at a time, since each holds a confusion matrix in memory
# Keys of the compared scores in `results.json`: at the model's input size, or at the pictures' own size.
OF_INPUT, NATIVE = ("test",), ("test", "native")
PLACES = {"confusion": OF_INPUT, "native": NATIVE}  # keys of the scores, by array name in `PER_IMAGE`


def look_up(results: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value under nested `keys`; None if the last key is missing or a value above it is null."""
    return reduce(lambda part, key: part and part.get(key), keys, results)


@dataclass(frozen=True)
class Tested:
    """A finished run or an evaluation: its folder, its `results.json`, and the arrays saved beside it.

    Args:
        per_image (`dict[tuple[str, ...], np.ndarray]`): integer confusion matrices `(images, C, C)` of the test
            images, by `OF_INPUT` and `NATIVE`. Empty if the file was deleted.
        samples (`dict[str, np.ndarray]`, *optional*): uint8 arrays of some test images: `pixel_values` of shape
            `(samples, 3, height, width)`, `labels` and `predictions` of shape `(samples, height, width)`, and the
            classes' `palette` of shape `(C, 3)`. None if the file was deleted.
        roc (`dict[str, np.ndarray]`, *optional*): `fpr` and `tpr` of shape `(C, points)`, NaN for a class that does
            not occur. None if the file was deleted.
    """

    folder: Path
    results: dict[str, Any]
    per_image: dict[tuple[str, ...], np.ndarray]
    samples: dict[str, np.ndarray] | None
    roc: dict[str, np.ndarray] | None

    @property
    def arm(self) -> str:
        """The run's name without the seed."""
        return re.sub(r"-seed\d+$", "", self.results["recipe"]["name"])

    @property
    def recipe(self) -> dict[str, Any]:
        return {section: keys for section, keys in self.results["recipe"].items() if section != "name"}

    @property
    def seed(self) -> int | None:
        """The seed of the training; None for an evaluation of a model whose training is not known."""
        return look_up(self.recipe, ("training", "seed"))


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: the runs of a recipe, which differ only in the seed; or an evaluation.

    Args:
        place (`tuple[str, ...]`): keys of the compared scores: `OF_INPUT`, or `NATIVE` if the arms' inputs differ.
    """

    name: str
    runs: tuple[Tested, ...]
    place: tuple[str, ...] = OF_INPUT

    @property
    def scores(self) -> list[float]:
        """The compared mIoU of each run, in [0, 1]."""
        return self.values(*self.place, "mean_iou")

    @property
    def hardware(self) -> list[str]:
        """Hardware and precision of the training or evaluation, sorted; several if the runs differ in them."""
        results = [run.results for run in self.runs]
        precisions = [(each["train"] or each["evaluation"])["precision"] for each in results]
        pairs = zip(results, precisions, strict=True)
        return sorted({f"{each['environment']['hardware']}, {precision}" for each, precision in pairs})

    @property
    def evaluated(self) -> bool:
        """Whether a run is an evaluation by `hf-seg evaluate`, which has no training times and validation scores."""
        return None in self.values("train")

    def values(self, *keys: str) -> list[Any]:
        """The value of each run's `results.json` under `keys`, see [`look_up`]."""
        return [look_up(run.results, keys) for run in self.runs]

    def mean(self, *keys: str) -> float:
        return statistics.fmean(self.values(*keys))

    def deviation(self, *keys: str) -> float | None:
        """The sample standard deviation over runs; None for a single run."""
        return statistics.stdev(self.values(*keys)) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class Difference:
    """The compared mIoU of `first` minus that of `second`."""

    first: Arm
    second: Arm
    mean: float  # over seeds, in [-1, 1]
    interval: tuple[float, float] | None  # 95 % confidence interval over test images
    by_class: dict[str, float]  # differences of the IoU, by class name, for classes that both have


@dataclass(frozen=True)
class Comparison:
    """Arms sorted by the compared mIoU, the best first, and the differences of all pairs of arms."""

    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]
    protocol: dict[str, list[Any]]  # recipe keys that differ, such as "training.learning_rate" → the value of each arm


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare at least two finished runs and evaluations. Runs whose recipes differ only in the seed form one arm.

    If the inputs differ in size or in `data.resize`, the scores at the pictures' own size are compared.

    Raises:
        Refusal: when a folder holds no finished run or evaluation, or their test images or classes differ.
    """
    runs = [load_tested(folder) for folder in dict.fromkeys(map(Path.resolve, folders))]
    check_comparable(runs)
    arms = sorted(group(runs), key=lambda arm: -statistics.fmean(arm.scores))
    known = {arm.name: [run.per_image.get(arm.place) for run in arm.runs] for arm in arms}
    known = {name: matrices for name, matrices in known.items() if all(each is not None for each in matrices)}
    resampled = dict(zip(known, bootstrap([*known.values()]), strict=True))
    differences = [difference(first, second, resampled) for first, second in combinations(arms, 2)]
    return Comparison(tuple(arms), tuple(differences), differing_protocol(arms))


def differing_protocol(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """The keys of data and training in which the arms differ → the value of each arm, None where it is not known."""
    recipes = [arm.runs[0].recipe | {"model": {}} for arm in arms]
    known = next((recipe for recipe in recipes if recipe["training"]), None)
    if known is None:
        recipes = [recipe | {"training": {}} for recipe in recipes]
    unknown = [number for number, recipe in enumerate(recipes) if recipe["training"] is None]
    for number in unknown:  # an unknown training must not count as a difference
        augment = {"augment": known["data"]["augment"]}
        recipes[number] |= {"training": known["training"], "data": recipes[number]["data"] | augment}
    protocol = differing_keys(recipes)
    protocol.pop("training.seed", None)
    for key, values in protocol.items():
        if key.startswith("training.") or key == "data.augment":
            protocol[key] = [None if number in unknown else value for number, value in enumerate(values)]
    return protocol


def load_tested(folder: Path) -> Tested:
    """Read a finished run or an evaluation.

    Raises:
        Refusal: when the folder holds neither, a score is missing, or a file is damaged or of another run.
    """
    results = load_results(folder, or_evaluation=True)
    scores = ["mean_iou", "mean_accuracy", "overall_accuracy", "boundary_iou.mean", "native.mean_iou"]
    validated = ["validation.mean_iou"] if results["validation"] else []
    for key in [*(f"test.{score}" for score in scores), *validated]:
        if look_up(results, key.split(".")) is None:
            what, remedy = f"{key} is null, so there is nothing to compare", "leave this run out"
            raise Refusal(folder / RESULTS, what, remedy, code="run-score")
    classes = len(results["data"]["class_names"])
    kept, samples, roc = (load_arrays(folder / name, classes) for name in (PER_IMAGE, SAMPLES, ROC))
    per_image = {PLACES[name]: matrices for name, matrices in (kept or {}).items()}
    for place, matrices in per_image.items():
        total, test = matrices.sum(axis=0), look_up(results, place)
        of_another = test.get("confusion_matrix", total.tolist()) != total.tolist()
        if of_another or not np.isclose(mean_iou(total), test["mean_iou"], rtol=0, atol=1e-9):
            what, remedy = f"does not belong to the run in {folder / RESULTS}", "train the run again"
            raise Refusal(folder / PER_IMAGE, what, remedy, code="run-files")
    return Tested(folder, results, per_image, samples, roc)


def check_comparable(runs: Sequence[Tested]) -> None:
    """Refuse fewer than two runs, and runs that were not tested on the same images and classes as the first one."""
    if len(runs) < 2:
        raise Refusal("compare", "name at least two runs", code="too-few-runs")
    for run in runs[1:]:
        for what, keys in {
            "fingerprint of the data": ("data", "fingerprint"),
            "number of test images": ("data", "counts", "test"),
            "classes": ("data", "class_names"),
        }.items():
            ours, theirs = (look_up(each.results, keys) for each in (runs[0], run))
            if ours != theirs:
                what = f"was not tested like {runs[0].folder} ({what}: {theirs} here, {ours} there)"
                raise Refusal(run.folder, f"{what}, so their scores cannot be compared", code="not-comparable")
        # the fingerprint is that of files, and classes.json says what the values in them mean
        ours, theirs = (each.per_image.get(NATIVE) for each in (runs[0], run))
        if ours is not None and theirs is not None and not np.array_equal(ours.sum(axis=2), theirs.sum(axis=2)):
            what = f"was not tested like {runs[0].folder}: masks, or their meaning in classes.json, were changed"
            raise Refusal(run.folder, f"{what}, so their scores cannot be compared", code="not-comparable")


def group(runs: Sequence[Tested]) -> list[Arm]:
    """Group runs whose recipes differ only in the seed into arms; the names of such runs differ at most in `-seedN`.

    Runs of the same name but with different inputs become separate arms, with the input in their names.
    """
    arms: dict[tuple[str, str], list[Tested]] = {}
    for run in runs:
        name, members = run.arm, arms.setdefault((run.arm, describe_input(run.recipe["data"])), [run])
        first = members[0]
        if run is first:
            continue
        differing = differing_keys([first.recipe, run.recipe])
        differing.pop("training.seed", None)
        if differing or run.seed in {other.seed for other in members}:
            both = "are evaluations of one model" if run.seed is None else f"have the seed {run.seed}"
            why = "; ".join(changed_keys(first.recipe, run.recipe)) if differing else f"both {both}"
            what = f"are both named {name}, but are not one recipe with two seeds ({why})"
            remedy = "test one of them again with `hf-seg evaluate RUN DATA --out OTHER_NAME`, and compare that folder"
            raise Refusal(f"{run.folder} and {first.folder}", what, remedy, code="not-seeds")
        members.append(run)
    place = NATIVE if len({shown for _, shown in arms}) > 1 else OF_INPUT
    times = Counter(name for name, _ in arms)
    return [
        Arm(name if times[name] == 1 else f"{name} {shown}", tuple(sorted(members, key=lambda run: run.seed)), place)
        for (name, shown), members in arms.items()
    ]


def difference(first: Arm, second: Arm, resampled: Mapping[str, np.ndarray]) -> Difference:
    """Build the [`Difference`] of two arms, with an interval if `resampled` has the [`bootstrap`] scores of both.

    Args:
        resampled: arm name → its bootstrap scores, of shape `(resamples,)`.
    """
    by_class, interval = {}, None
    for name in first.runs[0].results["data"]["class_names"]:
        keys = (*first.place, "per_category_iou", name)
        if None not in first.values(*keys) + second.values(*keys):
            by_class[name] = first.mean(*keys) - second.mean(*keys)
    if first.name in resampled and second.name in resampled:
        interval = percentile_interval(resampled[first.name] - resampled[second.name])
    mean = statistics.fmean(first.scores) - statistics.fmean(second.scores)
    return Difference(first, second, mean, interval, by_class)


def bootstrap(
    arms: Sequence[Sequence[np.ndarray]],
    *,
    statistic: Callable[[np.ndarray], np.ndarray] = mean_iou,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Scores on resampled test images; the paired percentile bootstrap takes differences of these.

    Each resample draws as many images as there are, with replacement, and uses the *same* images for all arms: an
    image that is hard for two arms then does not widen the interval of their difference.

    Args:
        arms: for each arm, the confusion matrices of its runs: integers of shape `(images, C, C)`, all of the same
            images in the same order.
        statistic: maps confusion matrices `(resamples, C, C)` to scores `(resamples,)`.

    Returns:
        `np.ndarray` of shape `(arms, resamples)`, float64: each arm's score, the mean over its runs.

    Raises:
        ValueError: when the matrices of the runs have different shapes.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    shapes = {matrices.shape for runs in arms for matrices in runs}
    if len(shapes) > 1:
        raise ValueError(f"per-image matrices of different shapes: {sorted(shapes)}")
    if not shapes:
        return np.empty((0, resamples))
    [(images, *_)] = shapes
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
    """The ends of the confidence interval: the central share `level`, in (0, 1), of the resampled differences."""
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(difference: Difference) -> str:
    """Describe in one sentence what a difference shows, and what it does not."""
    first, second = difference.first, difference.second
    points = f"{100 * difference.mean:.1f} points of mIoU"
    if difference.interval is None:
        why = "not all runs have per-image matrices, so there is no interval to judge this by"
        return f"{first.name} scores {points} above {second.name}; {why}."
    low, high = (100 * end for end in difference.interval)
    interval = f"95 % interval over test images: {low:+.1f} to {high:+.1f}"
    if low <= 0:
        said = f"{first.name} and {second.name} cannot be told apart on these test images: {points} ({interval})"
    else:
        said = f"{first.name} scores {points} above {second.name} on these test images ({interval})"
    ours, theirs = first.scores, second.scores
    if min(len(ours), len(theirs)) < 2:
        return f"{said}; with a single seed on a side, it is not known whether training again would show the same."
    overlap = min(ours) <= max(theirs)
    return f"{said}; the scores of their seeds {'overlap' if overlap else 'do not overlap'}."
