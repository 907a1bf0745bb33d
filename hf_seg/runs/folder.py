"""Run folders: which folder is a run, how far the run got and on what data, and which of its files may be removed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import DatasetDict
from filelock import FileLock, Timeout

from hf_seg.data import fingerprint
from hf_seg.data.gather import gather
from hf_seg.problem import DataError, RecipeError
from hf_seg.processes import check_shared, on_main_process
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe
from hf_seg.recipe.reading import RUN_FORMAT, parse_json
from hf_seg.runs.record import FORMAT, PER_IMAGE, RESULTS, ROC, SAMPLES, changed_keys, find_fault, write_json

# What a run writes into its folder. Nothing else is ever removed from it, so a writer takes its name from here.
RECORD = "run.json"  # written first, removed last: a folder with it is a run
HUB = "hub.json"
CARD = "README.md"
PLOTS = {name: f"plots/{name}.png" for name in ("curves", "confusion", "roc", "samples")}
FCN_CODE = ("configuration_fcn.py", "modeling_fcn.py")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSOR = "preprocessor_config.json"
_NAMES = (RECORD, RESULTS, HUB, CARD, PER_IMAGE, ROC, SAMPLES, *PLOTS.values(), *FCN_CODE, *WEIGHTS, PROCESSOR)
_FILES = re.compile(
    "|".join(
        [
            f"({'|'.join(map(re.escape, (*_NAMES, 'config.json')))})(\\.partial)?",
            r"training_args\.bin",
            r"model-\d+-of-\d+\.safetensors",
            r"model\.onnx",  # where `hf-seg export` puts it
            r"runs/([^/]+/){1,2}events\.out\.tfevents\.[^/]+",  # TensorBoard's
        ]
    )
)
_FOLDERS = re.compile(r"plots|runs(/[^/]+){0,2}")
_TREES = re.compile(r"checkpoint-\d+|\.push-[a-z0-9_]{8}")  # whole: Trainer removes old checkpoints so, too
SHOWN = 10  # files that a message names

_NEEDED = {"recipe": {"model": dict, "data": dict, "training": dict}, "data": (dict, type(None))}
_NEEDED_OF_SPLITS = {"*": {"pairs": int, "fingerprint": str}}


def open_run(recipe: Recipe, run_dir: Path, overwrite: bool = False) -> str:
    """Find out what a run folder holds, and refuse one that belongs to something else.

    Args:
        recipe ([`Recipe`]): the effective recipe of this launch.
        run_dir (`Path`): `<output_dir>/<recipe name>`, which may not exist yet.
        overwrite (`bool`): the user wants this run trained again.

    Returns:
        `str`: `"new"` (nothing is there, or only what may be removed), `"interrupted"` (made by the same recipe on the
        same data, no results yet) or `"finished"`.

    Raises:
        RecipeError: when the folder holds another recipe's run, a run on other data, or something that is not a run;
            with `overwrite` when it holds anything that a run does not write.
    """
    try:
        return _open(recipe, run_dir, overwrite)
    except OSError as error:
        raise RecipeError(f"{run_dir}: cannot be read ({error}); choose another --output_dir") from error


def _open(recipe: Recipe, run_dir: Path, overwrite: bool) -> str:
    replaced = _replaced(run_dir)
    if os.path.lexists(replaced):
        _check_removable(replaced, recipe)
    if not os.path.lexists(run_dir):
        return "new"
    if not run_dir.is_dir():
        raise RecipeError(f"{run_dir}: is a file, and a run needs a folder of this name; move the file away")
    # a launch that was killed while it wrote the record leaves the partial file and nothing else
    if all(path.name == f"{RECORD}.partial" for path in run_dir.iterdir()):
        return "new"
    record = load_run(run_dir, any_format=overwrite)
    if overwrite:
        _check_removable(run_dir, recipe)
        return "new"
    finished = (run_dir / RESULTS).exists()
    changed = changed_keys(recipe.to_dict(), record["recipe"])
    refusal = (
        f"{run_dir}: holds a run of another recipe ({'; '.join(changed)}); give the recipe file another name, "
        "choose another --output_dir, or pass --overwrite to replace that run"
    )
    if not changed:
        now = describe_data(recipe.data, may_load=not finished)
        changed = _changed_splits(record["data"], now)
        refusal = (
            f"{run_dir}: holds a run on other data than there is now ({'; '.join(changed)}); put the data back as it "
            "was, choose another --output_dir, or pass --overwrite to replace that run"
        )
    if not changed:
        return "finished" if finished else "interrupted"
    if finished or any(_TREES.fullmatch(path.name) for path in run_dir.iterdir()) or _strangers(run_dir):
        raise RecipeError(refusal)
    return "new"  # nothing was trained that could be lost


def load_run(run_dir: Path, any_format: bool = False) -> dict[str, Any]:
    """A run's `run.json`: `recipe`, and of its `data` what [`describe_data`] said when the run began.

    Raises:
        RecipeError: when there is none, or it is damaged or of another version of hf_seg.
    """
    path = run_dir / RECORD
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"{run_dir}: holds no {RECORD}, so it is not a run of hf_seg; name a run's folder, or, to train in "
            "a folder of this name, move this one away"
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); move the folder away") from None
    fault = find_fault(record, {RUN_FORMAT: int})
    if fault is None and record[RUN_FORMAT] != FORMAT:
        if any_format:
            return record
        raise RecipeError(
            f"{path}: is of another version of hf_seg (format {record[RUN_FORMAT]}, and this version has {FORMAT}); "
            "choose another --output_dir, or pass --overwrite to replace that run"
        )
    fault = fault or find_fault(record, _NEEDED) or find_fault(record["data"] or {}, _NEEDED_OF_SPLITS, "data")
    if fault:
        raise RecipeError(f"{path}: is not the record of a run ({fault}); move the folder away")
    return record


def describe_data(data: DataRecipe, may_load: bool = True) -> dict[str, Any] | None:
    """Name the pairs of each split, as they are listed: nothing is decoded or written.

    Args:
        data (`DataRecipe`): the recipe's data section.
        may_load (`bool`): whether a data set on the Hub may be loaded.

    Returns:
        `dict`: split → `pairs`, their number, and `fingerprint`; one split, `pairs`, where it is not known which pair
        belongs to which. Empty for generated data, which follows from the recipe. None when the data is not here.
    """
    if data.name.startswith("synthetic_"):
        return {}
    if data.name == "hub" and not may_load and not Path(data.path).expanduser().exists():
        return None
    try:
        gathered = gather(data)
    except (DataError, OSError):
        return None
    if gathered.splits is None:
        return None
    return {
        name: {"pairs": len(split), "fingerprint": fingerprint(DatasetDict({name: split}))}
        for name, split in gathered.splits.items()
    }


def _changed_splits(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """What tells two answers of [`describe_data`] apart, in words; nothing where one is not known."""
    if not then or not now:
        return []
    changed = []
    if then.keys() != now.keys():  # as when split.json names pairs that are gone
        then, now = ({"all splits": {"pairs": sum(s["pairs"] for s in d.values())}} for d in (then, now))
        changed = ["the pairs of split.json are not those of the folder"]
    for name, before in then.items():
        after = now[name]
        more = after["pairs"] - before["pairs"]
        if more:
            counts = f"{after['pairs']:,} instead of {before['pairs']:,}"
            changed.append(f"{name}: {abs(more):,} pairs {'more' if more > 0 else 'fewer'}, {counts}")
        elif before != after:
            changed.append(f"{name}: {after['pairs']:,} pairs as before, but others, by name or size")
    return changed


@contextmanager
def hold_runs(recipes: list[Recipe], output_dir: Path, overwrite: set[str]) -> Iterator[None]:
    """Keep other launches out of the folders of the runs that this one works on, until the block ends.

    The operating system lets go of the locks when their holder dies.

    Raises:
        RecipeError: on every rank, when another launch is at work in one of them, nothing can be written there, or
            the ranks do not share the folder.
    """
    with ExitStack() as locks:

        def lock() -> None:
            for recipe in recipes:
                run_dir = output_dir / recipe.name
                if recipe.name not in overwrite and (run_dir / RESULTS).exists():
                    continue  # a finished run is only read
                try:
                    output_dir.mkdir(parents=True, exist_ok=True)
                    locks.enter_context(FileLock(output_dir / f".{recipe.name}.lock", timeout=0))
                except Timeout:
                    raise RecipeError(
                        f"{run_dir}: another launch is at work in it; wait until it ends, stop it, or choose another "
                        "--output_dir"
                    ) from None
                except OSError as error:
                    raise RecipeError(
                        f"{output_dir}: nothing can be written there ({error.strerror}); choose another --output_dir"
                    ) from error

        on_main_process(lock)
        if PartialState().num_processes > 1:
            check_shared(output_dir)
        yield


def start_run(recipe: Recipe, run_dir: Path, state: str) -> None:
    """Make the run folder with its record in it; what a new run finds there of another run is cleared away first.

    Every rank calls this; the main process does it, between two barriers: none may still be looking at the old run.

    Args:
        recipe ([`Recipe`]): the effective recipe of this launch.
        run_dir (`Path`): the run's folder.
        state (`str`): what [`open_run`] has said of it.

    Raises:
        RecipeError: on every rank, when what is there is not only a run's.
    """

    def start() -> None:
        replaced = _replaced(run_dir)
        if os.path.lexists(replaced):  # of a launch that was killed while it removed it
            _remove(replaced, recipe)
        if state == "new" and (run_dir / RECORD).exists():
            _check_removable(run_dir, recipe)
            os.replace(run_dir, replaced)  # all at once: half a run would pass for an interrupted one
            _remove(replaced, recipe)
        run_dir.mkdir(parents=True, exist_ok=True)
        record = {RUN_FORMAT: FORMAT, "recipe": recipe.to_dict(), "data": describe_data(recipe.data)}
        write_json(record, run_dir / RECORD)

    PartialState().wait_for_everyone()
    on_main_process(start)


def _replaced(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.replaced")


def _check_removable(run_dir: Path, recipe: Recipe) -> None:
    """Refuse to remove a folder that is, or holds, anything but a run."""
    if run_dir.is_symlink():
        raise RecipeError(f"{run_dir}: is a link, and what it leads to is not removed; remove the link yourself")
    for key, path in _inputs(recipe).items():
        if Path(os.path.realpath(run_dir)) in (path, *path.parents):
            raise RecipeError(
                f"{run_dir}: is not removed, since {key} of {recipe.name}, {path}, is in it; choose another "
                "--output_dir, or give the recipe file another name"
            )
    strangers = _strangers(run_dir)
    if strangers:
        shown = ", ".join(strangers[:SHOWN]) + (f" and {len(strangers) - SHOWN:,} more" if strangers[SHOWN:] else "")
        raise RecipeError(
            f"{run_dir}: is not removed, since it holds what no run writes: {shown}; move that away, or choose "
            "another --output_dir"
        )
    if any(run_dir.iterdir()):
        load_run(run_dir, any_format=True)


def _inputs(recipe: Recipe) -> dict[str, Path]:
    """Files and folders that a run reads, without links."""
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
    """Files, folders and links in a folder that no run writes, by their names below it."""
    found = []
    for name, path in _contents(run_dir):
        known = [_FOLDERS, _TREES] if path.is_dir() else [_FILES]
        if path.is_symlink() or not any(names.fullmatch(name) for names in known):
            found.append(name)
    return found


def _contents(folder: Path, above: str = "") -> Iterator[tuple[str, Path]]:
    """All that is in a folder: what is in a run's folders, then these; other folders and links are not entered."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == RECORD, path.name)):
        name = above + path.name
        if _FOLDERS.fullmatch(name) and path.is_dir() and not path.is_symlink():
            yield from _contents(path, f"{name}/")
        yield name, path


def _remove(run_dir: Path, recipe: Recipe) -> None:
    """Remove a run's files, by name, its record last: whatever is left of it is still known as a run."""
    _check_removable(run_dir, recipe)
    for name, path in _contents(run_dir):
        if _TREES.fullmatch(name):
            shutil.rmtree(path)
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    run_dir.rmdir()
