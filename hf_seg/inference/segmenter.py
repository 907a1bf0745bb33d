"""A model with its image processor, loaded from a folder or the Hub: maps `pixel_values` to scores of the classes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from PIL import Image
from torch import Tensor
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

import hf_seg.models  # noqa: F401  (registers FCN with the Auto classes)
from hf_seg.data.classes import distinct_colors
from hf_seg.data.geometry import Framing, Size
from hf_seg.models import weight_files
from hf_seg.models.fast_segformer import make_fast
from hf_seg.problem import Refusal, first, one_line

# Model types that output classes and masks of queries instead of logits per pixel. Similar ones (OneFormer, EoMT,
# DETR) are left out: they need more than `pixel_values`, such as a task prompt, offsets of patches or a padding mask.
QUERY_MODELS = ("mask2former", "maskformer")
DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SIDE = 2**14  # pixels; of a model's input


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A semantic segmentation model in eval mode with its image processor; created by [`load_segmenter`]."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor

    @cached_property
    def framing(self) -> Framing:
        """How pictures are brought to the model's input size."""
        return Framing.of(self.image_processor)

    @cached_property
    def input_size(self) -> Size | None:
        """Height and width of the model's input; None where they depend on the picture."""
        if self.framing.size:
            return self.framing.size
        wide, tall = (tuple(self.prepare(Image.new("RGB", size)).shape[-2:]) for size in ((97, 61), (61, 97)))
        return wide if wide == tall else None

    @property
    def class_names(self) -> list[str]:
        return [name for _, name in sorted(self.model.config.id2label.items())]

    @property
    def has_queries(self) -> bool:
        """Whether the model outputs classes and masks of queries instead of logits per pixel."""
        return self.model.config.model_type in QUERY_MODELS

    @property
    def value_range(self) -> list[float] | None:
        """The `data.value_range` that the run was trained with, needed to open pictures; None if it had none."""
        return getattr(self.image_processor, "value_range", None)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """One RGB colour per class, in [0, 255]: those that a run of hf_seg saved in config.json, else 256 distinct
        colours, repeated for more classes."""
        classes, saved = len(self.class_names), getattr(self.model.config, "palette", None)
        if not saved:
            return list(islice(cycle(islice(distinct_colors(), 256)), classes))
        colours = saved[:classes] if isinstance(saved, list) else []
        lists = len(colours) == classes and all(isinstance(each, list) and len(each) == 3 for each in colours)
        if not lists or not all(type(part) is int and 0 <= part <= 255 for part in chain(*colours)):
            what = f"has a palette that does not give each of {classes} classes a colour"
            remedy = "write three whole numbers from 0 to 255 for each class, or remove it"
            raise Refusal("the model's config.json", what, remedy)
        return [tuple(colour) for colour in colours]

    def prepare(self, image: Image.Image) -> Tensor:
        """`pixel_values` of one RGB image, of shape `(3, height, width)`, padded as [`Framing`] says."""
        return self.framing.prepare(self.image_processor, image)

    @torch.inference_mode()
    def scores(self, pixel_values: Tensor, flip: bool = False) -> Tensor:
        """Scores of the classes, float32 `(batch, num_labels, h, w)`, for `pixel_values` `(batch, 3, height, width)`.

        A pixel gets the class with the highest score. Scores are the logits; for a query model, the mask scores of the
        queries, weighted with their class probabilities and summed per class. With `flip`, they are averaged with the
        scores of the mirrored images.
        """
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        scores = self._scores(pixel_values)
        return (scores + self._scores(pixel_values.flip(-1)).flip(-1)) / 2 if flip else scores

    def _scores(self, pixel_values: Tensor) -> Tensor:
        outputs = self.model(pixel_values=pixel_values)
        if not self.has_queries:
            return outputs.logits.float()
        maps = self.image_processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
        return torch.stack([each["segmentation_scores"] for each in maps]).float()

    def probabilities(self, scores: Tensor) -> Tensor:
        """Turn one image's scores `(num_labels, h, w)` into probabilities that sum to 1 at each pixel: by softmax, or
        by division by their sum for a query model, whose scores are positive.

        Scores that differ very little may become equal probabilities, so use the scores to find the class.
        """
        return F.normalize(scores, p=1, dim=0) if self.has_queries else scores.softmax(dim=0)


def load_segmenter(model: str | Path, *, device: str | None = None, dtype: str = "float32") -> Segmenter:
    """Load a model for inference. Its weights must be safetensors, so that no downloaded file is unpickled.

    Args:
        model: a run's folder or a Hub id, of any semantic segmentation model of transformers that outputs logits per
            pixel, or of a Mask2Former or MaskFormer.
        device: such as `"cpu"` or `"cuda:1"`; by default the accelerator if there is one.
        dtype: dtype of the weights and the computation: `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        Refusal: when the device or model does not exist, or the model is damaged or not a segmentation model.
    """
    device = _device(device)
    if dtype not in DTYPES:
        raise Refusal("dtype", f"{dtype!r} is not one of {', '.join(DTYPES)}")
    if not os.path.isdir(model):
        if os.path.exists(model):
            remedy = "name the folder of the model; of `hf-seg export`'s files, only `hf-seg evaluate` takes one"
            raise Refusal(model, "is a file", remedy)
        if not weight_files.HUB_ID.fullmatch(str(model)):
            what = "is neither a folder nor a Hub id such as nvidia/mit-b0"
            raise Refusal(model or "''", what, "name the folder of a finished run, or a Hub id")
        if is_offline_mode() and not isinstance(try_to_load_from_cache(str(model), "config.json"), str):
            what = "is neither a folder nor in the cache of the Hub, and HF_HUB_OFFLINE is set"
            raise Refusal(model, what, "name the folder of a finished run, or unset HF_HUB_OFFLINE to download it")
    try:
        segmenter, report = _load(model, dtype)
    except ImportError as error:  # Mask2Former and MaskFormer need SciPy, for a loss that is not computed here
        raise Refusal(model, one_line(error)) from error
    except Exception as error:  # for a damaged or hostile folder, transformers and torch may raise any exception
        _verify_downloads(model)  # "the file is damaged" is a better message than its consequences
        what = f"no semantic segmentation model with its image processor could be loaded ({one_line(error)})"
        remedy = "name the folder of a finished run, or a Hub id of such a model"
        raise Refusal(model, what, remedy) from error
    _verify_downloads(model)
    _check_tensors(model, segmenter.model, report["mismatched_keys"])
    segmenter.model.to(device, memory_format=torch.channels_last)  # faster convolutions
    _try_out(model, segmenter, report["missing_keys"])
    return segmenter


def _device(device: str | None) -> str:
    best = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return str(best or "cpu")
    there = ["cpu"] + [f"{best.type}:{index}" for index in range(torch.accelerator.device_count()) if best]
    if device not in there and f"{device}:0" not in there:
        raise Refusal(
            "device",
            f"there is no {device!r} here, only {', '.join(there)}",
            "choose one of these, or leave the option out",
        )
    return device


def _load(model: str | Path, dtype: str) -> tuple[Segmenter, dict]:
    """Load a model with its image processor; return also transformers' report of tensors. The folder's code is not
    run."""
    header = weight_files.read_header(model)
    weight_files.check_config(model, header)
    image_processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
    for key in ("size", "crop_size", "pad_size"):
        sides = dict(getattr(image_processor, key, None) or {})
        if not all(0 < side <= LARGEST_SIDE for side in sides.values() if side is not None):
            what = f"{key} in preprocessor_config.json is {sides}, but a side must have 1 to {LARGEST_SIDE:,} pixels"
            raise ValueError(what)
    match getattr(image_processor, "value_range", None):
        case None:
            pass
        case [int() | float() as low, int() | float() as high] if low < high:
            pass
        case other:
            raise ValueError(
                f"value_range in preprocessor_config.json is {other}, but must be two numbers, the lower first"
            )
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    if config.model_type in QUERY_MODELS:
        auto = AutoModelForUniversalSegmentation
    elif type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        auto = AutoModelForSemanticSegmentation
    else:
        raise ValueError(f"hf_seg cannot use a model of type {config.model_type}")
    ids = sorted(config.id2label)
    if ids != list(range(len(ids))) or not all(isinstance(name, str) for name in config.id2label.values()):
        raise ValueError(f"id2label in config.json must name each id from 0 to {len(ids) - 1} with a string")
    if len(ids) < 2:
        raise ValueError("it has one class, which every pixel would get: hf_seg has no threshold for its score")
    weight_files.check_parameters(auto, config, header)
    with weight_files.hidden_bars():
        loaded, report = auto.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that the report lists them all
            output_loading_info=True,
        )
    make_fast(loaded)
    if config.model_type in QUERY_MODELS:  # these pad batches of unequal pictures; masks would include the padding
        image_processor.pad_size = None
    return Segmenter(model=loaded.eval(), image_processor=image_processor), report


def _check_tensors(place: str | Path, model: PreTrainedModel, mismatched: Iterable[tuple]) -> None:
    """Refuse tensors of wrong shape and values that are not finite."""
    if mismatched := sorted(mismatched):
        shapes = (f"{name} is {tuple(found)}, not {tuple(expected)}" for name, found, expected in mismatched)
        raise Refusal(place, f"its file of weights does not match the model in config.json: {first(shapes)}")
    loaded = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if broken := [name for name, tensor in loaded.items() if not tensor.isfinite().all()]:
        dtype = str(model.dtype).removeprefix("torch.")
        what = f"the weights of {first(broken)} are NaN or infinite in {dtype}"
        raise Refusal(place, what, "the training that they come from has diverged, or they are damaged")


@torch.inference_mode()
def _try_out(place: str | Path, segmenter: Segmenter, missing: Iterable[str]) -> None:
    """Segment a grey ramp, then once more with NaN in place of weights missing from the file. If the scores change,
    the forward pass needs these weights, and the model is refused."""
    # transformers initialises missing weights randomly. Some models on the Hub lack tensors that their forward pass
    # never uses, such as DPT's first residual layer.
    tensors = segmenter.model.state_dict()  # integers, such as a batch norm's counter, are for training only
    absent = {name: tensors[name] for name in sorted(missing) if tensors[name].is_floating_point()}
    try:
        ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
        pixel_values = segmenter.prepare(ramp)[None]
        if not pixel_values.isfinite().all() or pixel_values.min() == pixel_values.max():
            raise ValueError(
                "its image processor turns a picture into values that are not finite or all equal (is image_std zero?)"
            )
        scores = segmenter.scores(pixel_values)
        for tensor in absent.values():
            tensor.fill_(torch.nan)
        # fused attention may turn NaN into numbers, but not into the same numbers as before
        needed = absent and not torch.allclose(scores, segmenter.scores(pixel_values))
    except Exception as error:
        raise Refusal(place, f"it cannot segment a picture: {one_line(error)}") from error
    if needed:
        what = f"has no weights for {first(absent)}, so it is not a trained semantic segmentation model"
        remedy = "encoders and classifiers cannot segment: name a finished run's folder, or a Hub id of such a model"
        raise Refusal(place, what, remedy)
    if not scores.isfinite().all():
        raise Refusal(place, f"its scores for a picture are not numbers (NaN), computed in {segmenter.model.dtype}")
    classes = len(segmenter.class_names)
    if scores.ndim != 4 or scores.shape[1] != classes:
        raise Refusal(place, f"has output of shape {tuple(scores.shape)}, but config.json has {classes} classes")
    for tensor in absent.values():
        tensor.zero_()


def _verify_downloads(model: str | Path) -> None:
    """Verify the cached weights of a Hub id. Weights in a folder are the user's own and are not verified."""
    config = None if os.path.isdir(model) else try_to_load_from_cache(str(model), "config.json")
    for path in sorted(Path(config).parent.glob("*.safetensors")) if isinstance(config, str) else ():
        try:
            weight_files.verify_download(path)
        except Refusal as error:
            raise Refusal(model, str(error)) from error
