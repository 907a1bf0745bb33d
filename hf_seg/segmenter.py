"""A model with its image processor: from `pixel_values` to scores of the classes. Loaded from a folder or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
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

import hf_seg.models  # noqa: F401  (FCN becomes known to the Auto classes)
from hf_seg.models.weights import WeightsError, verify_download

# Model types that put out classes and masks of queries instead of logits a pixel. Others of their kind (OneFormer,
# EoMT, DETR) are not here: they need more than `pixel_values`, such as a task prompt, offsets of patches or a padding.
QUERY_MODELS = ("mask2former", "maskformer")


class PredictError(ValueError):
    """The model or the paths cannot be used; nothing has been predicted yet."""


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A semantic segmentation model with its image processor, on a device; made by [`load_segmenter`]."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor

    @property
    def class_names(self) -> list[str]:
        id2label = self.model.config.id2label
        return [id2label[index] for index in range(len(id2label))]

    @property
    def has_queries(self) -> bool:
        """Whether the model puts out classes and masks of queries, instead of logits a pixel."""
        return self.model.config.model_type in QUERY_MODELS

    @torch.inference_mode()
    def scores(self, pixel_values: Tensor, flip: bool = False) -> Tensor:
        """Score the classes, whose highest one wins a pixel, before they are enlarged to an image's size.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): from the image processor.
            flip (`bool`, *optional*): the mean of the scores of the images and of their mirror images.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_labels, h, w)`, on the model's device: the logits; for a query
            model what its image processor makes of its output, the queries' mask scores summed by their classes.
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

    def probabilities(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge one image's scores, as `post_process_semantic_segmentation` does, and make them sum to 1 a pixel.

        Args:
            scores (`torch.FloatTensor` of shape `(num_labels, h, w)`): one image's, of [`Segmenter.scores`].
            size (`tuple[int, int]`): height and width wanted.

        Returns:
            `torch.FloatTensor` of shape `(num_labels, *size)`: the softmax of the logits; for a query model each
            class's share of the pixel's scores, which are positive already.
        """
        enlarged = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        return F.normalize(enlarged, p=1, dim=0) if self.has_queries else enlarged.softmax(dim=0)


def load_segmenter(model: str | Path, *, device: str | None = None, dtype: str = "float32") -> Segmenter:
    """Load a model for inference. Its weights have to be safetensors: nothing that was downloaded is unpickled.

    Args:
        model (`str` or `Path`): a run's folder or a Hub id; any semantic segmentation model of transformers that puts
            out logits a pixel, or a Mask2Former or MaskFormer.
        device (`str`, *optional*): such as `"cpu"` or `"cuda:1"`; by default the accelerator if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`): precision to compute in, or `"bfloat16"`, `"float16"`.

    Raises:
        PredictError: when there is no such model, it is no semantic segmentation model, its weights are not all of
            one, or its download is damaged.
    """
    device = device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        image_processor = AutoImageProcessor.from_pretrained(model)
        config = AutoConfig.from_pretrained(model)
        if config.model_type in QUERY_MODELS:
            auto = AutoModelForUniversalSegmentation
        elif type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            auto = AutoModelForSemanticSegmentation
        else:
            raise ValueError(f"a model of type {config.model_type} is none that hf_seg can use for it")
        loaded, report = auto.from_pretrained(
            model, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except ImportError as error:  # Mask2Former and MaskFormer want SciPy, for a loss that is not computed here
        raise PredictError(f"{model}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        _verify_downloads(model)  # a damaged file explains more than what came of it
        said = " ".join(str(error).split())
        raise PredictError(
            f"{model}: no semantic segmentation model with its image processor could be loaded ({said}); name the "
            "folder of a finished run, or a Hub id (offline, one that is in the cache)"
        ) from error
    _verify_downloads(model)
    if parts := _parts_without_weights(loaded, report["missing_keys"]):
        raise PredictError(
            f"{model}: has no weights for {', '.join(parts)}, so it is no trained semantic segmentation model (an "
            "encoder or a classifier?); name the folder of a finished run, or a Hub id of such a model"
        )
    return Segmenter(model=loaded.eval().to(device), image_processor=image_processor)


def _verify_downloads(model: str | Path) -> None:
    """Verify the weights that the cache has of a Hub id; a folder's are the user's own."""
    if Path(model).is_dir() or not isinstance(config := try_to_load_from_cache(str(model), "config.json"), str):
        return
    for path in sorted(Path(config).parent.iterdir()):
        if path.suffix == ".safetensors":
            try:
                verify_download(path)
            except WeightsError as error:
                raise PredictError(f"{model}: {error}") from error


def _parts_without_weights(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """Parts of a model of which no tensor was in the file: transformers makes up random ones, and only logs it.

    A tensor missing here and there is not counted: some models on the Hub lack what their forward pass never uses.
    """
    loaded = {name.partition(".")[0] for name in model.state_dict() if name not in missing}
    return sorted({name.partition(".")[0] for name in missing} - loaded)
