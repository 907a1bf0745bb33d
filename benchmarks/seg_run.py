"""Build recipes and trainers as `hf_seg/train.py` does, for benchmarks that time training."""

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
    """Measure the seconds of each epoch, without the evaluation after it."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def build_recipe(*, arch: str, data: DataRecipe, epochs: int, batch: int = BATCH) -> Recipe:
    """Build a recipe with the defaults of hf_seg, except that it evaluates and saves only after the last epoch."""
    training = TrainingRecipe(
        num_train_epochs=epochs,
        global_train_batch_size=batch,
        eval_every_epochs=epochs,
        report_to="none",
        arguments={"disable_tqdm": True},
    )
    return Recipe(name=arch, path=Path(f"{arch}.json"), model=ModelRecipe(arch=arch), data=data, training=training)


def build_quiet_trainer(recipe: Recipe, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> SegTrainer:
    """Build the trainer of a launch, but without log output, which would disturb the table."""
    run, data = Run(recipe, folder), load_data(recipe.data)
    return build_trainer(run, data, build_initial_model(run, data.spec)[0], callbacks, quiet=True)
