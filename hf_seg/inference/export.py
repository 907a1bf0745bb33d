"""Export a model to ONNX or OpenVINO. The file is kept only if its results agree with PyTorch's."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import PILImageResampling

from hf_seg.data.geometry import center_crop
from hf_seg.data.sources.synthetic.pet import draw_pet
from hf_seg.files import write_whole
from hf_seg.inference.exported import load_model
from hf_seg.inference.predict import expand_paths, read_image
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.problem import Problem, Refusal, one_line
from hf_seg.scoring.upsampling import upsampled_argmax

if TYPE_CHECKING:
    from transformers.exporters import DynamoConfig, ExportQuantizer, HfExporter

OPSET = 20
EQUAL_LABELS = 0.999  # smallest share of pixels that must get the same class
EQUAL_LABELS_INT8 = 0.9  # a lower share means a fault; the accuracy lost to int8 is measured on the test set
LOGITS_TOLERANCE = 1e-3  # largest difference between two logits, as a share of the largest logit
GENERATED_IMAGES = 16
BATCH_SIZE = 16
LARGEST_FILE = 2**31 - 2**24  # bytes of weights: an ONNX file has at most 2 GiB, and the graph needs some of them
CALIBRATED = 256  # at most this many pictures calibrate the ranges of an int8 model
PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino", "nncf")}
EXTRAS = {"onnx": "export", "openvino": "openvino"}
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}  # OpenVINO writes the weights into a .bin beside it


class DisagreementError(Refusal):
    """The exported model does not agree with PyTorch; its file was not kept."""

    exit_status = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How well a file, run by onnxruntime or OpenVINO, agrees with PyTorch."""

    images: int  # number of images compared
    batch_sizes: tuple[int, ...]  # the batch sizes tested, ascending
    largest_difference: float  # largest absolute difference between two logits
    largest_logit: float  # largest absolute logit of PyTorch
    equal_labels: float  # share of pixels with the same class, at the model's input size, in [0, 1]
    unreadable: tuple[Problem, ...]  # one for each file that was left out
    int8: bool = False

    @property
    def agrees(self) -> bool:
        """Whether classes and logits agree within `EQUAL_LABELS` and `LOGITS_TOLERANCE`; for an int8 model, whether
        the classes agree within `EQUAL_LABELS_INT8`."""
        if not math.isfinite(self.largest_logit + self.largest_difference):
            return False
        if self.int8:
            return self.equal_labels >= EQUAL_LABELS_INT8
        near = self.largest_difference <= LOGITS_TOLERANCE * self.largest_logit
        return near and self.equal_labels >= EQUAL_LABELS

    def __str__(self) -> str:
        return (
            f"{self.images} images in batches of {', '.join(map(str, self.batch_sizes))}: largest difference of a "
            f"logit {self.largest_difference:.1e} (largest logit {self.largest_logit:.3g}), equal labels on "
            f"{self.equal_labels:.4%} of the pixels"
        )


def export_model(
    model: str | Path,
    out: str | Path,
    *,
    kind: Literal["onnx", "openvino"] = "onnx",
    images: Sequence[str | Path] | None = None,
    int8: bool = False,
) -> Comparison:
    """Export a model to one ONNX file or to the two files of OpenVINO, and compare it with PyTorch on images.

    The input is `pixel_values`, float32 `(batch, 3, height, width)`; the output is `logits`, float32 `(batch,
    num_labels, h, w)`. The batch size is free; height and width are those of the image processor. The file's metadata
    says how to prepare images and what the classes mean (see [`metadata_of`]).

    Args:
        out: the file, written whole or not at all; its folder is created. OpenVINO's weights are written beside it, to
            a `.bin` of the same name.
        images: files, folders and patterns of the images to compare on; by default generated images.
        int8: quantise weights and activations to 8 bits with the quantizer of onnxruntime or of OpenVINO's NNCF.
            `images` must be given: the ranges of the activations are taken from at most `CALIBRATED` of them.

    Raises:
        DisagreementError: when the results differ by more than the tolerance. The new file is not kept, and an older
            one stays unchanged.
        Refusal: when the model or the images cannot be used, the file cannot be written, or a package is missing.
    """
    out = Path(out)
    if missing := [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]:
        what = f"this export needs {', '.join(missing)}, which is not installed"
        raise Refusal("", what, f"run `pip install 'hf_seg[{EXTRAS[kind]}]'`")
    check_place(out, kind)
    if int8 and images is None:
        what = "the ranges of an int8 model's activations are taken from photographs, but none are named"
        raise Refusal("--int8", what, "name photographs similar to those of the training")
    pictures = generated_images() if images is None else expand_paths(images)
    segmenter = load_segmenter(model, device="cpu")
    samples = calibration_samples(segmenter, pictures) if int8 else []
    write = write_onnx if kind == "onnx" else write_openvino
    try:
        with write_whole(out) as partial, tempfile.TemporaryDirectory() as folder:
            partial.touch()  # fail before the long export if the folder cannot be written to
            file = Path(folder) / out.name
            write(segmenter, file, samples)
            comparison = compare(segmenter, file, pictures, int8)
            if not comparison.agrees:
                what = f"the exported model does not agree with PyTorch and was not kept: {comparison}"
                labels = f"{EQUAL_LABELS_INT8 if int8 else EQUAL_LABELS:.1%} of the pixels"
                logits = "" if int8 else f"{LOGITS_TOLERANCE:g} of the largest logit and "
                raise DisagreementError(model, what, f"the tolerance is {logits}{labels}")
            shutil.copyfile(file, partial)
            if kind == "openvino":  # `out` gets its name after the .bin: if this copy fails, both files stay unchanged
                with write_whole(out.with_suffix(".bin")) as weights:
                    shutil.copyfile(file.with_suffix(".bin"), weights)
    except OSError as error:
        raise Refusal(out, f"cannot be written ({error})", "name another file with --out") from error
    return comparison


def check_place(out: Path, kind: str) -> None:
    """Refuse a folder, an existing file that hf_seg did not export, and a name without the suffix of the kind."""
    suffix, title = Path(FILES[kind]).suffix, {"onnx": "an ONNX", "openvino": "an OpenVINO"}[kind]
    if out.is_dir():
        raise Refusal(out, "is a folder", f"name the file in it, such as {out / FILES[kind]}")
    for path in (out, out.with_suffix(".bin")) if kind == "openvino" else (out,):
        if os.path.lexists(path) and not _is_export(out):
            raise Refusal(path, f"exists and is not {title} file written by hf_seg", "name another file with --out")
    if out.suffix != suffix:
        raise Refusal(out, f"does not end in {suffix}", f"name {title} file with --out, such as {FILES[kind]}")


def write_onnx(segmenter: Segmenter, path: Path, samples: Sequence[dict[str, Tensor]]) -> None:
    """Write a model as an ONNX file with its metadata, and check the file with onnx; refuse a model that cannot be
    exported. With `samples` of [`calibration_samples`] the model is quantised to 8 bits."""
    import onnx
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    if sum(tensor.nbytes for tensor in segmenter.model.state_dict().values()) > LARGEST_FILE:
        raise Refusal("", "the model's weights exceed 2 GiB, the most that an ONNX file can hold")
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeStaticConfig(per_channel=True), samples) if samples else None
    with _explained(segmenter, "ONNX"):
        program = _export(segmenter, OnnxExporter(), OnnxConfig(opset_version=OPSET), quantizer)
        program = torch.onnx.ONNXProgram(program, None)
        program.rename_axes({program.model.graph.inputs[0].shape[0]: "batch"})  # else torch's name for it, such as s99
        program.model.metadata_props.clear()  # a quantizer adds its own
        program.model.metadata_props.update(metadata_of(segmenter))
        onnx.checker.check_model(program.model_proto, full_check=True)
    program.save(path, external_data=False)


def write_openvino(segmenter: Segmenter, path: Path, samples: Sequence[dict[str, Tensor]]) -> None:
    """Write a model as OpenVINO's `.xml`, with metadata under `hf_seg`, and `.bin`; `samples` as in [`write_onnx`]."""
    from transformers.exporters import NNCFOpenVINOQuantizer, OpenVINOConfig, OpenVINOExporter

    quantizer = NNCFOpenVINOQuantizer(calibration_dataset=samples) if samples else None
    with _explained(segmenter, "OpenVINO"):
        program = _export(segmenter, OpenVINOExporter(), OpenVINOConfig(), quantizer)
    for name, text in metadata_of(segmenter).items():
        program.set_rt_info(text, ["hf_seg", name])
    OpenVINOExporter.save_program(program, path)


def calibration_samples(segmenter: Segmenter, pictures: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Batches of 4 pictures, `{"pixel_values": (4, 3, height, width)}`, that a quantizer takes ranges from; empty if
    no picture can be read. With batches of 1, NNCF's ranges are wrong: SegFormer-B0 then gives the same class as
    PyTorch on 77 % of the pixels, and on 99 % with batches of 2 or 4."""
    spread = pictures[:: -(-len(pictures) // CALIBRATED)]
    images = [image for batch in _batches(segmenter, spread, []) for image in batch]
    images += images[: -len(images) % 4]
    return [{"pixel_values": torch.stack(images[start : start + 4])} for start in range(0, len(images), 4)]


def _export(
    segmenter: Segmenter, exporter: HfExporter, config: DynamoConfig, quantizer: ExportQuantizer | None
) -> Any:
    """Export the model with a free batch size, and return the exporter's program."""
    config.dynamic_shapes, config.quantizer = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}, quantizer
    pixel_values = torch.zeros(2, 3, *input_size(segmenter))
    return exporter.export(segmenter.model, {"pixel_values": pixel_values}, config).program


@contextlib.contextmanager
def _explained(segmenter: Segmenter, title: str) -> Iterator[None]:
    """Refuse a model that cannot be exported, and hide the libraries' output: they print steps and progress bars, and
    warn of versions that they were not tested with."""
    kind, handlers = segmenter.model.config.model_type, [*logging.root.handlers]
    if segmenter.has_queries:
        raise Refusal("", f"a {kind} outputs queries; only models with logits per pixel can be exported")
    input_size(segmenter)
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:  # tracing a model can raise almost any exception
        raise Refusal("", f"transformers cannot export this {kind} to {title} ({one_line(error)[:500]})") from error
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers  # onnxruntime's quantizer adds one


def metadata_of(segmenter: Segmenter) -> dict[str, str]:
    """Metadata that a program needs to prepare images and to read the logits; values are JSON (docs/inference.md)."""
    processor = segmenter.image_processor
    values = {
        "class_names": segmenter.class_names,
        "palette": segmenter.palette,
        "image_size": input_size(segmenter),
        "resize": segmenter.framing.resize,
        "resample": PILImageResampling(processor.resample).name.lower(),
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1,
        "image_processor": json.loads(processor.to_json_string()),
    }
    if segmenter.value_range:
        values["value_range"] = segmenter.value_range
    if processor.do_normalize:
        values |= {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    return {name: json.dumps(value) for name, value in values.items()}


def input_size(segmenter: Segmenter) -> tuple[int, int]:
    """Height and width of the model's input; refuse an image processor whose output size depends on the image."""
    if segmenter.input_size is None:
        what = "the image processor does not set a fixed input size, which an exported file needs"
        raise Refusal("", what, "set its size")
    return segmenter.input_size


def generated_images() -> list[Image.Image]:
    """Draw the pictures to compare on where no photographs are given; they are the same every time."""
    return [draw_pet(np.random.default_rng(number))[0] for number in range(GENERATED_IMAGES)]


def compare(segmenter: Segmenter, path: Path, images: Sequence[Path | Image.Image], int8: bool = False) -> Comparison:
    """Compare an exported file, run on the CPU by its runtime, with the original fp32 model, run by PyTorch.

    Raises:
        Refusal: when the file cannot be loaded, or none of the images can be read.
    """
    exported = load_model(path)
    unreadable: list[Problem] = []
    sizes, equal, pixels = set(), 0, 0
    difference = largest = torch.tensor(0.0)
    for pixel_values in _batches(segmenter, images, unreadable):
        expected = segmenter.scores(pixel_values)
        found = exported.scores(pixel_values)
        # torch.maximum keeps NaN, Python's max may not
        difference = torch.maximum(difference, (found - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
        ours, theirs = (upsampled_argmax(logits, pixel_values.shape[-2:])[0] for logits in (expected, found))
        equal += int((ours == theirs).sum())
        pixels += ours.numel()
        sizes.add(len(pixel_values))
    if not pixels:
        raise Refusal("", f"none of the {len(images)} images can be read ({unreadable[0]})")
    return Comparison(
        images=len(images) - len(unreadable),
        batch_sizes=tuple(sorted(sizes)),
        largest_difference=float(difference),
        largest_logit=float(largest),
        equal_labels=equal / pixels,
        unreadable=tuple(unreadable),
        int8=int8,
    )


def _batches(
    segmenter: Segmenter, images: Sequence[Path | Image.Image], unreadable: list[Problem]
) -> Iterator[Tensor]:
    """Yield `pixel_values` of the images in batches, before them a batch of another size made of the first image.
    Problems of unreadable files are appended to `unreadable`."""

    size = input_size(segmenter)

    def prepare() -> Iterator[Tensor]:
        for item in images:
            image = read_image(item, segmenter.value_range) if isinstance(item, Path) else item
            if isinstance(image, Problem):
                unreadable.append(image)
            else:
                yield center_crop(segmenter.prepare(image), size, 0)  # for resize "crop": the middle window

    prepared, first = prepare(), True
    while batch := list(islice(prepared, BATCH_SIZE)):
        if first:
            yield torch.stack(batch[:1] * (2 if len(batch) == 1 else 1))
            first = False
        yield torch.stack(batch)


def _is_export(path: Path) -> bool:
    """Whether a file was written by [`write_onnx`] or [`write_openvino`], and so may be replaced."""
    try:
        if path.suffix == ".xml":
            import openvino

            names = openvino.Core().read_model(path).get_rt_info(["hf_seg"]).astype(dict)
        else:
            import onnx

            names = {entry.key for entry in onnx.load(path, load_external_data=False).metadata_props}
    except Exception:  # files of other kinds raise many types of exceptions
        return False
    return {"class_names", "image_processor"} <= set(names)
