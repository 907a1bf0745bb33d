"""A model as an ONNX file, which gets its name only when it computes what PyTorch computes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import PILImageResampling

from hf_seg.data.geometry import center_crop
from hf_seg.data.sources.synthetic.pet import draw_pet
from hf_seg.files import write_whole
from hf_seg.inference.predict import expand_paths, read_image
from hf_seg.inference.segmenter import Segmenter, load_segmenter, said_by
from hf_seg.problem import Problem, Refusal
from hf_seg.scoring.upsampling import upsampled_argmax

OPSET = 20
EQUAL_LABELS = 0.999  # at least this share of the pixels
LOGITS_TOLERANCE = 1e-3  # a logit's largest difference, as a share of the largest logit
GENERATED_IMAGES = 16
BATCH_SIZE = 16
LARGEST_FILE = 2**31 - 2**24  # bytes of weights: ONNX files end at 2 GiB, and the graph takes some of them
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class DisagreementError(Refusal):
    """Nothing has been kept: the exported model does not compute what PyTorch computes."""

    exit_status = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How an ONNX file, run by onnxruntime, agrees with PyTorch."""

    images: int  # that both have computed
    batch_sizes: tuple[int, ...]  # that were run, ascending
    largest_difference: float  # of two logits, absolute
    largest_logit: float  # of PyTorch's, absolute
    equal_labels: float  # share of the pixels at the model's input size, in [0, 1]
    unreadable: tuple[Problem, ...]  # of the files that were left out

    @property
    def agrees(self) -> bool:
        """Whether labels and logits are equal within `EQUAL_LABELS` and `LOGITS_TOLERANCE`."""
        near = self.largest_difference <= LOGITS_TOLERANCE * self.largest_logit
        # a comparison with NaN is False, but infinity is as large as infinity
        return near and math.isfinite(self.largest_logit) and self.equal_labels >= EQUAL_LABELS

    def __str__(self) -> str:
        return (
            f"{self.images} images in batches of {', '.join(map(str, self.batch_sizes))}: largest difference of a "
            f"logit {self.largest_difference:.1e} (largest logit {self.largest_logit:.3g}), equal labels on "
            f"{self.equal_labels:.4%} of the pixels"
        )


def export_onnx(model: str | Path, out: str | Path, *, images: Sequence[str | Path] | None = None) -> Comparison:
    """Write a model as one ONNX file, and compare it with PyTorch on images.

    Input `pixel_values`, float32 `(batch, 3, height, width)`, and output `logits`, float32
    `(batch, num_labels, h, w)`: `batch` is free, the sizes are those of the image processor. What the pixels have to
    be and what the classes mean is in the file's metadata (see [`metadata_of`]).

    Args:
        out: the file, written whole or not at all; its folder is created.
        images: files, folders and patterns to compare on; else on generated ones.

    Raises:
        DisagreementError: when the file is beyond the tolerance. It is not kept, and an older one stays as it was.
        Refusal: when the model, the images, the file or a missing package do not let it be written.
    """
    out = Path(out)
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        what = f"export needs {', '.join(missing)}, which is not installed"
        raise Refusal("", what, "run `pip install 'hf_seg[export]'`")
    if out.is_dir():
        raise Refusal(out, "is a folder", f"name the file in it, such as {out / 'model.onnx'}")
    if os.path.lexists(out) and not _is_export(out):
        raise Refusal(out, "exists and is not an ONNX file of hf_seg", "name another file by --out")
    pictures = generated_images() if images is None else expand_paths(images)
    segmenter = load_segmenter(model, device="cpu")
    try:
        with write_whole(out) as partial:
            partial.touch()  # where this fails, nobody should have waited for the export
            write_onnx(segmenter, partial)
            comparison = compare(segmenter, partial, pictures)
            if not comparison.agrees:
                what = f"the exported model does not agree with PyTorch and was not kept: {comparison}"
                tolerance = f"{LOGITS_TOLERANCE:g} of the largest logit and {EQUAL_LABELS:.1%} of the pixels"
                raise DisagreementError(model, what, f"the tolerance is {tolerance}")
    except OSError as error:
        raise Refusal(out, f"cannot be written ({error})", "name another file by --out") from error
    return comparison


def write_onnx(segmenter: Segmenter, path: Path) -> None:
    """Write a model as an ONNX file with its metadata, and have it checked by onnx; refuse one that this cannot do."""
    import onnx
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = segmenter.model
    kind = model.config.model_type
    if segmenter.has_queries:
        raise Refusal("", f"a {kind} outputs queries; only models with logits per pixel can be exported")
    if sum(tensor.nbytes for tensor in model.state_dict().values()) > LARGEST_FILE:
        raise Refusal("", "the model's weights are above 2 GiB, which is the most that an ONNX file can hold")
    metadata, pixel_values = metadata_of(segmenter), torch.zeros(2, 3, *input_size(segmenter))
    config = OnnxConfig(opset_version=OPSET, dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC}})
    for name in ("transformers.exporters", "torch.onnx"):  # they warn of versions that they were not tested with
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torch prints each step
            exported = OnnxExporter().export(model, {"pixel_values": pixel_values}, config)
        # transformers before 5.23 returns torch's program itself
        is_program = isinstance(exported, torch.onnx.ONNXProgram)
        program = exported if is_program else torch.onnx.ONNXProgram(exported.program, None)
        program.rename_axes({program.model.graph.inputs[0].shape[0]: "batch"})  # else a number of torch: s99
        program.model.metadata_props.update(metadata)
        onnx.checker.check_model(program.model_proto, full_check=True)
    except Exception as error:  # tracing a model raises nearly anything
        raise Refusal("", f"transformers cannot export this {kind} to ONNX ({said_by(error)[:500]})") from error
    program.save(path, external_data=False)


def metadata_of(segmenter: Segmenter) -> dict[str, str]:
    """What a program needs to prepare images and to read the logits: values in JSON (docs/inference.md)."""
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
    """Height and width of the model's input; refuse an image processor where they depend on the image."""
    if segmenter.input_size is None:
        what = "the image processor does not set one input size, and an ONNX file needs one"
        raise Refusal("", what, "set its size")
    return segmenter.input_size


def generated_images() -> list[Image.Image]:
    """Pictures to compare on where no photographs are at hand, the same every time."""
    return [draw_pet(np.random.default_rng(number))[0] for number in range(GENERATED_IMAGES)]


def compare(segmenter: Segmenter, path: Path, images: Sequence[Path | Image.Image]) -> Comparison:
    """Run an ONNX file by onnxruntime, on the CPU, and the fp32 model that it was made from by PyTorch."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds have nothing else in common
        raise Refusal("", f"onnxruntime cannot open the exported file ({error})") from error
    unreadable: list[Problem] = []
    sizes, equal, pixels = set(), 0, 0
    difference = largest = torch.tensor(0.0)
    for pixel_values in _batches(segmenter, images, unreadable):
        expected = segmenter.scores(pixel_values)
        found = torch.from_numpy(session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0])
        # torch's maximum keeps a NaN, Python's may not
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
    )


def _batches(
    segmenter: Segmenter, images: Sequence[Path | Image.Image], unreadable: list[Problem]
) -> Iterator[Tensor]:
    """`pixel_values` of the images in batches; at the front the first image once more, in a batch of another size."""

    size = input_size(segmenter)

    def prepare() -> Iterator[Tensor]:
        for item in images:
            image = read_image(item, segmenter.value_range) if isinstance(item, Path) else item
            if isinstance(image, Problem):
                unreadable.append(image)
            else:
                yield center_crop(segmenter.prepare(image), size, 0)  # of a picture of any size, one window

    prepared, first = prepare(), True
    while batch := list(islice(prepared, BATCH_SIZE)):
        if first:
            yield torch.stack(batch[:1] * (2 if len(batch) == 1 else 1))
            first = False
        yield torch.stack(batch)


def _is_export(path: Path) -> bool:
    """Whether [`write_onnx`] has written a file, which may be replaced then."""
    import onnx

    try:
        found = onnx.load(path, load_external_data=False)
    except Exception:  # of a file of another kind, as many as there are kinds
        return False
    return {entry.key for entry in found.metadata_props} >= {"class_names", "image_processor"}
