"""Reliable checkpoints: each contains the checksums of its files, and a damaged one is skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_seg.files import write_json
from hf_seg.models.weight_files import hidden_bars, sha256
from hf_seg.problem import Refusal
from hf_seg.processes import say_once

CHECKSUMS = "checksums.json"


class SealCheckpoints(TrainerCallback):
    """Writes [`CHECKSUMS`] into each checkpoint as its last file, and removes the oldest. It also tells a resumed
    training where the best checkpoint is, since Trainer's saved path is wrong after the run's folder was moved."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.best_global_step:
            best = checkpoint_folder(args.output_dir, state.best_global_step)
            if damage := find_damage(best):
                remedy = "put it back, or pass --overwrite to train the run again"
                raise Refusal(best, f"the best checkpoint so far is damaged: {damage}", remedy, code="checkpoint")
            state.best_model_checkpoint = str(best)

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # until each rank has written its random state
        if state.is_world_process_zero:
            seal(checkpoint_folder(args.output_dir, state.global_step))
            # by steps, not as Trainer by times of files, which a clock that was set back has mixed up
            rotate_checkpoints(args.output_dir, args.save_total_limit, state.best_model_checkpoint)


def checkpoint_folder(run_dir: str | Path, step: int) -> Path:
    """The folder of the checkpoint after that many steps, as `Trainer` names it."""
    return Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def check_disk(run_dir: Path, model: PreTrainedModel, kept: int, averaged: bool = False) -> None:
    """Refuse to train when the disk has too little space for `kept` checkpoints; `averaged` ones are larger."""
    # AdamW with AMSGrad keeps three values per trainable parameter; a new checkpoint is written before one is deleted
    trainable = 4 * model.num_parameters(only_trainable=True)
    needed = (kept + 1) * ((1 + averaged) * model.get_memory_footprint() + 3 * trainable)
    # checkpoints of an interrupted run count as free space, since they will be replaced
    left = sum(path.stat().st_size for path in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/*") if path.is_file())
    free = shutil.disk_usage(run_dir).free + left
    if free < needed:
        what = f"checkpoints need up to {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free"
        raise Refusal(run_dir, what, "free disk space, or choose another --output_dir", code="disk")


@contextmanager
def writing(run_dir: Path, step: int) -> Iterator[Path]:
    """Yield the folder of a checkpoint to the code that writes it; remove the folder when it cannot be written.

    Raises:
        Refusal: when it cannot be written; the message names the free space and where training will continue from.
    """
    folder = checkpoint_folder(run_dir, step)
    (folder / CHECKSUMS).unlink(missing_ok=True)  # of a damaged checkpoint that is overwritten now
    try:
        yield folder
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save raises a plain RuntimeError for a file that cannot be written; these words identify it
        own = ("StreamWriter", "inline_container")
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in own):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        last, free = last_checkpoint(run_dir), shutil.disk_usage(run_dir).free
        reason = f"{str(error).splitlines()[0]}; {free / 1e6:,.0f} MB are free without it"
        remedy = f"free disk space and launch again: training continues from {last or 'the beginning'}"
        raise Refusal(folder, f"the checkpoint cannot be written ({reason})", remedy, code="disk") from error


def seal(folder: Path) -> None:
    """Write the size and the SHA-256 of each file of a checkpoint; they reveal damage by disks and crashes."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    write_json({path.name: [path.stat().st_size, sha256(path)] for path in files}, folder / CHECKSUMS)


def find_damage(folder: Path) -> str | None:
    """Describe what is wrong with a checkpoint, or return None.

    A run that is killed just before it writes [`CHECKSUMS`] leaves a checkpoint without them. It is complete when it
    has a `trainer_state.json`, which Trainer writes last.
    """
    name = "trainer_state.json"
    try:
        step = json.loads((folder / name).read_text())["global_step"]
        if f"{PREFIX_CHECKPOINT_DIR}-{step}" != folder.name:
            return f"{name} is from step {step}"
        if not (folder / CHECKSUMS).exists():
            return None
        name = CHECKSUMS
        for file, (size, digest) in json.loads((folder / name).read_text()).items():
            path = folder / file
            if not path.is_file():
                return f"{file} is missing"
            if path.stat().st_size != size:
                return f"{file} has {path.stat().st_size:,} bytes instead of {size:,}"
            if sha256(path) != digest:
                return f"{file} has changed since it was written"
    except FileNotFoundError:
        return "incomplete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{name} cannot be read: {error}"
    return None


def last_checkpoint(run_dir: Path) -> str | None:
    """Return the newest undamaged checkpoint of a run, or None; print why each newer one is ignored."""
    folders = {path.name.rpartition("-")[2]: path for path in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    for step in sorted(filter(str.isdecimal, folders), key=int, reverse=True):
        damage = find_damage(folders[step])
        if damage is None:
            return str(folders[step])
        say_once(f"{folders[step]}: {damage}; the checkpoint is ignored")
    return None


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """Load a saved model's weights into a model of the same class and configuration.

    Raises:
        Refusal: when its model type or number of classes differs, or its tensors are not exactly those of the model.
    """
    saved_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for key in ("model_type", "num_labels"):
        theirs, ours = getattr(saved_config, key), getattr(model.config, key)
        if theirs != ours:
            what = f"is a checkpoint with {key} {theirs!r}, but the recipe's model has {ours!r}"
            remedy = "delete that folder, or pass --overwrite to train the run again"
            raise Refusal(folder, what, remedy, code="checkpoint")
    with hidden_bars():
        saved, report = type(model).from_pretrained(folder, output_loading_info=True)
    wrong = "; ".join(f"{kind}: {sorted(map(str, names))}" for kind, names in report.items() if names)
    if wrong:
        remedy = "delete that folder and launch again"
        raise Refusal(folder, f"its weights are incomplete ({wrong})", remedy, code="checkpoint")
    model.load_state_dict(saved.state_dict())
