"""Use a file of `hf-seg export`, `.onnx` or OpenVINO's `.xml`, in place of a [`Segmenter`]."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_seg.data.geometry import Framing, Size
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.problem import Refusal, one_line

NEEDED = ("class_names", "image_processor", "image_size", "resize")  # required keys of the file's metadata


@dataclass(frozen=True, kw_only=True)
class ExportedSegmenter:
    """The parts of a [`Segmenter`] that evaluation needs, for a file that onnxruntime or OpenVINO runs on the CPU."""

    run: Callable[[np.ndarray], np.ndarray]  # maps `pixel_values` to `logits`, both float32
    about: dict[str, Any]  # the file's metadata, see [`hf_seg.inference.export.metadata_of`]
    model = None
    has_queries = False

    @property
    def class_names(self) -> list[str]:
        return self.about["class_names"]

    @property
    def image_processor(self) -> SimpleNamespace:
        """The settings of the image processor of the exported model, as attributes."""
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
        return torch.from_numpy(self.run(pixel_values.float().cpu().numpy())).to(pixel_values.device)


def load_model(model: str | Path) -> Segmenter | ExportedSegmenter:
    """Load a model as [`load_segmenter`] does, or a file that `hf-seg export` has written.

    Raises:
        Refusal: as [`load_segmenter`]; also when the file's runtime is missing or the file is not an export of hf_seg.
    """
    path = Path(model)
    if path.suffix not in RUNTIMES:
        return load_segmenter(model)
    if not path.is_file():
        raise Refusal(path, "there is no such file", "name a file that `hf-seg export` has written", code="evaluate")
    name, open_file = RUNTIMES[path.suffix]
    try:
        run, metadata = open_file(path)
        about = {name: json.loads(text) for name, text in metadata.items()}
        if missing := [name for name in NEEDED if name not in about]:
            raise ValueError(f"its metadata has no {', '.join(missing)}")
        segmenter = ExportedSegmenter(run=run, about=about)
        # these raise if the metadata has values of other types
        segmenter.framing, segmenter.image_processor.do_normalize, ", ".join(segmenter.class_names)
    except ImportError as error:
        extra = "export" if name == "onnxruntime" else name
        remedy = f"run `pip install 'hf_seg[{extra}]'`"
        raise Refusal(path, f"{name} is not installed", remedy, code="evaluate") from error
    except Exception as error:  # the runtimes' errors have no other base class in common
        what = f"cannot be read as a file exported by hf_seg ({one_line(error)})"
        raise Refusal(path, what, "name a file that `hf-seg export` has written", code="evaluate") from error
    return segmenter


def _open_onnx(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda pixel_values: session.run(["logits"], {"pixel_values": pixel_values})[0], metadata


def _open_openvino(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    import openvino

    model = openvino.Core().read_model(path)
    # the default on processors with bf16 instructions is bf16, which would change the results
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    metadata = {name: value.astype(str) for name, value in model.get_rt_info(["hf_seg"]).astype(dict).items()}
    return lambda pixel_values: compiled({"pixel_values": pixel_values})["logits"], metadata


RUNTIMES = {".onnx": ("onnxruntime", _open_onnx), ".xml": ("openvino", _open_openvino)}
