"""`hf-seg repro`: whether a run's training gives the same bits twice here, and what has changed since the run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, set_seed

from hf_seg.data import fingerprint
from hf_seg.data.seg_data import SegData, load_data
from hf_seg.models.build import build_model
from hf_seg.problem import RecipeError
from hf_seg.processes import start_processes
from hf_seg.recipe import Recipe, load_recipes
from hf_seg.runs.folder import RECORD, load_run
from hf_seg.runs.record import environment, load_results
from hf_seg.training.trainer import SegTrainer


@dataclass(kw_only=True)
class Training:
    """The first steps of a recipe.

    Args:
        losses (`list[float]`): of each step.
        weights (`dict[str, Tensor]`): the model's state after the last step, on the CPU.
        history (`list[dict]`): what was logged, as in `results.json`.
        setup (`dict[str, str]`): what the record of a run has under `train` and a machine can change.
        init (`str`, *optional*): SHA-256 of the file with the encoder's initial weights.
        notes (`list[str]`): what a reader of the report should know.
    """

    losses: list[float]
    weights: dict[str, Tensor]
    history: list[dict[str, Any]]
    setup: dict[str, str]
    init: str | None
    notes: list[str]


@dataclass(kw_only=True)
class Report:
    """What [`reproduce`] found. A change is `{"what": …, "then": …, "now": …}`.

    Args:
        run (`str`): the run's folder.
        steps (`int`): how many were trained.
        threads (`int`): of torch, on the CPU.
        changes (`list[dict]`): where this machine, the data or the first weights are not as the record has them.
        losses (`list[list[float]]`): of each step, in both trainings.
        tensors (`list[str]`): those that differ after the last step.
        weights (`list[str]`): SHA-256 of all weights after the last step, in both trainings.
        history (`list[dict]`): what was logged at these steps, then and now.
        notes (`list[str]`): see [`Training`].
    """

    run: str
    steps: int
    threads: int
    changes: list[dict[str, Any]]
    losses: list[list[float]]
    tensors: list[str]
    weights: list[str]
    history: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.tensors and all(first == second for first, second in self.losses)


def reproduce(run_dir: Path, *, steps: int = 5, data_root: str | None = None) -> Report:
    """Train the first steps of a finished run twice, in folders of their own, and compare them bit by bit.

    Args:
        run_dir (`Path`): the run's folder, which is only read.
        steps (`int`): fewer are trained when the recipe has fewer.
        data_root (`str`, *optional*): where the data is here, for `data.root`.

    Raises:
        RecipeError: when the folder is not a finished run, or its recipe cannot be trained here.
        DataError, RecipeError: when its data or the weights of its encoder are not here.
    """
    if steps < 1:
        raise RecipeError(f"--steps {steps}: there is nothing to compare; give 1 or more")
    recipe, record = _load(run_dir, data_root)
    start_processes()
    data = load_data(recipe.data)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_train(recipe, Path(folder, name), steps, data) for name in ("first", "second"))
    now = {
        **environment(PartialState().device),
        **first.setup,
        "data fingerprint": fingerprint(data.splits),
        "encoder's first weights": first.init,
    }
    return Report(
        run=str(run_dir),
        steps=len(first.losses),
        threads=torch.get_num_threads(),
        changes=_changes(_then(record, first.setup), now),
        losses=[list(pair) for pair in zip(first.losses, second.losses, strict=True)],
        tensors=[name for name in first.weights if _bits(first.weights[name]) != _bits(second.weights[name])],
        weights=[_digest(training.weights) for training in (first, second)],
        history=_logged(record["train"]["history"], first.history),
        notes=first.notes,
    )


def as_text(report: Report) -> str:
    """The report for people, a line each."""
    lines = [f"{report.run}: {report.steps} steps, twice, with {report.threads} threads"]
    lines += [f"changed: {change['what']}: {change['then']} then, {change['now']} now" for change in report.changes]
    if not report.changes:
        lines.append("environment, data and first weights: as in the record")
    for step, (first, second) in enumerate(report.losses, 1):
        lines.append(f"step {step}: loss {first!r}, " + ("same" if first == second else f"and {second!r}: DIFFERENT"))
    if report.tensors:
        lines.append(f"weights: DIFFERENT in {len(report.tensors)} tensors, the first of them {report.tensors[0]}")
    else:
        lines.append(f"weights: same, SHA-256 {report.weights[0]}")
    for entry in report.history:
        lines.append(f"logged at step {entry['step']}: loss {entry['then']!r} then, {entry['now']!r} now")
    lines += [f"note: {note}" for note in report.notes]
    lines.append("same: both trainings gave the same bits" if report.same else "DIFFERENT: see above")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """The report for programs."""
    return json.dumps({"same": report.same, **asdict(report)}, indent=2)


def _load(run_dir: Path, data_root: str | None) -> tuple[Recipe, dict[str, Any]]:
    """A run's recipe, ready to be trained quietly, and its record."""
    record = load_results(run_dir)
    load_run(run_dir)
    init, weights = record["recipe"]["model"]["init"], record["model"]["init"]["encoder"]["source"]
    overrides = ["--training.report_to", "none"]  # the tracker of the run may not be installed here
    overrides += [] if data_root is None else ["--data.root", json.dumps(data_root)]
    if init == "checkpoint" and Path(weights).name == weights:  # the name of a run, over seeds not that in the recipe
        encoder = run_dir.resolve().parent / weights
        if not encoder.is_dir():
            raise RecipeError(
                f"{run_dir}: starts from the encoder of the run {weights}, which is not beside it; put its folder at "
                f"{encoder}"
            )
        overrides += ["--model.encoder_weights", json.dumps(str(encoder))]
    (recipe,) = load_recipes([run_dir / RECORD], overrides)
    quiet = replace(
        recipe.training,
        arguments=recipe.training.arguments | {"disable_tqdm": True, "eval_on_start": False},
    )
    return replace(recipe, name=record["recipe"]["name"], training=quiet), record


class _StopAfter(TrainerCallback):
    """End the training after some steps, with neither a validation nor a checkpoint."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_save = False
        control.should_training_stop |= state.global_step >= self.steps
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_save = False
        return control


class _Watched(SegTrainer):
    """Keeps the loss of each step."""

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        step = self.state.global_step
        self.step_losses[step] = self.step_losses.get(step, 0) + loss.detach().clone()  # a sum over its parts
        return loss


def _train(recipe: Recipe, folder: Path, steps: int, data: SegData) -> Training:
    """As `hf_seg.train.run` does it, from the seed to the trainer."""
    set_seed(recipe.training.seed)
    model, provenance = build_model(recipe.model, data.spec, recipe.data.image_size)
    trainer = _Watched(
        recipe=recipe,
        run_dir=folder,
        model=model,
        data=data,
        callbacks=[_StopAfter(steps)],
    )
    trainer.step_losses = {}
    trainer.remove_callback(PrinterCallback)
    summary = trainer.summary(trainer.train().metrics)
    trainer._check_losses(wait=True)
    setup = ("world_size", "gradient_accumulation_steps", "precision", "channels_last")
    notes = []
    if trainer.args.device.type == "cuda" and not trainer.args.full_determinism:
        notes.append("on CUDA only training.full_determinism: true promises the same bits, and the recipe lacks it")
    training = Training(
        losses=[float(loss) for loss in trainer.step_losses.values()],
        weights={name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        history=summary["history"],
        setup={key: str(summary[key]) for key in setup},
        init=provenance["encoder"]["sha256"],
        notes=notes,
    )
    trainer.release()
    return training


def _then(record: Mapping[str, Any], setup: Iterable[str]) -> dict[str, Any]:
    """What a run's record says of what may have changed since."""
    return {
        **record["environment"],
        **{key: str(record["train"][key]) for key in setup if key in record["train"]},
        "data fingerprint": record["data"]["fingerprint"],
        "encoder's first weights": record["model"]["init"]["encoder"]["sha256"],
    }


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is not as it was; what the record lacks is left out."""
    return [{"what": key, "then": then[key], "now": now[key]} for key in now if key in then and then[key] != now[key]]


def _logged(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Losses that both have logged after the same step: an epoch's mean, when the steps reach its end."""
    losses = {entry["step"]: entry["loss"] for entry in then if "loss" in entry}
    both = [entry for entry in now if "loss" in entry and entry["step"] in losses]
    return [{"step": entry["step"], "then": losses[entry["step"]], "now": entry["loss"]} for entry in both]


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights, each with its name."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode() + _bits(tensor))
    return digest.hexdigest()
