"""A launch: its options, all checks before the first step of the first run, and what happens when a run fails.

The last check is a trial: it builds what training will build, and takes one step on made-up pixels. The step has one
image if a batch of the training will have only one, else two. The trial leaves nothing behind.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_seg.data import DatasetSpec, SegData, load_data
from hf_seg.data.prepared import black_pairs
from hf_seg.data.transforms import build_transforms
from hf_seg.hub.client import Destination, destinations
from hf_seg.models.build import build_model, check_model, locate_encoder_weights
from hf_seg.models.normalization import resolve_normalize
from hf_seg.models.weight_files import hidden_bars
from hf_seg.problem import Problem, RecipeError, Refusal, disk_remedy, one_line
from hf_seg.processes import check_agreement, explain_lost_process, first_on_each_machine, on_main_process, say_once
from hf_seg.recipe import Recipe, load_recipes, over_seeds
from hf_seg.recipe.keys import ModelRecipe, TrainingRecipe
from hf_seg.runs.folder import Run, open_run
from hf_seg.text import say
from hf_seg.training.arguments import count_steps, pairs_per_epoch, per_device_batch_size, use_sync_batch_norm
from hf_seg.training.callbacks import Interrupted
from hf_seg.training.memory import peak_memory, reset_peak_memory
from hf_seg.training.setup import build_trainer, locate_encoder_run

LONG_STEP = 2.0  # seconds; a step that takes as long is measured only once

# -- the command line ------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str], prog: str | None) -> argparse.Namespace:
    """Parse the options of a launch; `overrides` is the list of the `--section.key value` pairs."""
    overrides, rest = [], []
    tokens = iter(argv)
    for token in tokens:
        if token.startswith("--") and "." in token.partition("=")[0]:
            overrides += [token] if "=" in token else [token, *itertools.islice(tokens, 1)]
        else:
            rest.append(token)
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train, score and save one model per recipe.",
        allow_abbrev=False,
        epilog="--section.key VALUE overrides a key in every named recipe. `hf-seg train` also has --num_processes N.",
    )
    add = parser.add_argument
    add("recipes", nargs="+", metavar="RECIPE", help="recipe file, or name of a shipped recipe such as quickstart-fcn")
    add("--output_dir", type=os.path.expanduser, default="runs", help="where run folders go (default: runs)")
    add("--overwrite", action="store_true", help="train the named runs again, and replace their folders")
    add("--mean_iou_script", type=_script, metavar="FILE.py", help="check the test score with this copy of mean_iou")
    add("--seeds", type=_seeds, metavar="0,1,2", help="run each recipe once per seed, as NAME-seed0 and so on")
    return parser.parse_args(rest, argparse.Namespace(overrides=overrides))


def _script(text: str) -> str:
    """Return the file of `--mean_iou_script`. `evaluate` would look on the Hub for a name that is not a file."""
    path = Path(text).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text} that ends in .py")
    return str(path)


def _seeds(text: str) -> list[int]:
    """Return the numbers of `--seeds` without duplicates."""
    numbers = list(dict.fromkeys(int(number) for number in text.split(",")))
    if not all(0 <= number < 2**32 for number in numbers):
        raise ValueError  # argparse says which option's value is invalid
    return numbers


def plan(options: argparse.Namespace) -> list[Run]:
    """Return the runs of a launch in training order; `--overwrite` applies to those named on the command line only."""
    recipes = load_recipes(options.recipes, options.overrides)
    named = {Path(path).stem for path in options.recipes}  # not those trained only for their encoder
    if options.seeds:
        recipes = over_seeds(recipes, named, options.seeds)
        named = {f"{name}-seed{seed}" for name in named for seed in options.seeds}
    recipes = resolve_normalize(recipes)
    runs = [Run(recipe, Path(options.output_dir, recipe.name), named=recipe.name in named) for recipe in recipes]
    for run in runs:
        run.overwrite, run.mean_iou_script = options.overwrite and run.named, options.mean_iou_script
    return runs


# -- before the first step -------------------------------------------------------------------------------------------


def check(runs: list[Run]) -> dict[str, Destination]:
    """Check, before the first step of the first run, that no run of the launch would fail; and set `state`,
    `without_gradient` and `steps` of the runs.

    Returns:
        `dict[str, Destination]`: where on the Hub runs are pushed, by run name; empty except in the main process.

    Raises:
        LaunchRefusal: on every rank, with all problems of all runs.
    """
    found: list[tuple[str, Refusal]] = []
    for run in runs:
        with _collected(found, run.recipe.name):
            open_run(run)
    to_train = [run for run in runs if run.state in ("new", "interrupted")]
    models = {run.recipe.name: run.recipe.model for run in to_train}  # other encoders are there
    where: dict[str, Destination] = {}
    with _collected(found):
        replaced = {run.recipe.name for run in to_train if run.overwrite}
        where = on_main_process(lambda: destinations([run.recipe for run in to_train], replaced)) or {}
    tried: dict[str, list[str]] = {}
    for run in to_train:
        recipe = run.recipe
        with _collected(found, recipe.name):
            prepare = partial(_prepare, run, models.get(recipe.encoder_recipe))
            data = first_on_each_machine(prepare, f"{recipe.name}: data and weights")
            check_agreement(recipe.name, data.fingerprint)
            same = repr((replace(recipe.training, seed=0), recipe.model, recipe.data))
            if same not in tried:  # runs that differ in their seed only share a trial
                tried[same] = try_out(recipe, data.spec, data.counts)
            run.without_gradient = tried[same]
            run.steps = count_steps(recipe.training, data.counts["train"])
    if found := gather_object(found):  # from all ranks, so that none waits for a rank that has stopped
        raise LaunchRefusal(found)
    return where


@contextmanager
def _collected(found: list[tuple[str, Refusal]], name: str = "") -> Iterator[None]:
    """Record a refusal with the name of its run instead of raising it, so that the other checks run, too."""
    try:
        yield
    except Refusal as error:
        found.append((name, error))


class LaunchRefusal(Refusal):
    """Several refusals. Each is shown after the names of its runs; the same text from several ranks or runs is shown
    once."""

    def __init__(self, refusals: list[tuple[str, Refusal]]):
        self.refusals = refusals
        super().__init__(problems=[problem for _, refusal in refusals for problem in refusal.problems])

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, refusal in self.refusals:
            names.setdefault(str(refusal), []).append(name)
        lines = []
        for text, runs in names.items():
            here = ", ".join(filter(None, dict.fromkeys(runs)))
            lines.append(text if not here or text.startswith(f"{here}: ") else f"{here}: {text}")
        return "\n".join(lines)


def _prepare(run: Run, encoder_model: ModelRecipe | None) -> SegData:
    """Fetch and check what a run starts from: its initial weights and its data, which are then in the cache."""
    if encoder_model:
        check_model(run.recipe.model, encoder_model, run.recipe.data.size)
    else:
        locate_encoder_weights(locate_encoder_run(run), run.recipe.data.size)
    return load_data(run.recipe.data)


# -- the trial -------------------------------------------------------------------------------------------------------


def try_out(recipe: Recipe, spec: DatasetSpec, counts: Mapping[str, int]) -> list[str]:
    """Build what training will build, and take one step. Every rank does so on its own and waits for no other rank.

    Args:
        recipe ([`Recipe`]): takes random weights, since the run that gives its own may not be trained yet.
        counts (`Mapping[str, int]`): the number of pairs of `"train"` and `"validation"`.

    Returns:
        `list[str]`: trainable parameters that got no gradient: no step will change them.

    Raises:
        RecipeError: with all problems that were found, each with its key and the remedy.
    """
    problems = []
    with _trial(recipe, spec, counts) as made_up:
        attempt = partial(_attempt, **made_up)
        while isinstance(result := attempt(recipe), Exception):
            if isinstance(result, Refusal):  # it names the key at fault itself
                problems += result.problems
                break
            # a key is at fault if there is no error, or another one, without it
            error = one_line(result)
            keys = [key for key in _chosen(recipe.training) if one_line(attempt(_without(recipe, [key]))) != error]
            where = ", ".join(f"training.{key}" for key in keys) or "training"
            remedy = "correct it, or leave it out" if keys else f"choose a model other than {recipe.model.path}"
            problems.append(Problem(code="trial-step", place=where, what=error, remedy=remedy))
            if not keys:
                break
            recipe = _without(recipe, keys)
    if problems:
        raise RecipeError(problems=problems)
    return result


def estimate(recipe: Recipe, spec: DatasetSpec, counts: Mapping[str, int]) -> tuple[float, float | None]:
    """Measure a step to estimate a run's time and memory in this process. Call `try_out` first to refuse what fails.

    Returns:
        `tuple[float, float | None]`: seconds per epoch, without validation; and megabytes as [`peak_memory`] counts.

    Raises:
        Refusal: when a batch does not fit into memory.
    """
    with _trial(recipe, spec, counts) as made_up:
        trainer = build_trainer(Run(_drawn(recipe), made_up["folder"]), made_up["data"], made_up["model"])
        batches, device, seconds = len(trainer.get_train_dataloader()), trainer.args.device, []
        trainer.create_optimizer()
        reset_peak_memory(device)
        while len(seconds) < 2 and sum(seconds) < LONG_STEP:  # the first step takes longer than the others
            start = time.perf_counter()
            trainer.try_step(trainer.args.per_device_train_batch_size)
            trainer.optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return min(seconds) * batches, peak_memory(device)


@contextmanager
def _trial(recipe: Recipe, spec: DatasetSpec, counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield black `data` that takes no memory, a `model` with random weights, and a temporary `folder`. Afterwards the
    settings of the process are as before."""
    transforms = build_transforms(recipe.data, spec)
    prepared = {name: black_pairs(counts[name], transforms[name].prepared_size) for name in ("train", "validation")}
    data = SegData(spec=spec, splits={}, transforms=transforms, prepared=prepared)
    model, _ = build_model(_drawn(recipe).model, spec, recipe.data.size)
    try:
        with _unchanged_process(), tempfile.TemporaryDirectory() as folder:
            yield {"data": data, "model": model, "folder": Path(folder)}
    finally:
        model.to("meta")  # frees its memory even if something still refers to it
        torch.cuda.empty_cache()


def _drawn(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, init="scratch", encoder_weights=None))


def _attempt(recipe: Recipe, data: SegData, model: PreTrainedModel, folder: Path) -> list[str] | Exception:
    try:
        return _step(recipe, data, model, folder)
    except Exception as error:  # whatever type the libraries raise, it is about this recipe
        return error


def _step(recipe: Recipe, data: SegData, model: PreTrainedModel, folder: Path) -> list[str]:
    training, ranks, pairs = recipe.training, PartialState().num_processes, len(data.prepared["train"])
    images = smallest_batch(training, pairs, ranks)
    if use_sync_batch_norm(training, ranks, PartialState().device):
        images = max(images, 2)  # its statistics are over the images of all ranks
    # the pixels of made-up masks give no balanced weights
    weights = None if training.class_weights == "balanced" else training.class_weights
    alone = replace(_drawn(recipe), training=replace(training, sync_batch_norm=False, class_weights=weights))
    trainer = build_trainer(Run(alone, folder), data, model)
    if not pairs_per_epoch(training, pairs):
        raise RecipeError(
            "training.dataloader_drop_last",
            f"{pairs} train pairs do not fill a batch of {training.global_train_batch_size}, so every epoch is empty",
            "set it to false, or reduce training.global_train_batch_size",
        )
    trainer.get_eval_dataloader()
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    trainer.create_optimizer_and_scheduler(steps)
    if images > 1:
        return trainer.try_step(2)  # more images would take longer and show nothing else
    try:
        return trainer.try_step(1)
    except Refusal:
        raise
    except Exception as error:
        trainer.try_step(2)  # raises when the single image is not the cause
        raise _explain_single_image(training, pairs, ranks, error) from error


def smallest_batch(training: TrainingRecipe, pairs: int, ranks: int) -> int:
    """Return the fewest images that a process gets at a time. With one process, these are the images left over for the
    last batch, if any. With several processes, accelerate fills the last batch up."""
    batch = per_device_batch_size(training, ranks)
    if ranks > 1 or training.arguments.get("dataloader_drop_last"):
        return batch
    return pairs % batch or batch


def _explain_single_image(training: TrainingRecipe, pairs: int, ranks: int, error: Exception) -> RecipeError:
    batch, parts = training.global_train_batch_size, ranks * training.gradient_accumulation_steps
    others = (replace(training, global_train_batch_size=other) for other in range(parts, 2 * (batch + parts), parts))
    good = [other.global_train_batch_size for other in others if smallest_batch(other, pairs, ranks) > 1]
    nearest = sorted(sorted(good, key=lambda other: abs(other - batch))[:3])
    remedy = f"set it to {', '.join(map(str, nearest))} or the like" if nearest else "add train pairs"
    if batch > parts:
        where = f"of {pairs} train pairs in batches of {batch // parts}, the last batch has one image"
        remedy += ", or training.dataloader_drop_last to true" if pairs > batch else ""
    else:
        where = "the model is trained on one image at a time"
    what = f"{where}, but the model needs at least two ({one_line(error).rstrip('.')})"
    return RecipeError("training.global_train_batch_size", what, remedy)


def _chosen(training: TrainingRecipe) -> list[str]:
    """Return the keys that differ from their defaults, except those of the batch, which depend on each other."""
    default, batch = TrainingRecipe(), ("global_train_batch_size", "gradient_accumulation_steps")
    own = [key for key in vars(default) if key not in ("arguments", *batch)]
    return [*(key for key in own if getattr(training, key) != getattr(default, key)), *training.arguments]


def _without(recipe: Recipe, keys: Collection[str]) -> Recipe:
    own = {key: value for key, value in vars(TrainingRecipe()).items() if key in keys}
    rest = {key: value for key, value in recipe.training.arguments.items() if key not in keys}
    return replace(recipe, training=replace(recipe.training, **own, arguments=rest))


# -- run after run ---------------------------------------------------------------------------------------------------


def run_all(runs: list[Run], train: Callable[[Run], dict[str, Any]]) -> tuple[list[dict[str, Any]], set[str]]:
    """Train the runs one after the other. Returns their results, and the names of those that failed.

    After a failure, the runs that do not need the failed one are still trained. With several processes the first
    failure ends the launch, since the other ranks would wait for the rank that failed.
    """
    results: list[dict[str, Any]] = []
    failed: set[str] = set()
    for run in runs:
        name, encoder = run.recipe.name, run.recipe.encoder_recipe
        if encoder in failed:
            say_once(f"error: {name}: not trained, because {encoder} failed", sys.stderr)
            failed.add(name)
            continue
        try:
            with _unchanged_process():
                results.append(train(run))
        except Exception as error:
            if PartialState().num_processes > 1 or isinstance(error, Interrupted):
                # main() prints the main process's refusal
                if isinstance(error, Refusal) and not PartialState().is_main_process:
                    say(f"error: process {PartialState().process_index}: {error}", sys.stderr, keep="\n")
                raise
            known, remedy = explain_lost_process(error), disk_remedy(error)
            known = f"{one_line(error)}. {remedy} Then launch again." if remedy else known
            if not known and not isinstance(error, Refusal):
                say(traceback.format_exc(), sys.stderr, keep="\n")
            say_once(f"error: {name}: {known or error}", sys.stderr, keep="\n")
            failed.add(name)
    return results, failed


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Undo what `TrainingArguments` and `Trainer` set for the process: environment, device, precision, log level. Hide
    transformers' progress bars in the block."""
    environment, state = dict(os.environ), dict(PartialState._shared_state)
    verbosity, precision, cudnn = logging.get_verbosity(), torch.backends.fp32_precision, torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        with hidden_bars():
            yield
    finally:
        AcceleratorState._reset_state()
        _restore(PartialState._shared_state, state)
        _restore(os.environ, environment)
        logging.set_verbosity(verbosity)
        torch.backends.fp32_precision = precision
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        cudnn.deterministic, cudnn.benchmark = flags


def _restore(current: MutableMapping, before: Mapping) -> None:
    """Make `current` equal to `before` without emptying it in between: uploads read it from another thread."""
    for key in [*current]:
        if key not in before:
            del current[key]
    current.update({key: value for key, value in before.items() if current.get(key) != value})
