"""What a training prints: a line at its start, a table with one row per epoch and, on a terminal, a progress bar."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_seg.processes import say_once
from hf_seg.runs.card import describe_model
from hf_seg.training.memory import peak_memory

if TYPE_CHECKING:
    from hf_seg.training.trainer import SegTrainer

WORST = "worst two, IoU in %"
# name → width in characters; 79 in all, with the spaces between them
COLUMNS = {"epoch": 5, "train": 6, "valid": 6, "mIoU": 6, WORST: 26, "lr": 6, "img/s": 5, "GB": 4, "left": 7}
EVALUATIONS = {"eval": None, "validation": "best", "test": "test"}  # prefix of the logged keys → name of the row


class TrainingTable(TrainerCallback):
    """Prints the progress in place of transformers' own callbacks; what trackers get does not change.

    `train` and `valid` are losses. `img/s` is the speed without evaluation, `GB` the peak memory so far, and `left`
    the time to the end of training at the speed of this launch. The last rows are the scores of the best checkpoint.
    """

    def __init__(self, trainer: SegTrainer):
        self.trainer = trainer
        self.bar, self.training = None, False
        self.row: dict[str, str] = {}  # the cells of the next row that are known so far

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        trainer, device, spec = self.trainer, args.device, self.trainer.data.spec
        recipe, size = trainer.run.recipe, model.num_parameters() / 1e6
        kind = describe_model(vars(recipe.model), type(model).__name__)
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        ranks = f"{args.world_size} × " if args.world_size > 1 else ""
        say_once(
            f"{kind}, {size:.1f} M parameters; {spec.title or spec.name}, {len(trainer.train_dataset):,} pairs; "
            f"{ranks}{hardware}, {trainer.precision}; batches of {recipe.training.global_train_batch_size}"
        )
        if (warmup := args.get_warmup_steps(state.max_steps)) > state.max_steps:
            say_once(f"the warm-up of {warmup:,} steps is longer than this training of {state.max_steps:,}")
        patience = recipe.training.early_stopping_patience
        validations = math.ceil(state.num_train_epochs / recipe.training.eval_every_epochs)
        if patience is not None and patience >= validations:  # the first one is always the best so far
            count = "one validation" if validations == 1 else f"{validations} validations"
            say_once(f"early_stopping_patience {patience} never stops a training of {count}")
        self._print({name: name for name in COLUMNS})
        self.begin = time.perf_counter(), state.global_step
        self._open_bar(args, state.max_steps, state.global_step)
        self.training = True

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.pace = time.perf_counter(), state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs, **kwargs):
        # losses are cut to six characters
        found = [prefix for prefix in EVALUATIONS if f"{prefix}_loss" in logs]
        if "loss" in logs:
            images = (state.global_step - self.pace[1]) * self.trainer.run.recipe.training.global_train_batch_size
            images = min(images, len(self.trainer.train_dataset))  # the last batch of an epoch may be smaller
            pace = images / (time.perf_counter() - self.pace[0])
            self.pace = time.perf_counter(), state.global_step
            self.row = {"train": f"{logs['loss']:.4f}"[:6], "lr": f"{logs['learning_rate']:.1e}".replace("e-0", "e-")}
            self.row["img/s"] = f"{pace:.{pace < 100:d}f}"
            if control.should_evaluate:  # its scores go into the same row
                return
        for prefix in found:
            loss, mean_iou = logs[f"{prefix}_loss"], logs[f"{prefix}_mean_iou"]
            worst = _worst(self.trainer.scores["per_category_iou"])
            self.row |= {"valid": f"{loss:.4f}"[:6], "mIoU": f"{mean_iou:.4f}", WORST: worst}
        if not found and not self.row:  # Trainer's final summary
            return
        name = EVALUATIONS[found[0]] if found else None
        if name is None and (done := state.global_step - self.begin[1]):
            left = int((time.perf_counter() - self.begin[0]) / done * (state.max_steps - state.global_step))
            self.row["left"] = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        if memory := peak_memory(args.device):
            self.row["GB"] = f"{memory / 1000:.1f}"
        self._print(self.row | {"epoch": name or f"{state.epoch:.4g}"})
        self.row = {}

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.bar is None:  # an evaluation after training
            self._open_bar(args, len(eval_dataloader))
            self.training = False
        if self.training:
            self.bar.set_postfix_str("evaluation")
        else:
            self.bar.update()

    def on_evaluate(self, args, state, control, **kwargs):
        if self.training:
            self.bar.set_postfix_str("")
        else:
            self.close()

    def _open_bar(self, args, total: int, initial: int = 0) -> None:
        off = True if args.disable_tqdm or not PartialState().is_local_main_process else None  # None: on terminals
        self.bar = tqdm(total=total, initial=initial, disable=off, leave=False, dynamic_ncols=True)

    def close(self) -> None:
        """Remove the progress bar, so that the next line does not begin behind it."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def _print(self, row: dict[str, Any]) -> None:
        with tqdm.external_write_mode():
            cells = (f"{row.get(name, ''):{'<' if name == WORST else '>'}{width}}" for name, width in COLUMNS.items())
            say_once(" ".join(cells).rstrip())


def _worst(iou: dict[str, float]) -> str:
    """The two classes with the lowest IoU, "boundary 12, foreground 34"; names that do not fit are cut."""
    scores = {name: f"{100 * iou[name]:.0f}" for name in sorted(iou, key=iou.get)[:2]}
    room = COLUMNS[WORST] - 4 - sum(map(len, scores.values()))
    room = max(room - min(map(len, scores), default=0), room // 2)
    return ", ".join(
        f"{name if len(name) <= room else name[: room - 1] + '…'} {score}" for name, score in scores.items()
    )
