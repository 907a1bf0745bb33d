"""Checkpoints that can be relied on: each has the checksums of its files, and a damaged one is passed over."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_seg.problem import Refusal
from hf_seg.processes import say_once
from hf_seg.runs.record import write_json

CHECKSUMS = "checksums.json"
CHUNK = 1 << 20


class SealCheckpoints(TrainerCallback):
    """Writes [`CHECKSUMS`] into each checkpoint, as the last of its files."""

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each rank has written its random state
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def check_disk(run_dir: Path, model: PreTrainedModel, kept: int) -> None:
    """Refuse to train where the checkpoints of which `kept` are kept will not fit.

    Raises:
        Refusal: when less is free than they take.
    """
    # AdamW with AMSGrad keeps three values for each trainable parameter; one more is written before one is deleted
    trainable = 4 * model.num_parameters(only_trainable=True)
    needed = (kept + 1) * (model.get_memory_footprint() + 3 * trainable)
    # what an interrupted run has left counts as free: it is written over
    left = sum(path.stat().st_size for path in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/*") if path.is_file())
    free = shutil.disk_usage(run_dir).free + left
    if free < needed:
        what = f"checkpoints take up to {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free"
        raise Refusal(run_dir, what, "free disk space, or choose another --output_dir", code="disk")


def seal(folder: Path) -> None:
    """Write the size and the CRC-32 of each file of a checkpoint.

    A CRC finds what disks and crashes do to a file. It is no protection against people.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    write_json({path.name: [path.stat().st_size, _crc(path)] for path in files}, folder / CHECKSUMS)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None.

    A checkpoint without [`CHECKSUMS`], of an older version or of a run that was killed in that moment, is whole when
    it has a `trainer_state.json`, which Trainer writes last.
    """
    try:
        state = json.loads((folder / "trainer_state.json").read_text())
        if f"{PREFIX_CHECKPOINT_DIR}-{state['global_step']}" != folder.name:
            return f"trainer_state.json is of step {state['global_step']}"
    except FileNotFoundError:
        return "incomplete"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"trainer_state.json cannot be read: {error}"
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        for name, (size, crc) in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes and not {size:,}"
            if _crc(path) != crc:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    return None


def last_checkpoint(run_dir: Path) -> str | None:
    """The newest checkpoint of a run that is whole; says of each newer one why it is left aside."""
    folders = sorted(run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step, reverse=True)
    for folder in folders:
        damage = find_damage(folder)
        if damage is None:
            return str(folder)
        say_once(f"{folder}: {damage}; the checkpoint is left aside")
    return None


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            crc = zlib.crc32(block, crc)
    return crc


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """Load a saved model's weights into a model of the same class and configuration, every tensor of them.

    Raises:
        Refusal: when the folder holds another architecture or class count, or a tensor is missing or left over.
    """
    saved_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for key in ("model_type", "num_labels"):
        theirs, ours = getattr(saved_config, key), getattr(model.config, key)
        if theirs != ours:
            what = f"is a checkpoint with {key} {theirs!r}, but the recipe's model has {ours!r}"
            remedy = "delete that folder, or pass --overwrite to train the run again"
            raise Refusal(folder, what, remedy, code="checkpoint")
    saved, report = type(model).from_pretrained(folder, output_loading_info=True)
    wrong = "; ".join(f"{kind}: {sorted(map(str, names))}" for kind, names in report.items() if names)
    if wrong:
        remedy = "delete that folder and start again"
        raise Refusal(folder, f"its weights are not whole ({wrong})", remedy, code="checkpoint")
    model.load_state_dict(saved.state_dict())
