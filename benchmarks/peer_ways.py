"""The three training methods of `benchmarks/peers.py`. Each trains one job and measures its epochs and evaluations."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from datasets import Image
from per_pair import SIZE, PerPair
from PIL import Image as PILImage
from seg_run import BATCH, EpochTimer, build_quiet_trainer, build_recipe
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

from hf_seg.data import DatasetSpec, load_spec, load_splits
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.recipe.keys import DataRecipe

WORKERS = 2
EPOCHS, EVALUATIONS = 30, 15
MEAN_IOU = str(Path(__file__).with_name("mean_iou.py"))


@dataclass(kw_only=True)
class Job:
    """The data, model, folder and number of epochs of one training."""

    data: DataRecipe
    arch: str
    folder: Path
    epochs: int

    @property
    def spec(self) -> DatasetSpec:
        return load_spec(self.data)

    def build_model(self):
        """Build the model of transformers or torchvision without hf_seg's faster forward passes."""
        torch.manual_seed(0)
        classes = {"id2label": self.spec.id2label, "label2id": self.spec.label2id}
        if self.arch == "fcn":
            return FCNForSemanticSegmentation(FCNConfig(**classes))
        return SegformerForSemanticSegmentation(SegformerConfig(**classes))


@dataclass(kw_only=True)
class Times:
    """Seconds of each epoch and of each evaluation; megabytes by which the process grew."""

    epochs: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    megabytes: float = 0

    @property
    def later(self) -> float:
        return statistics.median(self.epochs[1:])

    @property
    def run(self) -> float:
        return self.epochs[0] + (EPOCHS - 1) * self.later + EVALUATIONS * statistics.median(self.evaluations)


def seconds_of(action: Callable) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def hf_seg_way(job: Job, times: Times) -> None:
    timer, start = EpochTimer(), time.perf_counter()
    recipe = build_recipe(arch=job.arch, data=job.data, epochs=job.epochs)
    trainer = build_quiet_trainer(recipe, job.folder / "run", [timer])
    preparation = time.perf_counter() - start
    trainer.train()
    times.epochs = timer.seconds
    times.epochs[0] += preparation
    for _ in range(2):
        times.evaluations.append(seconds_of(trainer.validate))


def as_files(job: Job):
    """Load the splits with the `Image` columns of `datasets` instead of those of hf_seg."""
    return load_splits(job.data).cast_column("image", Image()).cast_column("mask", Image())


def build_optimizer(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True)


def example_way(job: Job, times: Times) -> None:
    splits = as_files(job).with_transform(PerPair(job.spec))
    metric, num_labels = evaluate.load(MEAN_IOU), job.spec.num_labels

    @torch.no_grad()
    def compute_metrics(evaluation):
        logits, labels = evaluation
        logits = F.interpolate(torch.from_numpy(logits), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        predictions = logits.argmax(dim=1).numpy()
        scores = metric.compute(
            predictions=predictions.astype(np.uint8),
            references=labels.astype(np.uint8),
            num_labels=num_labels,
            ignore_index=255,
        )
        return {"mean_iou": scores["mean_iou"]}

    model, timer = job.build_model(), EpochTimer()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(job.folder / "run"),
            num_train_epochs=job.epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        compute_metrics=compute_metrics,
        optimizers=(build_optimizer(model), None),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    times.epochs = timer.seconds
    for _ in range(2):
        times.evaluations.append(seconds_of(trainer.evaluate))


class FilePairs(torch.utils.data.Dataset):
    def __init__(self, pairs: list[tuple[str, str]], transform: PerPair):
        self.pairs, self.transform = pairs, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        return self.transform.pair(*map(PILImage.open, self.pairs[index]))


def plain_way(job: Job, times: Times) -> None:
    loaders = {}
    for name, split in load_splits(job.data).items():
        columns = (split.with_format("arrow")[:][column].to_pylist() for column in ("image", "mask"))
        files = [tuple(value["path"] for value in pair) for pair in zip(*columns, strict=True)]
        loaders[name] = DataLoader(
            FilePairs(files, PerPair(job.spec)), batch_size=BATCH, shuffle=name == "train", num_workers=WORKERS
        )
    metric = evaluate.load(MEAN_IOU)
    model = job.build_model()
    optimizer = build_optimizer(model)

    def logits_of(pixel_values):
        logits = model(pixel_values=pixel_values).logits
        return F.interpolate(logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False)

    def train():
        model.train()
        for pixel_values, labels in loaders["train"]:
            loss = F.cross_entropy(logits_of(pixel_values), labels, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def validate():
        model.eval()
        for pixel_values, labels in loaders["validation"]:
            predictions = logits_of(pixel_values).argmax(dim=1)
            metric.add_batch(predictions=predictions.byte().numpy(), references=labels.byte().numpy())
        metric.compute(num_labels=job.spec.num_labels, ignore_index=255)

    for _ in range(job.epochs):
        times.epochs.append(seconds_of(train))
    for _ in range(2):
        times.evaluations.append(seconds_of(validate))


WAYS = {"hf_seg": hf_seg_way, "example": example_way, "plain": plain_way}
