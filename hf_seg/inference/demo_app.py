"""The page of `hf-seg demo`, and the `app.py` of its Spaces. hf_seg is not installed there, so this file imports only
libraries and two files of hf_seg that are copied to the Space."""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

# a Space gets copies of these two beside its app.py; they import libraries only
from hf_seg.data.geometry import Framing, cut, slide, strongest
from hf_seg.scoring.upsampling import upsample, upsampled_argmax

MAX_MEGAPIXELS = 50  # such a photograph takes 150 MB when decoded
SHOWN_SIDE = 1280  # pixels; longest side of shown photographs and of masks, larger photographs are reduced
WINDOWS = 4  # per forward pass, for a model with `data.resize` "crop"
OPACITY = 55  # per cent, the slider's initial value

CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
#title .html-container, #results .html-container { padding: 0; }
#title h1 { margin: 0 0 4px; font-size: 26px; font-weight: 700; }
#title p, .facts, .agreement, .waiting { margin: 0; color: var(--body-text-color); opacity: 0.7; }
.results { display: flex; flex-wrap: wrap; gap: 16px; }
.result { display: flex; flex: 1 1 300px; flex-direction: column; min-width: 0; overflow: hidden;
  border-radius: var(--block-radius); border: 1px solid var(--border-color-primary);
  color: var(--body-text-color); background: var(--block-background-fill); }
.result h2 { margin: 0; padding: 10px 14px; font-size: 16px; font-weight: 600; overflow-wrap: anywhere; }
.stage { background: var(--background-fill-secondary); }
.picture { position: relative; margin: 0 auto; }
.picture img { display: block; width: 100%; height: 100%; }
.picture img.mask { position: absolute; inset: 0; opacity: var(--mask-opacity); image-rendering: pixelated; }
.legend { list-style: none; margin: 0; padding: 14px 14px 0; max-height: 340px; overflow-y: auto; }
.legend li { display: grid; grid-template-columns: 16px 1fr auto; gap: 4px 10px; align-items: center;
  padding: 0 0 12px; }
.legend .swatch { width: 16px; height: 16px; border-radius: 4px; box-shadow: inset 0 0 0 1px rgb(0 0 0 / 20%); }
.legend .share { font-variant-numeric: tabular-nums; font-weight: 600; }
.legend .bar { grid-column: 2 / 4; height: 4px; border-radius: 2px; background: var(--background-fill-secondary); }
.legend .bar span { display: block; height: 100%; border-radius: 2px; }
.facts { margin-top: auto; padding: 0 14px 14px; font-size: 13px; }
.agreement { padding-top: 12px; }
.waiting { padding: 140px 24px; text-align: center; border-radius: var(--block-radius);
  border: 1px dashed var(--border-color-primary); }
.problem { margin: 0; padding: 14px 16px; border-radius: var(--block-radius); overflow-wrap: anywhere;
  border: 1px solid var(--error-border-color); color: var(--error-text-color);
  background: var(--error-background-fill); }
"""
# the browser blends mask and photograph, so the slider needs no request to the server
SET_OPACITY = "opacity => { document.documentElement.style.setProperty('--mask-opacity', opacity / 100) }"
WAITING = '<p class="waiting">The result appears here.</p>'
SYSTEM_FONTS = ["system-ui", "sans-serif"]  # gradio may load its named fonts from another host
LAUNCH = {
    "css": f":root {{ --mask-opacity: {OPACITY / 100}; }}" + CSS,
    "theme": gr.themes.Default(primary_hue="blue", font=SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"]),
    "footer_links": [],
    "max_file_size": "100mb",
    "run_history": False,
    "share": False,
    "ssr_mode": False,
    "show_error": True,
}


class PhotographError(ValueError):
    """Raised for a file that is not a photograph that the page can show; the message is shown to the user."""


@dataclass(frozen=True)
class ShownModel:
    """A model on the page."""

    name: str  # the heading above its result
    model: PreTrainedModel  # in eval mode, on its device
    image_processor: BaseImageProcessor
    colours: Sequence[Sequence[int]]  # one RGB colour per class, integers in [0, 255]

    @property
    def class_names(self) -> list[str]:
        return [name for _, name in sorted(self.model.config.id2label.items())]


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """The result of a model for one photograph."""

    mask: np.ndarray  # class ids, int64, of shape (height, width)
    shares: dict[int, float]  # class id → share of the mask's pixels, largest first; only classes that occur
    mean_confidence: float  # as in [`hf_seg.inference.predict.Prediction`]
    input_size: tuple[int, int]  # width and height of `pixel_values`
    seconds: float  # from the photograph to the mask


def decode(path: str | Path, value_range: Sequence[float] | None = None) -> Image.Image:
    """Decode a file to an upright RGB image where hf_seg is not installed; elsewhere `build_page` is given the
    function that training uses."""
    with Image.open(path) as file:
        file.filename = ""  # else Pillow memory-maps the file, and an uncompressed, rotated TIFF is decoded wrongly
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):  # Pillow would clip more than 8 bits to black or white
        if value_range is None:
            raise PhotographError(f"{Path(path).name} has more than 8 bits per channel. Save it with 8 bits first.")
        shades = np.nan_to_num(np.interp(np.asarray(image), value_range, (0, 255)))
        image = Image.fromarray(shades.round().astype(np.uint8))
    return image.convert("RGB")


def read_photograph(path: str | Path, decode: Callable[[str | Path], Image.Image] = decode) -> Image.Image:
    """Read a photograph as RGB, upright and at its own size; raise a [`PhotographError`] if the file cannot be read or
    has more than `MAX_MEGAPIXELS`."""
    name = Path(str(path)).name
    try:
        with Image.open(path) as file:
            fits = file.width * file.height <= MAX_MEGAPIXELS * 1_000_000
        if fits:
            return decode(path)
    except PhotographError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above 179 megapixels
        pass
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        raise PhotographError(
            f"{name} cannot be read as an image: it is damaged, or not a JPEG, PNG, WebP, GIF, BMP or TIFF file."
        ) from error
    raise PhotographError(
        f"{name} has more than {MAX_MEGAPIXELS} megapixels, the most that this page accepts. Make it smaller first."
    )


@torch.inference_mode()
def segment(shown: ShownModel, photograph: Image.Image, size: tuple[int, int]) -> Segmented:
    """Segment one RGB photograph; `size` is the width and height of the mask in pixels."""
    start = time.perf_counter()
    framing, picture = Framing.of(shown.image_processor), (photograph.height, photograph.width)
    pixel_values, size = framing.prepare(shown.image_processor, photograph), size[::-1]

    def scores_of(batch: Tensor) -> tuple[Tensor, bool]:
        """Scores, float32 `(batch, C, h, w)`; and whether they are positive (of query models) instead of logits."""
        outputs = shown.model(pixel_values=batch.to(shown.model.device, shown.model.dtype))
        if "masks_queries_logits" not in outputs:
            return outputs.logits.float(), False
        process = shown.image_processor.post_process_semantic_segmentation
        return process(outputs, return_segmentation_scores=True)[0]["segmentation_scores"][None].float(), True

    if framing.resize == "crop":
        window = framing.size
        strips = slide(pixel_values, window, WINDOWS, lambda part: upsample(scores_of(part)[0], window).softmax(dim=1))
        ids, confidence = (cut(each, framing.box(picture)) for each in strongest(strips))
        mask = F.interpolate(ids[None, None].float(), size, mode="nearest-exact")[0, 0].long()
    else:
        scores, positive = scores_of(pixel_values[None])
        ids, confidence = upsampled_argmax(scores, size, positive, framing.size, framing.box(picture))
        mask = ids[0]
    counts = sorted(enumerate(torch.bincount(mask.flatten()).tolist()), key=lambda item: -item[1])
    return Segmented(
        mask=mask.cpu().numpy(),
        shares={index: count / mask.numel() for index, count in counts if count},
        mean_confidence=float(confidence.mean()),
        input_size=tuple(pixel_values.shape[:-3:-1]),
        seconds=time.perf_counter() - start,
    )


def problem(text: str) -> str:
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def show(models: Sequence[ShownModel], path: str | Path, decode: Callable[[str | Path], Image.Image] = decode) -> str:
    """Segment the photograph in a file; return HTML with each model's mask, legend and facts, or an error message."""
    try:
        photograph = read_photograph(path, decode)
    except PhotographError as error:
        return problem(str(error))
    shown_photograph = photograph.copy()
    shown_photograph.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    try:
        results = [segment(shown, photograph, shown_photograph.size) for shown in models]
    except (RuntimeError, ValueError) as error:  # a model without one input size refuses some pictures
        size = f"{photograph.width} × {photograph.height}"
        return problem(f"A photograph of {size} pixels cannot be segmented: {error}")
    source = data_url(shown_photograph, "JPEG", quality=90)
    panels = [panel(shown, result, source) for shown, result in zip(models, results, strict=True)]
    agreement = ""
    if len(models) == 2 and models[0].class_names == models[1].class_names:
        share = (results[0].mask == results[1].mask).mean()
        agreement = f'<p class="agreement">The two masks agree on {per_cent(share)} of the pixels.</p>'
    return f'<div class="results">{"".join(panels)}</div>{agreement}'


def panel(shown: ShownModel, result: Segmented, photograph: str) -> str:
    """HTML of one model's result; `photograph` is the photograph as a data URL."""
    height, width = result.mask.shape
    mask = data_url(Image.fromarray(np.array(shown.colours, dtype=np.uint8)[result.mask]), "PNG")
    seen = " × ".join(str(side) for side in result.input_size)
    facts = f"input {seen} pixels · mean confidence {per_cent(result.mean_confidence)} · {result.seconds:.2f} s"
    # as wide as the panel, but at most 60 % of the window's height
    box = f"aspect-ratio: {width} / {height}; width: min(100%, {60 * width / height:.1f}vh)"
    return (
        f'<section class="result"><h2>{escape(shown.name)}</h2><div class="stage"><div class="picture" style="{box}">'
        f'<img class="photograph" src="{photograph}" alt="The photograph">'
        f'<img class="mask" src="{mask}" alt="The mask of {escape(shown.name)}"></div></div>'
        f'{legend(shown, result)}<p class="facts">{facts}</p></section>'
    )


def legend(shown: ShownModel, result: Segmented) -> str:
    """HTML list of the classes that occur, each with its colour and share of the pixels."""
    lines = []
    for index, share in result.shares.items():
        colour = "rgb({}, {}, {})".format(*shown.colours[index])
        lines.append(
            f'<li><span class="swatch" style="background: {colour}"></span>'
            f'<span class="name">{escape(shown.class_names[index])}</span><span class="share">{per_cent(share)}</span>'
            f'<span class="bar"><span style="width: {share:.2%}; background: {colour}"></span></span></li>'
        )
    return f'<ul class="legend">{"".join(lines)}</ul>'


def escape(text: str) -> str:
    """Make text from outside printable and escape it for HTML. A Space does not have [`hf_seg.text.printable`]."""
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def per_cent(share: float) -> str:
    return f"{share * 100:.1f}\u00a0%" if share >= 0.0005 else "<\u00a00.1\u00a0%"


def data_url(image: Image.Image, file_format: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def build_page(
    models: Sequence[ShownModel],
    examples: Sequence[str | Path] = (),
    decode: Callable[..., Image.Image] = decode,
) -> gr.Blocks:
    """Build the page; its `launch(**LAUNCH)` serves it.

    Args:
        models: one, or two to be compared.
        examples: image files to try, shown as thumbnails.
        decode: takes an image file and the `value_range` of the models' training; returns an upright RGB image.
    """
    for shown in models[:1]:
        decode = functools.partial(decode, value_range=getattr(shown.image_processor, "value_range", None))

    def show_example(index: int) -> str:
        if index not in range(len(examples)):  # a request of another program, not of the page
            return problem(f"There is no example {index}, only 0 to {len(examples) - 1}.")
        return show(models, examples[int(index)], decode)

    names = " and ".join(shown.name for shown in models)
    subject = "The model" if len(models) == 1 else "Each of the two models"
    # uploads are deleted an hour after they were made, and when the server ends
    with gr.Blocks(title=f"Segmentation: {names}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            f"<h1>Semantic segmentation</h1><p>Drop a photograph. {subject} predicts a class for every pixel.</p>",
            apply_default_css=False,
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                label = f"Photograph, up to {MAX_MEGAPIXELS} megapixels"
                upload = gr.File(label=label, height=190, elem_id="upload")
                if examples:
                    samples, label = [[str(path)] for path in examples], "Or try one of these"
                    picked = gr.Dataset(label=label, components=["image"], samples=samples, type="index")
            with gr.Column(scale=3, min_width=300):
                label = "Opacity of the mask in per cent"
                opacity = gr.Slider(0, 100, OPACITY, step=1, label=label, elem_id="opacity")
                results = gr.HTML(WAITING, apply_default_css=False, elem_id="results")

        def show_upload(path: str) -> tuple[None, str]:  # None empties the upload field for the next photograph
            return None, show(models, path, decode)

        upload.upload(show_upload, upload, [upload, results], api_visibility="private")
        opacity.change(None, opacity, None, js=SET_OPACITY)
        if examples:
            picked.click(show_example, picked, results, api_visibility="private")
    return page


def load_models(folder: Path) -> list[ShownModel]:
    """Load the models that a Space's `models.json` names: folders next to it, or Hub ids with a revision."""
    models = []
    for entry in json.loads((folder / "models.json").read_text(encoding="utf-8")):
        inside = folder / entry["model"]
        source = str(inside) if inside.is_dir() else entry["model"]
        revision, trust = entry["revision"], entry["trust_remote_code"]  # `stage_space` has checked the code
        image_processor = AutoImageProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
        auto = AutoModelForUniversalSegmentation if entry["has_queries"] else AutoModelForSemanticSegmentation
        model = auto.from_pretrained(source, use_safetensors=True, revision=revision, trust_remote_code=trust).eval()
        models.append(ShownModel(entry["name"], model, image_processor, entry["colours"]))
    return models


if __name__ == "__main__":
    here = Path(__file__).parent
    build_page(load_models(here), sorted(here.glob("examples/*.jpg"))).launch(**LAUNCH)
