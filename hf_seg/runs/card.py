"""The model card of a run, built from its record alone: it reads no file, and says nothing that the record lacks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_seg.recipe.keys import ON_TIMM, loss_parts
from hf_seg.recipe.rules import SEGFORMER_SIZES
from hf_seg.runs.page import PAGES, describe_size
from hf_seg.text import Markdown, code, markdown, printable, redact

TASK = "image-segmentation"
METRICS = {
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice (F1)",
    "mean_accuracy": "mean accuracy",
    "overall_accuracy": "pixel accuracy",
}
LOSSES = {
    "cross_entropy": "cross-entropy",
    "dice": "Dice loss",
    "lovasz": "Lovász-Softmax loss",
    "focal": "focal loss",
}
# models of smp, by model.path
SMP = {
    "unet": "U-Net",
    "unetplusplus": "U-Net++",
    "deeplabv3plus": "DeepLabV3+",
    "fpn": "FPN",
    "upernet": "UPerNet",
    "dpt": "DPT",
}
# the config values that are the same in all published sizes of SegFormer
SEGFORMER = {"num_encoder_blocks": 4, "num_attention_heads": [1, 2, 5, 8]}
SCALED = {
    "none": "scaled to [0, 1]",
    "imagenet": "scaled to [0, 1], then normalised by ImageNet's mean and standard deviation",
    "inception": "scaled to [-1, 1]",
}
# by data.resize: how the card names the input size that scores were computed at
AT = {"stretch": "at %s pixels", "letterbox": "within %s pixels", "crop": "through windows of %s pixels"}
INPUT = {
    "stretch": "resized to %s pixels",
    "letterbox": "resized to fit within %s pixels, with its shape kept, and padded with black to that size",
    "crop": "at its own scale, through overlapping windows of %s pixels (in training: one window, at a random scale "
    "from 0.5 to 2)",
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms that bind the users of a model because of one thing that it was made from."""

    subject: Markdown  # the thing that it was made from
    text: str
    license: str | None = None  # the Hub's identifier, "other" or "unknown"; None when the terms name no licence
    name: str | None = None  # with "other": the name that the Hub shows instead; `link` is its link
    link: str | None = None


# Terms of the weights that recipes use by default, by the beginning of the Hub id.
NVIDIA = {
    "license": "other",
    "name": "nvidia-segformer-license",
    "link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
    "text": "NVIDIA Source Code License for SegFormer. They and works derived from them may be used only "
    "non-commercially, by which the licence means for research or evaluation.",
}
# licences that timm names and that the Hub has an identifier for
ON_THE_HUB = {"apache-2.0", "apple-amlr", "apple-ascl", "bsd-3-clause", "cc-by-nc-4.0", "gemma", "mit"}
WEIGHTS = {
    "nvidia/mit-b": NVIDIA,
    "nvidia/segformer-b": NVIDIA,
    "timm/resnet50.tv2_in1k": {
        "license": "bsd-3-clause",
        "text": "BSD 3-Clause, according to their page on the Hub. They were trained on ImageNet-1k, whose pictures "
        "have their own terms.",
    },
}


def build_card(record: dict[str, Any], *, repo_id: str | None = None, revision: str | None = None) -> ModelCard:
    """Build the card of a run.

    Args:
        record (`dict`): the content of a run's `results.json`. For a checkpoint during training: `status`
            `"training"`, and as much of `train`, `validation` and `environment` as is known by then.
        repo_id (`str`, *optional*): the repository on the Hub that the card is for; by default the run's folder.
        revision (`str`, *optional*): its branch; None: main.

    Returns:
        `ModelCard`: metadata and text. Paths are cut to their last part and tokens left out, so that the card
        publishes no folders and secrets of the training machine.
    """
    record = {"train": {}, "environment": {}} | {key: value for key, value in record.items() if value is not None}
    record = _each_text(without_private_parts(record), printable)
    recipe, init = record["recipe"], record["model"]["init"]
    # paths on the training machine, which a recipe does not need
    recipe["data"].pop("cache", None)
    recipe["data"]["root"] = None
    terms, resize = terms_of(init, record["data"]), recipe["data"].get("resize", "stretch")
    metadata = _metadata(record, repo_id, terms)
    full = json.dumps({key: value for key, value in recipe.items() if key != "name"}, indent=2)
    values = {
        "metadata": Markdown(metadata.to_yaml()),
        "name": metadata.model_name,
        "source": repo_id or f"runs/{recipe['name']}",
        "revision": revision if revision != "main" else None,
        "splits": {split: record[split] for split in ("test", "validation") if record.get(split)},
        "scaled": Markdown(SCALED[recipe["data"]["normalize"]]),
        "at": _at(recipe["data"]),
        "input": INPUT[resize] % describe_size(recipe["data"]),
        "architecture": describe_model(recipe["model"], record["model"].get("class", "")),
        "loss": Markdown(describe_loss(recipe["training"])),
        "origins": [*_origins(init)],
        "terms": terms,
        "full_recipe": Markdown(full.replace("<", "\\u003c")),  # the same JSON, which cannot be read as HTML
        "metrics": METRICS | {"loss": "loss (cross-entropy)"},
    }
    return ModelCard(PAGES.get_template("runs/card.md.jinja").render(record | values))


def _at(data: dict) -> str:
    return AT[data.get("resize", "stretch")] % describe_size(data)


def describe_model(model: Mapping[str, Any], class_name: str) -> str:
    """Describe a recipe's `model` section, "U-Net with a resnet50 encoder"; `class_name` is its Python class."""
    arch, path = model["arch"], model.get("path")
    if arch in ON_TIMM:
        family = "FCN" if arch == "fcn" else SMP.get(path, path)
        return f"{family} with a {model.get('encoder') or 'resnet50'} encoder"
    if arch == "auto":
        return class_name.removesuffix("ForSemanticSegmentation") + " model"
    config = SEGFORMER | SEGFORMER_SIZES["b0"] | model["config"]
    sizes = [f"-{size.upper()}" for size, keys in SEGFORMER_SIZES.items() if config | SEGFORMER | keys == config]
    return "SegFormer" + "".join(sizes)  # of one size, or of none


def describe_loss(training: Mapping[str, Any]) -> str:
    """Describe the loss of a recipe's `training` section: "cross-entropy + 0.5 × Dice loss (label smoothing 0.1)"."""
    parts = loss_parts(training.get("loss", "cross_entropy"))
    terms = [LOSSES[name] if weight == 1 else f"{weight:g} × {LOSSES[name]}" for name, weight in parts.items()]
    options = ["pixels weighted by class"] if training.get("class_weights") else []
    options += [f"label smoothing {smoothing:g}"] if (smoothing := training.get("label_smoothing")) else []
    return " + ".join(terms) + (f" ({', '.join(options)})" if options else "")


def _origins(init: dict) -> Iterator[dict]:
    """Yield the origin of the initial weights; if that is another run, then the origin of its weights, and so on."""
    yield init
    if run := init["encoder"].get("run"):
        yield from _origins(run["init"])


SECRETS = ("hub_token", "push_to_hub_token")  # a recipe cannot have these keys, but a record of another program might


def without_private_parts(value: Any) -> Any:
    """Return a record without tokens, with [`redact`] applied to all its texts, names of classes included."""
    return _each_text(value, redact)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {change(key): _each_text(item, change) for key, item in value.items() if key not in SECRETS}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def terms_of(init: dict[str, Any], data: dict[str, Any]) -> list[Terms]:
    """Collect the terms that bind a model: those of its initial weights, of their training data, and of its own data.

    Args:
        init (`dict`), data (`dict`): `model.init` and `data` of a record.
    """
    encoder, found = init["encoder"], []
    if encoder.get("run"):
        found = terms_of(encoder["run"]["init"], encoder["run"]["data"])
    elif encoder["sha256"]:
        of = "" if init.get("init") == "model" else " of the encoder"
        subject = Markdown(f"Initial weights{of} ({code(encoder['source'])})")
        known = [terms for prefix, terms in WEIGHTS.items() if encoder["source"].startswith(prefix)]
        if known:
            found = [Terms(subject=subject, **known[0])]
        elif (name := encoder.get("license", "unknown")) not in ("other", "unknown"):
            text = f"{name}, according to timm. It also binds the model: read it on their page on the Hub."
            special = {"license": name} if name in ON_THE_HUB else {"license": "other", "name": name}
            link = f"https://huggingface.co/{encoder['source']}"
            found = [Terms(subject=subject, text=text, link=link, **special)]
        else:
            text = "hf_seg does not know their terms, which also bind the model: look them up at their source."
            found = [Terms(subject=subject, text=text, license="unknown")]
    terms, name = data.get("terms"), data.get("license_name")
    own = Terms(
        subject=Markdown(f"Data ({markdown(data.get('title', data['name']))})"),
        text=terms or "hf_seg does not know its terms, which also bind the model: look them up at its source.",
        license="other" if name else None if terms else "unknown",
        name=name,
        link=data.get("homepage"),
    )
    return found if own in found else [*found, own]


def _metadata(record: dict, repo_id: str | None, terms: list[Terms]) -> ModelCardData:
    data, recipe = record["data"], record["recipe"]
    *others, first = _origins(record["model"]["init"])
    seen = [data, *(each["encoder"]["run"]["data"] for each in others)]  # of the model and its encoder
    scores = [
        EvalResult(
            task_type=TASK,
            task_name="Semantic segmentation",
            dataset_type=_identifier(data),
            dataset_name=f"{data['title']} {_at(recipe['data'])}",
            dataset_split="test",
            metric_type=key,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for key, name in METRICS.items()
        if (value := record.get("test", {}).get(key)) is not None and not math.isnan(value)
    ]
    special = [each for each in terms if each.license == "other"]
    licenses = [each.license for each in terms if each.license]
    link = special[0].link if special else None
    if len(special) > 1 and repo_id:  # the Hub shows one link, and the card has all of them
        link = f"https://huggingface.co/{repo_id}#licence-and-terms"
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["semantic-segmentation", record["model"]["arch"], "hf_seg"],
        # the Hub takes one: "other", which it has no identifier for, or else "unknown", goes before permissive ones
        license=next((kind for kind in ("other", "unknown", *licenses) if kind in licenses), None),
        license_name="-and-".join(each.name for each in special) or None,
        license_link=link,
        # without data that has no homepage, such as generated data
        datasets=list(dict.fromkeys(_identifier(each) for each in seen if each.get("homepage"))) or None,
        base_model=first["encoder"]["source"] if first["encoder"].get("from_hub") else None,
        metrics=["mean_iou"] if scores else None,
        model_name=repo_id.rpartition("/")[2] if repo_id else recipe["name"],
        eval_results=scores or None,
    )


def _identifier(data: dict) -> str:
    return re.sub(r"[^a-z0-9]+", "-", data["title"].lower()).strip("-") or data["name"]
