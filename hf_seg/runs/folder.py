"""A run and its folder: its state and data, the lock against other launches, and which of its files may be removed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from filelock import FileLock, Timeout

from hf_seg.data import fingerprint, list_data
from hf_seg.files import PARTIAL, write_json
from hf_seg.problem import Refusal, first
from hf_seg.processes import check_shared, on_main_process
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe
from hf_seg.recipe.reading import RUN_FORMAT
from hf_seg.runs.record import (
    CARD,
    ERRORS,
    FORMAT,
    PER_IMAGE,
    PLOTS,
    RESULTS,
    ROC,
    SAMPLES,
    Text,
    changed_keys,
    load_record,
    object_of,
)

# Names of what a run writes into its folder. Nothing else is ever removed, so code that writes takes its names here.
RECORD = "run.json"  # written first, removed last: a folder with it is a run
HUB = "hub.json"
MODEL_CODE = ("configuration_fcn.py", "modeling_fcn.py", "configuration_smp.py", "modeling_smp.py")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSOR = "preprocessor_config.json"
_NAMES = (RECORD, RESULTS, HUB, CARD, PER_IMAGE, ROC, SAMPLES, *PLOTS.values(), *MODEL_CODE, *WEIGHTS, PROCESSOR)
_PATTERNS = [
    *map(re.escape, (*_NAMES, "config.json", "training_args.bin", ERRORS)),  # the last is written by `hf-seg errors`
    r"model(-int8)?\.(onnx|xml|bin)",  # written by `hf-seg export`
    r"model-\d+-of-\d+\.safetensors",
    r"runs/([^/]+/){1,2}events\.out\.tfevents\.[^/]+",  # TensorBoard's
    rf"(plots/)?{PARTIAL.pattern}",
]
_FILES = re.compile("|".join(_PATTERNS))
_FOLDERS = re.compile(r"plots|runs(/[^/]+){0,2}")
_TREES = re.compile(r"checkpoint-\d+|\.push-[a-z0-9_]{8}")  # removed as a whole, as Trainer removes old checkpoints
SHOWN = 10  # the most files that a message names
_refusal = partial(Refusal, code="run")

_NEEDED = object_of(
    recipe=object_of(model=dict, data=dict, training=dict),
    data=dict[Text, object_of(pairs=int, fingerprint=Text)] | None,
)


@dataclass
class Run:
    """A recipe, the folder of its run, and what the checks of a launch have found about both."""

    recipe: Recipe  # with the overrides of this launch
    folder: Path  # `<output_dir>/<recipe name>`, which may not exist yet
    overwrite: bool = False  # the user wants the run trained again
    mean_iou_script: str | None = None  # path of a local copy of `mean_iou`, to check the test score with
    named: bool = True  # named on the command line; if not, another run needs its encoder
    # what the folder holds: nothing, or only what may be removed ("new"); a run of the same recipe and data without
    # results ("interrupted"), or with results ("finished")
    state: Literal["new", "interrupted", "finished"] | None = None
    compared: bool = True  # whether the data of the existing run was compared with the present data
    without_gradient: list[str] | None = None  # the model's parameters that no step changes; None: not known
    steps: int | None = None  # of the whole training; None: not known


def format_plan(runs: list[Run]) -> str:
    """Describe what a launch will do: its runs in their order, and which of them train an encoder for others."""
    lines = [f"{len(runs)} runs, in this order:"] if len(runs) > 1 else []
    for run in runs:
        name, state = run.recipe.name, "to resume" if run.state == "interrupted" else run.state
        if state == "finished":
            state += f", in {run.folder} (--overwrite trains it again)"
            state += "" if run.compared else "; its data was not compared, since it is not in a local folder"
        lines.append(f"{name}: {state}" + (f", {run.steps:,} step{'s' * (run.steps > 1)}" if run.steps else ""))
        if users := [other.recipe.name for other in runs if other.recipe.encoder_recipe == name]:
            known = run.named or run.state == "finished"
            how = "" if known else "; it is trained in full, and overrides do not apply to it"
            lines.append(f"  for the encoder of {', '.join(users)}{how}")
    return "\n".join(lines)


def open_run(run: Run) -> str:
    """Find out what a run's folder holds; set and return `run.state`.

    Raises:
        Refusal: when the folder holds another recipe's run, a run on other data, or something that is not a run; with
            `overwrite` when it holds anything that a run does not write.
    """
    try:
        run.state = _open(run)
    except OSError as error:
        raise _refusal(run.folder, f"cannot be read ({error})", "choose another --output_dir") from error
    return run.state


def _open(run: Run) -> Literal["new", "interrupted", "finished"]:
    folder, recipe, replaced = run.folder, run.recipe, _replaced(run.folder)
    if os.path.lexists(replaced):
        _check_removable(replaced, recipe)
    if not os.path.lexists(folder):
        return "new"
    if not folder.is_dir():
        raise _refusal(folder, "is a file, but a run needs a folder with this name", "move the file away")
    # a launch that was killed while it wrote the record leaves the partial file and nothing else
    if all(PARTIAL.fullmatch(path.name) for path in folder.iterdir()):
        return "new"
    record = load_run(folder, any_format=run.overwrite)
    if run.overwrite:
        _check_removable(folder, recipe)
        return "new"
    finished = (folder / RESULTS).exists()
    changed = changed_keys(recipe.to_dict(), record["recipe"])
    what, remedy = "a run of a different recipe", "give the recipe file another name"
    if not changed:
        now = describe_data(recipe.data, may_load=not finished)
        run.compared = now is not None
        changed = _changed_splits(record["data"], now)
        what, remedy = "a run on data that has changed since", "restore the data"
    if not changed:
        return "finished" if finished else "interrupted"
    if finished or any(_TREES.fullmatch(path.name) for path in folder.iterdir()) or _strangers(folder):
        remedy += ", choose another --output_dir, or pass --overwrite to replace that run"
        raise _refusal(folder, f"holds {what} ({'; '.join(changed)})", remedy)
    return "new"  # nothing was trained that could be lost


def load_run(folder: Path, any_format: bool = False) -> dict[str, Any]:
    """Load a run's `run.json`: its `recipe`, and as `data` the result of [`describe_data`] when the run began.

    Raises:
        Refusal: when there is none, or it is damaged, or (unless `any_format`) from another version of hf_seg.
    """
    remedy = "name a run's folder, or move this one away to train in a folder with this name"
    missing = "it is not a run of hf_seg", remedy
    other = None if any_format else "choose another --output_dir, or pass --overwrite to replace that run"
    return load_record(folder / RECORD, RUN_FORMAT, _NEEDED, "a run", "move the folder away", missing, other)


def describe_data(data: DataRecipe, may_load: bool = True) -> dict[str, Any] | None:
    """Return the number of `pairs` and the `fingerprint` of each split, from the list of pairs. Nothing is decoded or
    written; a data set on the Hub is loaded only if `may_load`.

    Returns:
        `dict`: by split; a single split `pairs` where it is not known which pair belongs to which split. Empty for
        generated data, which depends only on the recipe. None when the data is not on this machine.
    """
    if data.name.startswith("synthetic_"):
        return {}
    if data.name == "hub" and not may_load and not Path(data.path).expanduser().exists():
        return None
    splits = list_data(data).splits
    return splits and {
        name: {"pairs": len(split), "fingerprint": fingerprint({name: split})} for name, split in splits.items()
    }


def _changed_splits(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """Describe how two results of [`describe_data`] differ; return no differences where one is not known."""
    if not then or not now:
        return []
    changed = []
    if then.keys() != now.keys():  # as when split.json names pairs that are gone
        then, now = ({"all splits": {"pairs": sum(s["pairs"] for s in d.values())}} for d in (then, now))
        changed = ["the pairs in split.json are not those in the folder"]
    for name, before in then.items():
        after = now[name]
        if more := after["pairs"] - before["pairs"]:
            counts = f"{after['pairs']:,} instead of {before['pairs']:,}"
            changed.append(f"{name}: {abs(more):,} pairs {'more' if more > 0 else 'fewer'}, {counts}")
        elif before != after:
            changed.append(f"{name}: {after['pairs']:,} pairs as before, but different ones, by name or size")
    return changed


@contextmanager
def hold_runs(runs: list[Run]) -> Iterator[None]:
    """Keep other launches out of the folders of these runs until the block ends, or this process does.

    Raises:
        Refusal: on every rank, when another launch is using one of them, nothing can be written there, or the ranks
            do not share the folder.
    """
    with ExitStack() as stack:

        def lock() -> None:
            for run in runs:
                if not run.overwrite and (run.folder / RESULTS).exists():
                    continue  # a finished run is only read
                file = run.folder.with_name(f".{run.folder.name}.lock")
                try:
                    for folder in reversed(file.parents):
                        if not folder.exists():
                            folder.mkdir(exist_ok=True)
                            stack.callback(_remove_empty, folder)
                    new = not file.exists()
                    stack.enter_context(FileLock(file, timeout=0))
                except Timeout:
                    remedy = "wait until it ends, stop it, or choose another --output_dir"
                    raise _refusal(run.folder, "another launch is using it", remedy) from None
                except OSError as error:
                    what = f"nothing can be written there ({error.strerror})"
                    raise _refusal(file.parent, what, "choose another --output_dir") from error
                if new:  # safe, since filelock retries when a file disappears before it is locked
                    stack.callback(file.unlink, missing_ok=True)

        on_main_process(lock)
        if PartialState().num_processes > 1:
            check_shared(runs[0].folder.parent)
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def start_run(run: Run) -> None:
    """Create a run's folder with its record. A new run first removes an old run that is in the folder.

    Every rank calls this. Only the main process acts, between two barriers, so that no rank still reads the old run.

    Raises:
        Refusal: on every rank, when the folder holds something that no run writes.
    """

    def start() -> None:
        replaced = _replaced(run.folder)
        if os.path.lexists(replaced):  # left by a launch that was killed while it removed the run
            _remove(replaced, run.recipe)
        if run.state == "new" and (run.folder / RECORD).exists():
            _check_removable(run.folder, run.recipe)
            os.replace(run.folder, replaced)  # in one step: half a run would look like an interrupted one
            _remove(replaced, run.recipe)
        run.folder.mkdir(parents=True, exist_ok=True)
        for _, path in _contents(run.folder):
            if PARTIAL.fullmatch(path.name) and path.is_file():  # left by a launch that was killed while it wrote
                path.unlink()
        record = {RUN_FORMAT: FORMAT, "recipe": run.recipe.to_dict(), "data": describe_data(run.recipe.data)}
        write_json(record, run.folder / RECORD)

    PartialState().wait_for_everyone()
    on_main_process(start)


def _replaced(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.replaced")


def _check_removable(folder: Path, recipe: Recipe) -> None:
    """Refuse to remove a folder that is a link or not a run, or holds an input of the recipe or what no run writes."""
    if folder.is_symlink():
        raise _refusal(folder, "is a link, and what it points to is not removed", "remove the link yourself")
    for key, path in _inputs(recipe).items():
        if Path(os.path.realpath(folder)) in (path, *path.parents):
            what = f"is not removed, since it contains {key} of {recipe.name}, {path}"
            raise _refusal(folder, what, "choose another --output_dir, or give the recipe file another name")
    if strangers := _strangers(folder):
        what = f"is not removed, since it holds something that no run writes: {first(strangers, SHOWN)}"
        raise _refusal(folder, what, "move it away, or choose another --output_dir")
    if any(folder.iterdir()):
        load_run(folder, any_format=True)


def _inputs(recipe: Recipe) -> dict[str, Path]:
    """Map keys of a recipe to the existing files and folders that its run reads, with links resolved."""
    named = {
        "the file": str(recipe.path),
        "data.root": recipe.data.root or os.environ.get("HF_SEG_DATA"),
        "data.path": recipe.data.path,
        "model.path": recipe.model.path,
        "model.encoder_weights": recipe.model.encoder_weights,
    }
    paths = {key: os.path.expanduser(path) for key, path in named.items() if path}
    return {key: Path(os.path.realpath(path)) for key, path in paths.items() if os.path.exists(path)}


def _strangers(run_dir: Path) -> list[str]:
    """List the files, folders and links in a folder that no run writes, by their names relative to it."""
    found = []
    for name, path in _contents(run_dir):
        known = [_FOLDERS, _TREES] if path.is_dir() else [_FILES]
        if path.is_symlink() or not any(names.fullmatch(name) for names in known):
            found.append(name)
    return found


def _contents(folder: Path, above: str = "") -> Iterator[tuple[str, Path]]:
    """Yield everything in a folder: relative name and path. A run's subfolders come after their content; other folders
    and links are not entered. The record comes last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == RECORD, path.name)):
        name = above + path.name
        if _FOLDERS.fullmatch(name) and path.is_dir() and not path.is_symlink():
            yield from _contents(path, f"{name}/")
        yield name, path


def _remove(run_dir: Path, recipe: Recipe) -> None:
    """Remove a run's files by name, its record last, so that a partly removed run is still recognised as a run."""
    _check_removable(run_dir, recipe)
    for name, path in _contents(run_dir):
        if _TREES.fullmatch(name):
            shutil.rmtree(path)
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    run_dir.rmdir()
