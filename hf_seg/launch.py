"""A launch: its options, and all that is checked before the first step of the first run.

The last check is a trial: what training will build is built, and one step is taken of the fewest images that a batch
will have, on made-up pixels. It leaves nothing behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_seg.data import DatasetSpec, fingerprint
from hf_seg.data.cache import CachedPairs
from hf_seg.data.seg_data import SegData, load_data
from hf_seg.data.transforms import build_transforms
from hf_seg.hub.client import Destination, destinations
from hf_seg.models.build import build_model, check_model, locate_encoder_weights
from hf_seg.problem import Problem, RecipeError, Refusal
from hf_seg.processes import check_agreement, first_on_each_machine, on_main_process
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import ModelRecipe, TrainingRecipe
from hf_seg.runs.folder import open_run
from hf_seg.training.arguments import per_device_batch_size, use_sync_batch_norm
from hf_seg.training.trainer import SegTrainer


@dataclass(kw_only=True)
class Checked:
    """What [`check`] found out of the runs that are to be trained.

    Args:
        destinations (`dict[str, Destination]`): where on the Hub those go that are to be pushed; empty but in the main
            process.
        without_gradient (`dict[str, list[str]]`): the parameters of each model that no step will change.
    """

    destinations: dict[str, Destination] = field(default_factory=dict)
    without_gradient: dict[str, list[str]] = field(default_factory=dict)


def check(recipes: list[Recipe], output_dir: Path, overwrite: set[str]) -> Checked:
    """Refuse, before the first step of the first run, what any run of the launch would stumble over.

    Raises:
        RecipeError: on every rank, with all problems of all recipes.
    """
    checked, problems = Checked(), {}
    models = {recipe.name: recipe.model for recipe in recipes}
    states = {}
    for recipe in recipes:
        with _collected(problems, recipe.name):
            states[recipe.name] = open_run(recipe, output_dir / recipe.name, recipe.name in overwrite)
    recipes = [recipe for recipe in recipes if states.get(recipe.name) != "finished"]
    with _collected(problems, ""):
        checked.destinations = on_main_process(lambda: destinations(recipes, overwrite)) or {}
    tried: dict[str, list[str] | Exception] = {}
    for recipe in recipes:
        with _collected(problems, recipe.name):
            encoder_model = models[recipe.encoder_recipe] if recipe.encoder_recipe else None
            data = first_on_each_machine(partial(prepare, recipe, encoder_model), f"{recipe.name}: data and weights")
            check_agreement(recipe.name, fingerprint(data.splits))
            same = repr((replace(recipe.training, seed=0), recipe.model, recipe.data))
            if same not in tried:  # over seeds, for one
                counts = {name: len(split) for name, split in data.splits.items()}
                try:
                    tried[same] = try_out(recipe, data.spec, counts)
                except Refusal as error:
                    tried[same] = error
            if isinstance(tried[same], Exception):
                raise tried[same]
            checked.without_gradient[recipe.name] = tried[same]
    _raise_together(problems)
    return checked


@contextmanager
def _collected(problems: dict[str, list[str]], name: str) -> Iterator[None]:
    """Note a refusal (message → the runs that it is of) instead of raising it: the others are to be found, too."""
    try:
        yield
    except Refusal as error:
        problems.setdefault(str(error), []).append(name)


def _raise_together(problems: dict[str, list[str]]) -> None:
    """Raise the problems of all ranks on each of them: none is to wait for another that has stopped."""
    together: dict[str, list[str]] = {}
    for part in gather_object([problems]):
        for message, names in part.items():
            together[message] = list(dict.fromkeys([*together.get(message, []), *names]))
    lines = []
    for message, names in together.items():
        first, *rest = message.splitlines()
        here = ", ".join(filter(None, names))
        lines += [f"{here}: {first}" if here and not first.startswith(f"{here}: ") else first, *rest]
    if lines:
        raise RecipeError(problems=[Problem(code="launch", place=line, what="") for line in lines])


def prepare(recipe: Recipe, encoder_model: ModelRecipe | None) -> SegData:
    """Fetch and check what a run starts from: its initial weights and its data, which are then in the cache."""
    if encoder_model:
        check_model(recipe.model, encoder_model, recipe.data.image_size)
    else:
        locate_encoder_weights(recipe.model, recipe.data.image_size)
    return load_data(recipe.data)


# -- the trial -------------------------------------------------------------------------------------------------------


def try_out(recipe: Recipe, spec: DatasetSpec, counts: Mapping[str, int]) -> list[str]:
    """Build what training will build, and take one step. Every rank does so by itself, and none waits for another.

    Args:
        recipe ([`Recipe`]): its weights are drawn: the run that they come from may not be trained yet.
        spec ([`DatasetSpec`]): of its data.
        counts (`Mapping[str, int]`): the number of pairs of `"train"` and `"validation"`.

    Returns:
        `list[str]`: trainable parameters that got no gradient: no step will change them.

    Raises:
        RecipeError: with all problems that were found, each with its key and the remedy.
    """
    transforms = build_transforms(recipe.data, spec)
    data = SegData(
        spec=spec,
        splits={},
        transforms=transforms,
        prepared={name: _blank(counts[name], transforms[name].prepared_size) for name in ("train", "validation")},
    )
    training, problems = recipe.training, []
    fresh = replace(recipe.model, init="scratch", encoder_weights=None)
    model, _ = build_model(fresh, spec, recipe.data.image_size)
    with _unchanged_process(), tempfile.TemporaryDirectory() as folder:

        def attempt(training: TrainingRecipe) -> list[str] | Exception:
            try:
                return _step(replace(recipe, training=training), data, model, Path(folder))
            except Exception as error:  # whatever the libraries raise, it is about this recipe
                return error

        while isinstance(result := attempt(training), Exception):
            if isinstance(result, RecipeError):  # says itself which key it is about
                problems += result.problems
                break
            # at fault are the keys without which there is no error, or another one
            others = {key: attempt(without) for key, without in _without_each_key(training)}
            keys = [
                key for key, other in others.items() if not isinstance(other, Exception) or _say(other) != _say(result)
            ]
            where = ", ".join(f"training.{key}" for key in keys) or "training"
            remedy = "correct it, or leave it out" if keys else f"choose another model than {recipe.model.path}"
            problems.append(Problem(code="trial-step", place=where, what=_say(result), remedy=remedy))
            if not keys:
                break
            for key in keys:
                training = dict(_without_each_key(training))[key]
    model.to("meta")  # whoever holds it still, its memory is given back
    torch.cuda.empty_cache()
    if problems:
        raise RecipeError(problems=problems)
    return result


def _step(recipe: Recipe, data: SegData, model: PreTrainedModel, folder: Path) -> list[str]:
    training, ranks, pairs = recipe.training, PartialState().num_processes, len(data.prepared["train"])
    images = smallest_batch(training, pairs, ranks)
    if use_sync_batch_norm(training, ranks, PartialState().device):
        images = max(images, 2)  # its statistics are those of all ranks
    alone = replace(recipe, training=replace(training, sync_batch_norm=False))
    trainer = SegTrainer(recipe=alone, run_dir=folder, model=model, data=data)
    batches = trainer.get_train_dataloader()
    trainer.get_eval_dataloader()
    if not len(batches):
        raise RecipeError(
            f"training.dataloader_drop_last: {pairs} train pairs do not fill one batch of "
            f"{training.global_train_batch_size}, so every epoch is empty; set it to false, or "
            "training.global_train_batch_size to fewer"
        )
    *_, steps = trainer.set_initial_training_values(trainer.args, batches)
    trainer.create_optimizer_and_scheduler(steps)
    if images > 1:
        return trainer.try_step(2)  # more would take longer and show nothing else
    try:
        return trainer.try_step(1)
    except RecipeError:
        raise
    except Exception as error:
        trainer.try_step(2)  # raises when the one image is not the cause
        raise RecipeError(_explain_single_image(training, pairs, ranks, error)) from error


def smallest_batch(training: TrainingRecipe, pairs: int, ranks: int) -> int:
    """The fewest images that a process gets at a time: those that one process has left over, while several share."""
    batch = per_device_batch_size(training, ranks)
    if ranks > 1 or training.arguments.get("dataloader_drop_last"):
        return batch
    return pairs % batch or batch


def _explain_single_image(training: TrainingRecipe, pairs: int, ranks: int, error: Exception) -> str:
    batch, parts = training.global_train_batch_size, ranks * training.gradient_accumulation_steps
    others = (replace(training, global_train_batch_size=other) for other in range(parts, 2 * (batch + parts), parts))
    good = [other.global_train_batch_size for other in others if smallest_batch(other, pairs, ranks) > 1]
    nearest = sorted(sorted(good, key=lambda other: abs(other - batch))[:3])
    remedy = f"set it to {', '.join(map(str, nearest))} or the like" if nearest else "it takes more train pairs"
    if batch > parts:
        where = f"of {pairs} train pairs in batches of {batch // parts}, the last has one image"
        remedy += ", or training.dataloader_drop_last to true" if pairs > batch // parts else ""
    else:
        where = "one image is trained on at a time"
    return (
        f"training.global_train_batch_size: {where}, and the model takes no fewer than two ({_say(error)}); {remedy}"
    )


def _without_each_key(training: TrainingRecipe) -> Iterator[tuple[str, TrainingRecipe]]:
    """Each key that differs from its default, and the section without it."""
    default, batch = TrainingRecipe(), ("global_train_batch_size", "gradient_accumulation_steps")  # which go together
    for own in dataclasses.fields(training):
        if own.name not in ("arguments", *batch) and getattr(training, own.name) != getattr(default, own.name):
            yield own.name, replace(training, **{own.name: getattr(default, own.name)})
    for key in training.arguments:
        rest = {other: value for other, value in training.arguments.items() if other != key}
        yield key, replace(training, arguments=rest)


def _say(result: object) -> str:
    return " ".join(str(result).split()).rstrip(".") or type(result).__name__


def _blank(count: int, size: int) -> CachedPairs:
    """Black pairs that take no memory."""
    nothing = np.zeros((1, 1, 1, 1), np.uint8)
    return CachedPairs(
        np.broadcast_to(nothing, (count, 3, size, size)), np.broadcast_to(nothing[0], (count, size, size))
    )


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Undo what `TrainingArguments` and `Trainer` set for the process: device, precision, determinism, log level."""
    environment, state = dict(os.environ), dict(PartialState._shared_state)
    verbosity, precision, cudnn = logging.get_verbosity(), torch.backends.fp32_precision, torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._shared_state.update(state)
        logging.set_verbosity(verbosity)
        torch.backends.fp32_precision = precision
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        cudnn.deterministic, cudnn.benchmark = flags


# -- the command line ------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str], description: str) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our options and the `--section.key value` overrides."""
    overrides, rest = [], []
    tokens = iter(argv)
    for token in tokens:
        if token.startswith("--") and "." in token.partition("=")[0]:
            overrides += [token] if "=" in token else [token, *itertools.islice(tokens, 1)]
        else:
            rest.append(token)
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        epilog="--section.key VALUE overrides a key of every recipe named.",
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE.json")
    parser.add_argument("--output_dir", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    parser.add_argument("--overwrite", action="store_true", help="replace finished or differing runs")
    parser.add_argument(
        "--mean_iou_script",
        type=script,
        metavar="FILE.py",
        help="run this copy of evaluate's mean_iou to check the test score with",
    )
    parser.add_argument(
        "--seeds", type=seeds, metavar="0,1,2", help="run each recipe once a seed, as NAME-seed0 and so on"
    )
    return parser.parse_args(rest), overrides


def script(text: str) -> str:
    """The file of `--mean_iou_script`; `evaluate` would look on the Hub for a name that is no file."""
    path = Path(text).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text} that ends in .py")
    return str(path)


def seeds(text: str) -> list[int]:
    """The numbers of `--seeds`, each once."""
    numbers = list(dict.fromkeys(int(number) for number in text.split(",")))
    if not all(0 <= number < 2**32 for number in numbers):
        raise ValueError  # argparse says which option's value is invalid
    return numbers
