"""`hf-seg repro`: check if a run's training gives the same bits twice here, and what has changed since the run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback

from hf_seg.data import SegData, load_data
from hf_seg.problem import Refusal
from hf_seg.processes import start_processes
from hf_seg.recipe import Recipe, load_recipes
from hf_seg.runs.folder import RECORD, Run, load_run
from hf_seg.runs.record import environment, load_results
from hf_seg.scoring.loss import LossWatch
from hf_seg.training.evaluate import check_root
from hf_seg.training.setup import build_initial_model, build_trainer

# keys of a record's `train` section
SETUP = ("world_size", "gradient_accumulation_steps", "precision", "channels_last", "compile", "cuda_graphs")


@dataclass(kw_only=True)
class Training:
    """The result of training the first steps of a recipe."""

    losses: list[float]
    weights: dict[str, Tensor]  # after the last step, on the CPU
    summary: dict[str, Any]  # what `results.json` would hold under `train`
    init: str | None  # SHA-256 of the file with the encoder's first weights


@dataclass(kw_only=True)
class Report:
    """What [`reproduce`] found."""

    run: str  # its folder
    steps: int
    threads: int
    changes: list[dict[str, Any]]  # what differs from the record: its name `what`, its value `then` and `now`
    losses: list[list[float]]  # of each step, in both trainings
    tensors: list[str]  # names of those that differ after the last step
    weights: list[str]  # SHA-256 of all of them after the last step, in both trainings
    history: list[dict[str, Any]]  # the losses that were logged at these steps, `then` and `now`
    notes: list[str]

    @property
    def same(self) -> bool:
        return not self.tensors and all(first == second for first, second in self.losses)


def reproduce(run_dir: Path, *, steps: int = 5, data_root: str | None = None) -> Report:
    """Train the first steps of a finished run twice, in temporary folders, and compare them bit by bit.

    Args:
        run_dir (`Path`): the run's folder, which is only read.
        steps (`int`): how many to train; fewer when the recipe has fewer.
        data_root (`str`, *optional*): the data's folder on this machine, in place of `data.root`.

    Raises:
        Refusal: when the folder is not a finished run, or its recipe, data or first weights cannot be used here.
    """
    if steps < 1:
        raise Refusal(f"--steps {steps}", "there is nothing to compare", "give 1 or more", code="repro")
    recipe, record = _load(run_dir, data_root)
    start_processes()
    data = load_data(recipe.data)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_train(Run(recipe, Path(folder, name)), steps, data) for name in ("first", "second"))
    weights = record["model"]["init"]["encoder"]["sha256"]
    then = _facts(record["environment"], record["train"], record["data"]["fingerprint"], weights)
    now = _facts(environment(PartialState().device), first.summary, data.fingerprint, first.init)
    notes = []
    if now["device"] == "cuda" and not recipe.training.arguments.get("full_determinism"):
        notes.append("on CUDA, only training.full_determinism: true ensures the same bits, and the recipe lacks it")
    changed = [key for key in now if key in then and then[key] != now[key]]
    return Report(
        run=str(run_dir),
        steps=len(first.losses),
        threads=torch.get_num_threads(),
        changes=[{"what": key, "then": then[key], "now": now[key]} for key in changed],
        losses=[list(pair) for pair in zip(first.losses, second.losses, strict=True)],
        tensors=[name for name in first.weights if _bits(first.weights[name]) != _bits(second.weights[name])],
        weights=[_digest(training.weights) for training in (first, second)],
        history=_logged(record["train"]["history"], first.summary["history"]),
        notes=notes,
    )


def as_text(report: Report) -> str:
    """Format the report for people, one line per result."""
    lines = [f"{report.run}: trained {report.steps} steps twice, with {report.threads} threads"]
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
    """Format the report for programs, as JSON."""
    return json.dumps({"same": report.same, **asdict(report)}, indent=2)


def _load(run_dir: Path, data_root: str | None) -> tuple[Recipe, dict[str, Any]]:
    """Load a run's recipe, set to train without a tracker or a progress bar, and the run's record."""
    record = load_results(run_dir)
    load_run(run_dir)
    if data_root is None:
        check_root(run_dir, record["recipe"]["data"], "name its folder with --data-root")
    init, weights = record["recipe"]["model"]["init"], record["model"]["init"]["encoder"]["source"]
    overrides = ["--training.report_to", "none"]  # the tracker of the run may not be installed here
    overrides += [] if data_root is None else ["--data.root", json.dumps(data_root)]
    # the name of another run; with --seeds, it is not the name in the recipe
    if init in ("checkpoint", "model") and Path(weights).name == weights:
        encoder = run_dir.resolve().parent / weights
        if not encoder.is_dir():
            what = f"starts from the encoder of the run {weights}, which is not in the same folder"
            raise Refusal(run_dir, what, f"put its folder at {encoder}", code="repro")
        overrides += ["--model.encoder_weights", json.dumps(str(encoder))]
    (recipe,) = load_recipes([run_dir / RECORD], overrides)
    arguments = recipe.training.arguments | {"disable_tqdm": True}
    training = replace(recipe.training, arguments=arguments)
    return replace(recipe, name=record["recipe"]["name"], training=training), record


def _facts(environment: dict, train: dict, fingerprint: str, weights: str | None) -> dict[str, Any]:
    setup = {key: str(train[key]) for key in SETUP if key in train}
    return {**environment, **setup, "data fingerprint": fingerprint, "encoder's first weights": weights}


class _StopAfter(TrainerCallback):
    """Ends training after some steps, without validation or checkpoint."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_save = False
        control.should_training_stop |= state.global_step >= self.steps
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_save = False
        return control


class _StepLosses(LossWatch):
    """Keeps the loss of each step."""

    def __init__(self, tolerated: int):
        super().__init__(tolerated)
        self.of_steps: dict[int, float | Tensor] = defaultdict(float)

    def add(self, loss: Tensor, note: tuple[int, Any]) -> None:
        super().add(loss, note)
        self.of_steps[note[0]] += loss.detach().clone()  # a sum over the parts of a step


def _train(run: Run, steps: int, data: SegData) -> Training:
    model, described = build_initial_model(run, data.spec)
    trainer = build_trainer(run, data, model, [_StopAfter(steps)], quiet=True)
    trainer.losses = watch = _StepLosses(trainer.losses.tolerated)
    trainer.train()
    trainer.check_losses(wait=True)
    training = Training(
        losses=[float(loss) for loss in watch.of_steps.values()],
        weights={name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        summary=trainer.summary(),
        init=described["init"]["encoder"]["sha256"],
    )
    trainer.release()
    return training


def _logged(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pair the losses that both histories logged after the same step: an epoch's mean, if the steps reach its end."""
    losses = {entry["step"]: entry["loss"] for entry in then if "loss" in entry}
    both = [entry for entry in now if "loss" in entry and entry["step"] in losses]
    return [{"step": entry["step"], "then": losses[entry["step"]], "now": entry["loss"]} for entry in both]


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode() + _bits(tensor))
    return digest.hexdigest()
