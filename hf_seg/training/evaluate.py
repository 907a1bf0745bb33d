"""`hf-seg evaluate`: score any model on any data, in the same way as a training's test.

The output folder holds the same files as a run's test, so `hf-seg compare` accepts it beside runs.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import DatasetDict
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_seg.data import SegData, load_pairs
from hf_seg.data.cache import prepare_splits
from hf_seg.data.geometry import Size
from hf_seg.data.sources import recognise
from hf_seg.data.transforms import build_transforms
from hf_seg.files import check_writable
from hf_seg.models.build import measure_forward
from hf_seg.problem import Refusal, did_you_mean
from hf_seg.processes import say_once, start_processes
from hf_seg.recipe import ModelRecipe, Recipe, TrainingRecipe, load_recipes
from hf_seg.recipe.keys import NORMALIZATIONS, SECTIONS, DataRecipe
from hf_seg.recipe.rules import check_keys
from hf_seg.runs.folder import RECORD, Run
from hf_seg.runs.record import RESULTS, begin_record, finish_run, load_results
from hf_seg.scoring.upsampling import upsample
from hf_seg.training.setup import build_trainer
from hf_seg.training.trainer import SegTrainer

if TYPE_CHECKING:
    from hf_seg.inference.exported import ExportedSegmenter
    from hf_seg.inference.segmenter import Segmenter

NEVER = -1e4  # the logit of a class that the model lacks; not -inf, since infinity times a weight of 0 is NaN
SQUARE = 32  # the side of a square input is a multiple of this, in pixels
# the keys of a run's training section that its test depends on, down to the rounding
OF_THE_TEST = ("global_train_batch_size", "gradient_accumulation_steps", "channels_last")
EVAL_BATCH = "per_device_eval_batch_size"  # another such key, where the recipe has it
# for reading only the data section of a recipe: its initial weights and trackers are not needed
DATA_ONLY = "--model.init scratch --model.encoder_weights null --model.freeze_encoder false --training.report_to none"


class DataClasses(nn.Module):
    """A segmenter wrapped as a model with the data's classes: it maps the trainer's `pixel_values` to `logits`.

    Args:
        members (`Sequence[Sequence[int]]`): for each class of the data, the ids of the model's classes that belong to
            it. The probabilities of several are added up; a class that has none is never predicted.
        pixels (`tuple`, *optional*): mean and standard deviation to normalise by, and whether the model expects blue
            first (BGR). By default the trainer's transform has normalised the pixels.
    """

    def __init__(
        self, segmenter: Segmenter | ExportedSegmenter, members: Sequence[Sequence[int]], pixels: tuple | None = None
    ):
        super().__init__()
        self.model, self.segmenter, self.members, self.pixels = segmenter.model, segmenter, members, pixels

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        if self.pixels is not None:
            mean, std, blue_first = self.pixels
            pixel_values = F.normalize(pixel_values.flip(1) if blue_first else pixel_values, mean, std)
        scores, queries = self.segmenter.scores(pixel_values), self.segmenter.has_queries
        add = torch.sum if queries else torch.logsumexp
        empty = torch.full_like(scores[:, 0], 0 if queries else NEVER)
        maps = [
            scores[:, ids[0]] if len(ids) == 1 else add(scores[:, ids], dim=1) if ids else empty
            for ids in self.members
        ]
        scores = torch.stack(maps, dim=1)
        if queries:  # these are not logits; as in prediction, they are enlarged before the logarithm
            scores = upsample(scores, tuple(pixel_values.shape[-2:]))
            scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
        return SemanticSegmenterOutput(logits=scores)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A model, ready to be tested on some data."""

    trainer: SegTrainer
    members: list[list[int]]  # see [`DataClasses`]
    resize: str  # how pictures are brought to the size of the model's input, see `data.resize`
    size: Size
    normalized: str | None  # the value of `data.normalize`; None where no value matches


def evaluate(
    model: str | Path,
    load: Callable[[str | Path], Segmenter | ExportedSegmenter],
    data: str | Path,
    out: Path,
    label_map: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a model on the test split of some data, and write the same files as a run's test: `results.json`, the
    confusion matrices of the images, ROC curves, samples and plots.

    Args:
        model: what `load` accepts. A finished run is tested in its own precision, where the device has it.
        load: [`hf_seg.inference.exported.load_model`], passed in, so that training does not depend on inference.
        data: a recipe's file or name, of which only the data section is used; or a folder: a run's, one with a
            `recipe.json`, or one of data that [`hf_seg.data.sources.recognise`] accepts.
        out: the folder to write to, new or empty.
        label_map: `MODEL_CLASS=DATA_CLASS` for classes whose names differ.

    Returns:
        `dict`: the content of `results.json`.

    Raises:
        Refusal: when the folder is not empty, the data or the names cannot be used, or model and data share no class.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refusal(out, "exists and is not an empty folder", "name another folder with --out", code="evaluate")
    check_writable(out)
    start_processes()
    recorded = load_training(model)
    section, renamed = find_data(data), parse_label_map(label_map)
    segmenter = load(model)
    examination = examine(str(model), segmenter, section, out, recorded, renamed)
    trainer = examination.trainer
    spec, names, members = trainer.data.spec, segmenter.class_names, examination.members
    classes = {name: [names[number] for number in ids] for name, ids in zip(spec.class_names, members, strict=True)}
    left_out = [name for number, name in enumerate(names) if not any(number in ids for ids in members)]
    say_once(describe_classes(classes, left_out), keep="\n")
    height, width = examination.size
    how = f"{width}×{height} pixels by {examination.resize}, {trainer.precision}"
    if recorded and recorded["train"]["precision"] != trainer.precision:
        how += f" (the run was trained and tested in {recorded['train']['precision']}, which this device lacks)"
    say_once(f"{len(trainer.data.splits['test']):,} test pictures of {spec.title or spec.name}; {how}")

    described = recorded["model"] if recorded else describe_foreign(segmenter, trainer, examination.size)
    device = PartialState().device
    record = begin_record(trainer.run.recipe, described, trainer.data.describe(), device)
    record["recipe"]["training"] = recorded and recorded["recipe"]["training"]
    record["recipe"]["data"]["normalize"] = examination.normalized
    record["evaluation"] = {
        "model": str(Path(model).resolve()) if Path(model).exists() else str(model),
        "precision": trainer.precision,
        "label_map": renamed,
        "classes": classes,
        "left_out": left_out,
    }
    test = trainer.test()
    if not all(members):
        test["loss"] = None  # it would be infinite where a class occurs that is never predicted
    record |= {"train": None, "validation": None, "test": test}
    results = finish_run(out, record, trainer.sample(), spec)
    trainer.release()
    return results


def load_training(model: str | Path) -> dict[str, Any] | None:
    """Load the `results.json` of the run that `model` names; None when `model` is not the folder of a run."""
    return load_results(Path(model)) if (Path(model) / RESULTS).is_file() else None


def section_of(folder: Path, name: str, values: Mapping[str, Any]) -> ModelRecipe | DataRecipe:
    """Build a section of a recipe from its `values` in a folder's `results.json`.

    Raises:
        Refusal: when the values are not valid, because the file was changed.
    """
    values, found = check_keys(name, values)
    if found:
        key, what, _ = found[0]
        remedy = "restore the file, or train or evaluate again"
        raise Refusal(folder / RESULTS, f"recipe.{key} is damaged: it {what}", remedy, code="record")
    return SECTIONS[name](**values)


def check_root(place: Path, data: Mapping[str, Any], remedy: str) -> None:
    """Refuse a run or a recipe whose data folder does not exist; `data` is the data section of its record."""
    if data["root"] is not None and not Path(data["root"]).expanduser().is_dir():
        raise Refusal(place, f"its data was in {data['root']}, which does not exist", remedy, code="record")


def find_data(data: str | Path) -> DataRecipe:
    """Return the data section of a recipe, or the one that describes a folder; see [`evaluate`]."""
    place = Path(data).expanduser()
    if place.is_dir():
        files = [place / name for name in (RECORD, "recipe.json") if (place / name).is_file()]
        if not files:
            found = recognise(place)
            if len(found) > 1:
                what = f"holds several data sets: {', '.join(each.name for each in found)}"
                raise Refusal(place, what, "name a recipe whose data section says which one", code="evaluate")
            return found[0]
        place = files[0]
    section = load_recipes([place if place.exists() else data], DATA_ONLY.split())[-1].data
    check_root(place, vars(section), "correct data.root there, or name another recipe")
    return section


def parse_label_map(given: Sequence[str]) -> dict[str, str]:
    """Turn texts of the form `MODEL_CLASS=DATA_CLASS` into a mapping."""
    for text in given:
        if not all(text.partition("=")):
            what, remedy = f"{text!r} is not MODEL_CLASS=DATA_CLASS", "write both names with = between them"
            raise Refusal("--label_map", what, remedy, code="evaluate")
    pairs = [text.split("=", 1) for text in given]
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        what, remedy = f"names the model's class {repeated[0]!r} twice", "keep one of the two"
        raise Refusal("--label_map", what, remedy, code="evaluate")
    return dict(pairs)


def examine(
    model: str,
    segmenter: Segmenter | ExportedSegmenter,
    section: DataRecipe,
    folder: Path,
    recorded: Mapping[str, Any] | None,
    label_map: Mapping[str, str],
) -> Examination:
    """Build the trainer that tests a model, with the model's own input size and normalisation and the run's precision.

    Args:
        model: what the segmenter was loaded from.
        section ([`DataRecipe`]): which pairs to test on.
        folder (`Path`): the trainer's folder; nothing is written there.
        recorded (`dict`, *optional*): the `results.json` of the run that the model belongs to.
        label_map (`dict`): model class → data class, where the names differ.

    Raises:
        Refusal: when the data cannot be used, or [`match_classes`] refuses the classes.
    """
    if segmenter.value_range:  # by which pictures are decoded
        section = replace(section, value_range=segmenter.value_range)
    spec, splits, dropped = load_pairs(section)
    members = match_classes(segmenter.class_names, spec.class_names, label_map)
    size, resize = segmenter.input_size, segmenter.framing.resize
    if size is None:  # it depends on the picture: use a square as large as the longer side of the first one
        longest = max(segmenter.prepare(splits["test"][0]["image"]).shape[-2:])
        size, resize = (-(-longest // SQUARE) * SQUARE,) * 2, "letterbox"
    pixels = pixels_of(segmenter.image_processor)
    normalized = _name_of(*pixels)
    augment = recorded["recipe"]["data"]["augment"] if recorded else "none"
    section = replace(section, resize=resize, normalize=normalized or "none", augment=augment)
    # set here, where it is not checked: a model may have sizes that a recipe may not have
    section.image_size = size[0] if size[0] == size[1] else [*size]
    recipe = Recipe(
        name=folder.resolve().name,
        path=folder,
        model=section_of(Path(model), "model", recorded["recipe"]["model"])
        if recorded
        else ModelRecipe(arch="auto", path=model, init="model"),
        data=section,
        training=_training_of(recorded),
    )
    transforms = build_transforms(section, spec)
    prepared = prepare_splits(DatasetDict(test=splits["test"]), spec, transforms, section.cache)["test"]
    # a trainer needs three splits, although nothing is trained
    data = SegData(
        spec=spec, splits=splits, transforms=transforms, prepared=dict.fromkeys(splits, prepared), dropped=dropped
    )
    judged = DataClasses(segmenter, members, None if normalized else pixels)
    trainer = build_trainer(Run(recipe, folder), data, judged, quiet=True)
    return Examination(trainer=trainer, members=members, resize=resize, size=size, normalized=normalized)


def _training_of(recorded: Mapping[str, Any] | None) -> TrainingRecipe:
    """Build the training section that a test needs: from a run's own, or for fp32 with a global batch of 1."""
    if recorded is None:
        return TrainingRecipe(global_train_batch_size=1, bf16=False, fp16=False, report_to="none")
    training, precision = recorded["recipe"]["training"], recorded["train"]["precision"]
    return TrainingRecipe(
        **{key: training[key] for key in OF_THE_TEST},
        bf16=precision == "bf16" and (training["bf16"] is True or "auto"),
        fp16=precision == "fp16" and PartialState().device.type == "cuda",
        report_to="none",
        arguments={EVAL_BATCH: training[EVAL_BATCH]} if EVAL_BATCH in training else {},
    )


def match_classes(
    model_names: Sequence[str], data_names: Sequence[str], label_map: Mapping[str, str]
) -> list[list[int]]:
    """Return, for each class of the data, the ids of the model's classes that are the same by `label_map`, or else by
    name: an exact match goes first, then one that differs only in case.

    Raises:
        Refusal: when `label_map` names a class that does not exist, or model and data share no class.
    """
    place = "--label_map"
    for kind, known, names in (("model", model_names, label_map), ("data", data_names, label_map.values())):
        for name in names:
            if name not in known:
                what = f"the {kind} has no class {name!r}"
                remedy = did_you_mean(name, known, f"it has {', '.join(known)}")
                raise Refusal(place, what, remedy, code="evaluate")
    same = {name.casefold(): name for name in reversed(data_names)} | {name: name for name in data_names}
    wanted = [label_map.get(name, same.get(name, same.get(name.casefold()))) for name in model_names]
    members = [[number for number, name in enumerate(wanted) if name == each] for each in data_names]
    if not any(members):
        what = f"no class of the model ({', '.join(model_names)}) has the same name as one of the data "
        remedy = "say which are the same with --label_map MODEL_CLASS=DATA_CLASS, once for each"
        raise Refusal("classes", f"{what}({', '.join(data_names)})", remedy, code="evaluate")
    return members


def describe_classes(classes: Mapping[str, Sequence[str]], left_out: Sequence[str]) -> str:
    """Format, for people, which classes of the model belong to which class of the data."""
    width = max(map(len, ("data", *classes)))
    lines = [f"{'data':{width}}  model"]
    for name, own in classes.items():
        lines.append(f"{name:{width}}  {', '.join(own) or '– (the model has none: it is never predicted)'}")
    if left_out:
        lines.append(f"classes that the data lacks, left out of the prediction: {', '.join(left_out)}")
    return "\n".join(lines)


def pixels_of(image_processor: Any) -> tuple[list[float], list[float], bool]:
    """Return the mean and the standard deviation that an image processor normalises each channel by, for pixels in
    [0, 1], and whether it puts blue first (BGR)."""
    mean, std = [0.0] * 3, [1.0] * 3
    if image_processor.do_normalize:
        mean, std = [*image_processor.image_mean], [*image_processor.image_std]
    scale = 255 * (image_processor.rescale_factor if image_processor.do_rescale else 1)
    blue_first = bool(getattr(image_processor, "do_flip_channel_order", False))
    return [value / scale for value in mean], [value / scale for value in std], blue_first


def _name_of(mean: list[float], std: list[float], blue_first: bool) -> str | None:
    """Return the value of `data.normalize` that does the same, or None."""
    known = NORMALIZATIONS | {"none": ([0.0] * 3, [1.0] * 3)}
    return next((name for name, values in known.items() if values == (mean, std) and not blue_first), None)


def describe_foreign(segmenter: Segmenter | ExportedSegmenter, trainer: SegTrainer, size: Size) -> dict[str, Any]:
    """Build the `model` section of `results.json` for a model without a run; None marks what is not known."""
    model = segmenter.model
    logits = trainer.predict_logits(torch.zeros(1, 3, *size))
    counted = {"multiply_adds": None, "logits_size": list(logits.shape[-2:])}
    if model is not None and not segmenter.has_queries:
        counted = measure_forward(model, size)
    return {
        "arch": "exported" if model is None else model.config.model_type,
        "class": "a file of hf-seg export" if model is None else type(model).__name__,
        "parameters": None if model is None else model.num_parameters(),
        **counted,
        "init": None,
    }


def describe_scores(results: Mapping[str, Any], out: Path) -> str:
    """Format the main scores for people, with the folder of all scores."""
    test = results["test"]
    scores = {
        "mIoU": test["mean_iou"],
        "pixel accuracy": test["overall_accuracy"],
        "mIoU at the pictures' own size": test["native"]["mean_iou"],
    }
    return "test " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()) + f"; all scores: {out}"


def describe_export(model: str, file: Path, load: Callable[[str | Path], Segmenter | ExportedSegmenter]) -> str:
    """Test an exported file on the test pictures of its run, and tell people how its mIoU differs from the run's."""
    try:
        recorded = load_training(model)
    except Refusal as error:
        return f"not tested: {error}"
    if recorded is None:
        return f"not tested, since {model} is not a run; test it with `hf-seg evaluate {file} RECIPE --out DIR`"
    start_processes()
    try:
        with tempfile.TemporaryDirectory() as empty:  # a trainer needs a folder
            trainer = examine(str(file), load(file), find_data(model), Path(empty), None, {}).trainer
            trainer.evaluate(trainer.data.prepared["test"])
    except Refusal as error:
        return f"not tested: {error}"
    before, after = recorded["test"]["mean_iou"], trainer.scores["mean_iou"]
    trainer.release()
    change = f"{abs(before - after):.4f} {'below' if after < before else 'above'}"
    return f"test mIoU {after:.4f}, {change} the run's own {before:.4f} ({recorded['train']['precision']})"
