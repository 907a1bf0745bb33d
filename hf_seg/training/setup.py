"""The one place where a model gets its initial weights and a trainer is built: for launches, their trial, evaluate,
repro and the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, set_seed

from hf_seg.data import DatasetSpec, SegData
from hf_seg.models.build import build_model, measure_forward
from hf_seg.recipe.keys import ModelRecipe
from hf_seg.runs.folder import Run
from hf_seg.runs.record import describe_encoder_run
from hf_seg.training.arguments import refuse_sharding
from hf_seg.training.average import WeightAverage
from hf_seg.training.callbacks import StopEarly, TrainingTime
from hf_seg.training.memory import reset_peak_memory
from hf_seg.training.pictures import TrackedPictures
from hf_seg.training.trainer import SegTrainer


def locate_encoder_run(run: Run) -> ModelRecipe:
    """Return the model section of a run's recipe; if another run gives the encoder, with that run's folder as
    `encoder_weights`."""
    model, encoder = run.recipe.model, run.recipe.encoder_recipe
    return replace(model, encoder_weights=str(run.folder.with_name(encoder))) if encoder else model


def build_initial_model(run: Run, spec: DatasetSpec) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Build the model that a run starts from; its random weights depend only on the recipe's seed.

    Args:
        run ([`Run`]): if its encoder comes from another run, that run must be finished, in a folder beside this one.

    Returns:
        `tuple`: the model, on the CPU; and the `model` section of `results.json`.

    Raises:
        Refusal: when the weights cannot be loaded or do not fit.
    """
    recipe, source = run.recipe, locate_encoder_run(run)
    set_seed(recipe.training.seed)
    model, init = build_model(source, spec, recipe.data.size)
    init["encoder"]["source"] = recipe.encoder_recipe or init["encoder"]["source"]
    init["encoder"]["run"] = describe_encoder_run(source.encoder_weights)
    return model, {
        "arch": source.arch,
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        **measure_forward(model, recipe.data.size),
        "init": init,
    }


def build_trainer(
    run: Run, data: SegData, model: PreTrainedModel, callbacks: Sequence[TrainerCallback] = (), quiet: bool = False
) -> SegTrainer:
    """Build the trainer of a run, and start to measure the peak memory.

    Args:
        run ([`Run`]): its recipe says how to train; checkpoints and logs go to its folder.
        callbacks (`Sequence[TrainerCallback]`): in addition to those of every run.
        quiet (`bool`): print no table and show no progress bar.

    Raises:
        RecipeError: when the global batch cannot be divided over ranks and accumulation steps, or a key is not
            tested with a model that is divided over the ranks.
    """
    training = run.recipe.training
    trainer = SegTrainer(run=run, data=data, model=model, callbacks=callbacks)
    trainer.add_callback(TrainingTime())
    trainer.add_callback(TrackedPictures(trainer))
    refuse_sharding(training, trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    if training.ema_decay is not None:
        trainer.average = WeightAverage(trainer.model, training.ema_decay)
        trainer.add_callback(trainer.average)
    if training.early_stopping_patience is not None:
        trainer.add_callback(StopEarly(training.early_stopping_patience))
    if quiet:
        trainer.remove_callback(trainer.table)
    reset_peak_memory(trainer.args.device)
    return trainer
