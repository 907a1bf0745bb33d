"""An ONNX file of `hf-seg export` in the place of a [`Segmenter`]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hf_seg.data.geometry import Framing, Size
from hf_seg.inference.segmenter import Segmenter, load_segmenter, said_by
from hf_seg.problem import Refusal

NEEDED = ("class_names", "image_processor", "image_size", "resize")  # of the file's metadata


@dataclass(frozen=True, kw_only=True)
class OnnxSegmenter:
    """What evaluation needs of a [`Segmenter`], from an ONNX file that onnxruntime computes on the CPU."""

    session: Any  # onnxruntime's
    about: dict[str, Any]  # the file's metadata, see [`hf_seg.inference.export.metadata_of`]
    model = None
    has_queries = False

    @property
    def class_names(self) -> list[str]:
        return self.about["class_names"]

    @property
    def image_processor(self) -> SimpleNamespace:
        """The settings of the image processor that the model had."""
        return SimpleNamespace(**self.about["image_processor"])

    @property
    def value_range(self) -> list[float] | None:
        return self.about.get("value_range")

    @property
    def framing(self) -> Framing:
        height, width = self.about["image_size"]
        return Framing(resize=self.about["resize"], size=(height, width), black=torch.zeros(3, 1, 1))

    @property
    def input_size(self) -> Size:
        return self.framing.size

    def scores(self, pixel_values: Tensor) -> Tensor:
        """Logits, float32 `(batch, num_labels, h, w)`, for `pixel_values` `(batch, 3, height, width)`."""
        (logits,) = self.session.run(["logits"], {"pixel_values": pixel_values.float().cpu().numpy()})
        return torch.from_numpy(logits).to(pixel_values.device)


def load_model(model: str | Path) -> Segmenter | OnnxSegmenter:
    """What [`load_segmenter`] loads, or an ONNX file that `hf-seg export` has written.

    Raises:
        Refusal: as [`load_segmenter`]; when onnxruntime is missing, or the file is not such a one.
    """
    path = Path(model)
    if path.suffix != ".onnx":
        return load_segmenter(model)
    try:
        import onnxruntime
    except ImportError as error:
        what, remedy = "onnxruntime is not installed", "run `pip install 'hf_seg[export]'`"
        raise Refusal(path, what, remedy, code="evaluate") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        about = {name: json.loads(text) for name, text in metadata.items()}
        if missing := [name for name in NEEDED if name not in about]:
            raise ValueError(f"its metadata has no {', '.join(missing)}")
        segmenter = OnnxSegmenter(session=session, about=about)
        # raise when they are of another kind
        segmenter.framing, segmenter.image_processor.do_normalize, ", ".join(segmenter.class_names)
    except Exception as error:  # onnxruntime's kinds have nothing else in common
        what = f"cannot be read as an ONNX file of hf_seg ({said_by(error)})"
        raise Refusal(path, what, "name a file that `hf-seg export` has written", code="evaluate") from error
    return segmenter
