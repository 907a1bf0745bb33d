"""hf_seg's own training, as `hf_seg/train.py` sets it up, for programs that time it."""

import time
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from hf_seg.data import load_data
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe, ModelRecipe, TrainingRecipe
from hf_seg.runs.folder import Run
from hf_seg.training.setup import build_initial_model, build_trainer
from hf_seg.training.trainer import SegTrainer

BATCH = 64


class EpochTimer(TrainerCallback):
    """Seconds of each epoch, the evaluation after it left out."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def build_recipe(*, arch: str, data: DataRecipe, epochs: int, batch: int = BATCH) -> Recipe:
    """A recipe by the defaults of hf_seg, which evaluates and saves after the last epoch only."""
    training = TrainingRecipe(
        num_train_epochs=epochs,
        global_train_batch_size=batch,
        eval_every_epochs=epochs,
        report_to="none",
        arguments={"disable_tqdm": True},
    )
    return Recipe(name=arch, path=Path(f"{arch}.json"), model=ModelRecipe(arch=arch), data=data, training=training)


def build_quiet_trainer(recipe: Recipe, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> SegTrainer:
    """As a launch builds it, but for the logs, which would run into the table."""
    run, data = Run(recipe, folder), load_data(recipe.data)
    return build_trainer(run, data, build_initial_model(run, data.spec)[0], callbacks, quiet=True)
