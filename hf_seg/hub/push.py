"""Pushing a run to the Hub: its checkpoints during training, the finished run, and later a run not pushed before."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, suppress_progress_bars

from hf_seg.files import check_writable, parse_json, write_json
from hf_seg.hub.client import HUB_KEYS, Destination, check_free, create, full_name, upload
from hf_seg.problem import HubError
from hf_seg.recipe import Recipe
from hf_seg.runs.card import build_card, without_private_parts
from hf_seg.runs.folder import CARD, HUB, MODEL_CODE, PLOTS, PROCESSOR, WEIGHTS, load_run
from hf_seg.runs.record import RESULTS, find_fault, load_results, object_of

# Only files named here, in `model_files` and in `stage_run` are pushed; other files in a run's folder are not.
# These and RANDOM_STATE belong to a checkpoint, with the strategies "checkpoint" and "all_checkpoints". The pickled
# training arguments are not pushed.
STATE_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "raw_weights.pt")  # scaler.pt: of fp16
STATE = "trainer_state.json"  # without its private parts: it names the best checkpoint's path on this machine
RANDOM_STATE = re.compile(r"rng_state(_\d+)?\.pth")  # one for each rank
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
RECIPE = "recipe.json"  # the file that holds the recipe on the Hub


def stage(source: Path, target: Path, names: Iterable[str]) -> None:
    """Hard-link the named files that exist from `source` into `target`, or copy them where linking fails.

    They remain available for the upload while training goes on and deletes old checkpoints.

    Raises:
        HubError: when a file, or its folder below `source`, is a symbolic link, which may point anywhere.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = source / name
        for part in (path, *path.parents[: len(Path(name).parts) - 1]):
            if part.is_symlink():
                raise HubError(part, "is a link, and links are not pushed", "replace it with the file itself")
        if path.is_file():
            (target / name).parent.mkdir(exist_ok=True)
            try:
                os.link(path, target / name)
            except OSError:
                shutil.copyfile(path, target / name)


def model_files(folder: Path) -> list[str]:
    """Names of the files that `save_pretrained` of a model and its image processor writes.

    Raises:
        HubError: when the index of sharded weights cannot be read or names other files.
    """
    shards: set[str] = set()
    index = folder / WEIGHTS[1]
    if index.is_file():
        try:
            shards = {*parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()}
            strange = [name for name in shards if not SHARD.fullmatch(name)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(index, f"cannot be read ({error})", "train the run again") from None
        if strange:
            raise HubError(index, f"names {strange[0]}, which is not part of a model", "train the run again")
    return ["config.json", PROCESSOR, *WEIGHTS, *MODEL_CODE, *sorted(shards)]


def stage_run(run_dir: Path, target: Path, where: Destination) -> None:
    """Write all published files of a finished run to `target`: model, image processor, code, recipe, results, plots
    and card. Sample images are left out unless the data set's terms allow to publish them."""
    results = load_results(run_dir)
    _stage_model(run_dir, target, run_dir, results, where)
    write_json(without_private_parts(results), target / RESULTS)
    may_show = results["data"]["publish_images"]
    stage(run_dir, target, [path for name, path in PLOTS.items() if may_show or name != "samples"])


def _stage_model(source: Path, target: Path, run_dir: Path, record: dict[str, Any], where: Destination) -> None:
    """Write what is published from the first checkpoint on: model, image processor, code, recipe and card."""
    stage(source, target, model_files(source))
    write_json(without_private_parts(load_run(run_dir)["recipe"]), target / RECIPE)
    card = build_card(record, repo_id=where.repo_id, revision=where.revision)
    (target / CARD).write_text(str(card), encoding="utf-8")


def push_run(
    run_dir: Path, *, repo: str | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """Upload a finished run, as `hf-seg push` does, and return the URL of the commit.

    Args:
        repo: `owner/name` or a name; by default the repository that the run was pushed to before, else the one that
            its recipe names, else the run's name.
        private, revision: as in [`Destination`].

    Raises:
        Refusal: when the run is not finished, its record cannot be read, or the push fails.
    """
    training = load_results(run_dir)["recipe"]["training"]
    check_writable(run_dir, f"make it writable, or push a copy of it: a push records its destination there, in {HUB}")
    asked = {key: training.get(f"hub_{name}") for key, name in HUB_KEYS.items()} | _earlier(run_dir)
    if repo:  # then revision and privacy of the recipe or an earlier push do not apply
        asked = {"repo_id": repo}
    where = Destination(
        repo_id=full_name(asked.get("repo_id") or run_dir.resolve().name, "--repo"),
        revision=revision or asked.get("revision"),
        private=private or asked.get("private"),
    )
    remedy = "name another with --repo or --revision, or delete it"
    check_free(where, load_run(run_dir)["recipe"], remedy)
    create(where)
    return upload_run(run_dir, where)


def upload_run(run_dir: Path, where: Destination) -> str:
    """Stage and upload a finished run, note the result in `hub.json`, and return the URL of the commit."""
    note(run_dir, where)
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=".push-") as folder:
        stage_run(run_dir, Path(folder), where)
        url = upload(Path(folder), where, f"{run_dir.resolve().name}: finished run")
    note(run_dir, where, url)
    return url


def note(run_dir: Path, where: Destination, commit: str | None = None) -> None:
    """Write `hub.json`: the destination and the URL of the commit with the finished run, None until there is one."""
    write_json(asdict(where) | {"commit": commit}, run_dir / HUB)


def _earlier(run_dir: Path) -> dict[str, Any]:
    path = run_dir / HUB
    try:
        noted = parse_json(path.read_text(encoding="utf-8"))
        fault = find_fault(noted, object_of(repo_id=str, commit=str | None))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        fault = str(error)
    if fault:
        raise HubError(path, f"cannot be read ({fault})", "delete it and pass --repo")
    return noted


def is_unpushed(run_dir: Path, wanted: bool = False) -> bool:
    """Whether a finished run is to be pushed: its `hub.json` has no commit, or it has none and is `wanted` on the
    Hub."""
    noted = _earlier(run_dir)
    return noted["commit"] is None if noted else wanted


class Uploads:
    """The uploads of a launch: they run in the background during training, one after the other.

    As a context manager it waits for pending uploads at the end. When the launch fails, it waits for the current one
    only and drops the others.

    Args:
        where: destinations by run name, from [`destinations`]; empty in all processes but the main one.
        say: prints a message.
    """

    def __init__(self, where: dict[str, Destination], say: Callable[[str], None]):
        self.where, self.say = where, say
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub")
        self.unpushed: list[Path] = []

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.pool.shutdown(wait=True, cancel_futures=kind is not None)

    def begin(self, recipe: Recipe, run_dir: Path, record: dict[str, Any]) -> list[TrainerCallback]:
        """Create a run's repository and return the callback that pushes its checkpoints; none if it is not pushed.

        Args:
            record: the part of `results.json` that is known before training, for the card.
        """
        if recipe.name not in self.where:
            return []
        for left_over in run_dir.glob(".push-*"):  # left by a launch that was killed
            shutil.rmtree(left_over)
        create(self.where[recipe.name])
        note(run_dir, self.where[recipe.name])
        return [_PushCheckpoints(self, run_dir, self.where[recipe.name], recipe, record)]

    def finish(self, run_dir: Path) -> None:
        """Push a finished run after its pending checkpoints."""
        if run_dir.name in self.where:
            self.pool.submit(self._push_run, run_dir)

    def push(self, folder: Path, where: Destination, run: str, message: str) -> None:
        """Upload a staged folder of a run in training, then delete it. A failed upload does not stop training."""
        try:
            with suppress_progress_bars():
                upload(folder, where, f"Training in progress, {message}")
        except HubError as error:
            self.say(f"{run}: {message} was not pushed ({error}); training continues")
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next launch removes the rest

    def _push_run(self, run_dir: Path) -> None:
        try:
            with suppress_progress_bars():
                self.say(f"{run_dir.name}: pushed, {upload_run(run_dir, self.where[run_dir.name])}")
        except Exception as error:  # an error in this thread would go unnoticed; the run itself is finished
            self.unpushed.append(run_dir)
            remedy = f"push it with `hf-seg push {run_dir}`"
            self.say(f"{run_dir.name}: finished in {run_dir}, but not pushed ({error}); {remedy}")


class _PushCheckpoints(TrainerCallback):
    """Pass each checkpoint to [`Uploads`] as soon as it is written."""

    def __init__(self, uploads: Uploads, run_dir: Path, where: Destination, recipe: Recipe, record: dict[str, Any]):
        self.uploads, self.run_dir, self.where, self.record = uploads, run_dir, where, record
        self.strategy = recipe.training.arguments.get("hub_strategy", "every_save")
        self.always = recipe.training.arguments.get("hub_always_push", False)
        self.running: Future | None = None

    def on_save(self, args, state, control, **kwargs):
        busy = self.running is not None and not self.running.done()
        if self.strategy == "end" or (busy and not self.always):
            return
        message = f"epoch {state.epoch:g}"
        try:
            folder = self._stage(state)
        except Exception as error:  # such as a full disk, which must not stop training here
            self.uploads.say(f"{self.run_dir.name}: {message} was not pushed ({error}); training continues")
            return
        self.running = self.uploads.pool.submit(self.uploads.push, folder, self.where, self.run_dir.name, message)

    def _stage(self, state: TrainerState) -> Path:
        """Create a folder with the files of the newest checkpoint that are pushed, and return it."""
        checkpoint = self.run_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        folder = Path(tempfile.mkdtemp(dir=self.run_dir, prefix=".push-"))
        scores = [entry for entry in state.log_history if "eval_mean_iou" in entry][-1:]
        validation = {key.removeprefix("eval_"): value for entry in scores for key, value in entry.items()}
        progress = {"train": {"epochs": state.epoch, "steps": state.global_step}, "validation": validation}
        _stage_model(checkpoint, folder, self.run_dir, self.record | progress, self.where)
        if self.strategy != "every_save":
            name = "last-checkpoint" if self.strategy == "checkpoint" else checkpoint.name
            states = [path.name for path in checkpoint.iterdir() if RANDOM_STATE.fullmatch(path.name)]
            stage(checkpoint, folder / name, [*model_files(checkpoint), *STATE_FILES, *states])
            own = parse_json((checkpoint / STATE).read_text(encoding="utf-8"))
            write_json(without_private_parts(own), folder / name / STATE)
        return folder
