"""Initial weights: find the file, and read from it exactly the encoder, or encoder and head."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops

from hf_seg.problem import RecipeError, first
from hf_seg.recipe.keys import ON_TIMM
from hf_seg.recipe.rules import MIT, encoder_differences

from .configuration_fcn import FCNConfig
from .configuration_smp import SmpConfig
from .modeling_fcn import build_encoder
from .modeling_smp import build_segmenter
from .weight_files import KEY, WEIGHT_FILES, download, find_in_folder, hidden_bars, verify_download

if TYPE_CHECKING:
    from hf_seg.recipe.keys import ModelRecipe


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the encoder: the base model, or, if there is none (UPerNet), the submodule `backbone`."""
    return model.backbone if model.base_model is model else model.base_model


def source_of(model: ModelRecipe) -> str:
    """Return the path or Hub id of a recipe's initial weights: the one it names, or the default for its encoder.

    Raises:
        RecipeError: when there is neither, or with init "imagenet" for one of smp's own encoders.
    """
    if model.arch == "smp" and model.init == "imagenet" and not timm.is_model(model.encoder or "resnet50"):
        what = f"{model.encoder} is one of smp's own encoders, but weights are read in timm's format only"
        raise RecipeError("model.encoder", what, 'name an encoder of timm, or use init "scratch"')
    if model.encoder_weights is not None:
        return model.encoder_weights
    if model.arch == "auto":
        return model.path
    if model.arch == "segformer":
        return MIT + (model.path or "b0").removeprefix(MIT)
    encoder = model.encoder or "resnet50"
    if encoder == "resnet50":
        return "timm/resnet50.tv2_in1k"  # torchvision's second weights, as in the study that this project reproduces
    default = timm.get_pretrained_cfg(encoder)
    if default is None or not default.hf_hub_id:
        remedy = 'name a file in model.encoder_weights, or use init "scratch"'
        raise RecipeError("model.encoder", f"timm has no weights for {encoder!r}", remedy)
    return default.hf_hub_id


def license_of(source: str) -> str | None:
    """Return the licence that timm gives for its weights on the Hub, such as `"apache-2.0"`; None if it gives none."""
    tag = source.removeprefix("timm/")
    return timm.get_pretrained_cfg(tag).license if source != tag and timm.is_model_pretrained(tag) else None


def locate(model: ModelRecipe, config: PreTrainedConfig) -> Path:
    """Return a recipe's weight file, .safetensors or pytorch_model.bin. It is downloaded once if it is on the Hub.

    Raises:
        RecipeError: when there is none, its format can run code, or it is a checkpoint of another encoder than
            `config`'s.
    """
    source = source_of(model)
    local = Path(source).expanduser()
    is_checkpoint = model.init != "imagenet"
    if local.is_dir():
        weights = find_in_folder(local, source, is_checkpoint)
    elif local.is_file():
        weights = local
    else:
        weights = download(source, is_checkpoint)
        verify_download(weights)
    if weights.suffix != ".safetensors" and weights.name != WEIGHT_FILES[1]:
        what = f"{source} is not a .safetensors file: other formats can run code when they are opened"
        remedy = "If you trust it, convert it: safetensors.torch.save_file(torch.load(old, weights_only=True), new)."
        raise RecipeError(KEY, what, remedy)
    if is_checkpoint:
        try:
            theirs = json.loads((weights.parent / "config.json").read_text(encoding="utf-8"))
            theirs["model_type"]
        except FileNotFoundError:
            what = f"{source} has no config.json next to it that says which model it belongs to"
            remedy = 'name the folder of a run, or use init "imagenet" for a weight file without config.json'
            raise RecipeError(KEY, what, remedy) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(KEY, f"{source} has a config.json that is not a model's: {error!r}") from error
        compare(model, config, theirs)
    return weights


def compare(model: ModelRecipe, config: PreTrainedConfig, theirs: dict) -> None:
    """Refuse a checkpoint whose encoder, by its config.json (`theirs`), is built differently from the recipe's."""
    model_type = theirs["model_type"]
    if model.arch == "auto":
        there, here = ({"arch": "auto", "path": each} for each in (model_type, config.model_type))
        differences = encoder_differences(there, here) or _different_shapes(config, theirs)
    else:
        if model_type == SmpConfig.model_type:
            arguments = theirs.get("arguments")
            there = {"arch": "smp", "path": str(theirs.get("architecture"))}
            there["config"] = arguments if isinstance(arguments, dict) else {}
        else:
            there = {"arch": "fcn" if model_type == FCNConfig.model_type else model_type, "config": theirs}
        there["encoder"] = theirs.get("encoder")
        differences = encoder_differences(there, dataclasses.asdict(model))
    if differences:
        what = f"{source_of(model)} is a checkpoint of another architecture: {', and '.join(differences)}"
        raise RecipeError(KEY, what, "make them equal, or name another run")


def _different_shapes(config: PreTrainedConfig, theirs: dict) -> list[str]:
    """Describe the first tensor that differs, for models whose keys of config.json hf_seg does not interpret."""
    shapes = []
    with torch.device("meta"), meta_device_safe_creation_ops():
        for each in (type(config).from_dict(theirs), config):
            encoder = encoder_of(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)](each))
            shapes.append({name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()})
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        there, here = (f"of {shape[name]}" if name in shape else "missing" for shape in shapes)
        if there != here:
            return [f"its encoder's {name} is {there} there and {here} here"]
    return []


def read(model: ModelRecipe, path: Path, built: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the state dict of the encoder of `built`, from the file that [`locate`] found. Heads in it are left out.

    Raises:
        RecipeError: when the file cannot be read, lacks a tensor of the encoder, or has one in another shape.
    """
    tensors = _read_tensors(model, path)
    if model.arch in ON_TIMM and model.init == "imagenet":
        loaded, problems = _from_timm(tensors, built.config)
    else:
        whole, problems, _ = _from_transformers(tensors, built, built.config, unknown=model.arch != "auto")
        loaded = encoder_of(whole).state_dict()
    _refuse(model, problems)
    return loaded


def load_model(model: ModelRecipe, path: Path, built: PreTrainedModel) -> dict[str, Any]:
    """Load the weights of encoder and head into `built`, from the file that [`locate`] found. If a tensor of the head
    has one row per class, each class gets the row of the class with the same name, or keeps its random row.

    Returns:
        `dict`: about the head: `source`; the numbers of tensors `tensors_loaded` whole, `tensors_by_class` with such
        rows, and `tensors_fresh`, which the file lacks or has in another shape; and the names of classes whose rows
        were found (`classes_loaded`) and not found (`classes_fresh`).

    Raises:
        RecipeError: as [`read`].
    """
    tensors, config = _read_tensors(model, path), copy.deepcopy(built.config)
    theirs = type(config).from_dict(json.loads((path.parent / "config.json").read_text(encoding="utf-8")))
    config.id2label, config.label2id = theirs.id2label, theirs.label2id
    whole, problems, absent = _from_transformers(tensors, built, config, unknown=model.arch != "auto")
    _refuse(model, problems)

    ids = {name: number for number, name in reversed(theirs.id2label.items())}  # of equal names, the first id
    rows = {ours: ids[name] for ours, name in built.config.id2label.items() if name in ids}
    by_class = _tensors_by_class(built)
    if by_class & absent:  # the bias of a class is of no use without its weights
        absent, by_class = absent | by_class, set()
    state, loaded = built.state_dict(), whole.state_dict()
    with torch.no_grad():
        for name in state.keys() - absent - by_class:
            state[name].copy_(loaded[name])
        for name in by_class:
            for here, there in rows.items():
                state[name][here] = loaded[name][there]
    head = len(state) - len(encoder_of(built).state_dict())
    fresh = len(absent & state.keys())
    names = built.config.id2label
    return {
        "source": "as the encoder, classes by name",
        "tensors_loaded": head - fresh - len(by_class),
        "tensors_by_class": len(by_class),
        "tensors_fresh": fresh,
        "classes_loaded": [names[number] for number in names if by_class and number in rows],
        "classes_fresh": [names[number] for number in names if by_class and number not in rows],
    }


def _tensors_by_class(built: PreTrainedModel) -> set[str]:
    """Return the names of the tensors that have one row per class: those whose shape changes with another class."""
    shapes = []
    with torch.device("meta"), meta_device_safe_creation_ops():
        for more in (0, 1):
            config = copy.deepcopy(built.config)
            config.num_labels += more
            shapes.append({name: tensor.shape for name, tensor in type(built)(config).state_dict().items()})
    return {name for name, shape in shapes[0].items() if shape != shapes[1][name]}


def _read_tensors(model: ModelRecipe, path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each kind of damage raises its own type
        said = (str(error).splitlines() or [type(error).__name__])[0]  # torch's next lines advise `weights_only=False`
        what = f"{source_of(model)} cannot be read ({path.name}: {said})"
        raise RecipeError(KEY, what, "download or save it again") from error


def _refuse(model: ModelRecipe, problems: list[str]) -> None:
    if problems:
        shown = first(problems, 3, "; ")
        what = f"{source_of(model)} has weights of another architecture or size than the recipe's encoder ({shown})"
        remedy = "Name weights that fit, or change the encoder"
        remedy += '; weights from a run of hf_seg need init "checkpoint".' if model.init == "imagenet" else "."
        raise RecipeError(KEY, what, remedy)


def _from_transformers(
    tensors: dict, built: PreTrainedModel, config: PreTrainedConfig, *, unknown: bool
) -> tuple[PreTrainedModel, list[str], set[str]]:
    """Load tensors with transformers, which renames them, and list what does not fit the encoder: missing tensors,
    other shapes and, if `unknown`, tensors that it does not have.

    Returns:
        `tuple`: another model of the class of `built`, made from `config`; what is wrong with its encoder; and the
        names of all its tensors that are still random.
    """
    with _quiet("transformers"), hidden_bars(), torch.random.fork_rng(devices=[]):
        loaded, report = type(built).from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # so that all of them are in the report
            output_loading_info=True,
        )
    encoder = encoder_of(loaded)
    prefix = next(name for name, module in loaded.named_modules() if module is encoder) + "."
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} is unknown" for name in sorted(report["unexpected_keys"]) if unknown]
    problems += [f"{name} is {tuple(a)}, not {tuple(b)}" for name, a, b in sorted(report["mismatched_keys"])]
    absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return loaded, [said.removeprefix(prefix) for said in problems if said.startswith(prefix)], absent


def _from_timm(tensors: dict, config: FCNConfig | SmpConfig) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Load tensors in timm's format with timm, which renames them, and check that they fill the whole encoder."""
    # timm loads weights into a feature extractor without `strict`: with the file of another model it would silently
    # stay random. So it is loaded a second time with all values NaN: what is not NaN then did not come from the file.

    def fill(values: dict) -> dict[str, torch.Tensor]:
        overlay = {"pretrained_cfg_overlay": {"state_dict": values}}
        if isinstance(config, SmpConfig):
            return build_segmenter(config, encoder_weights=True, **overlay).encoder.state_dict()
        strides = config.output_stride, config.logits_stride
        return build_encoder(config.encoder, *strides, pretrained=True, **overlay).state_dict()

    with _quiet("timm"):
        try:
            nans = {n: torch.full_like(t, torch.nan) if t.is_floating_point() else t for n, t in tensors.items()}
            probe, loaded = fill(nans), fill(dict(tensors))
        except (RuntimeError, KeyError, ValueError) as error:
            lines = [line.strip(" \t.") for line in str(error).splitlines()]
            return {}, lines[1:] or lines or [repr(error)]
    return loaded, [f"{n} is missing" for n, t in probe.items() if t.is_floating_point() and not t.isnan().all()]


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hide a library's warnings about tensors that do not fit, since hf_seg reports them in one error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
