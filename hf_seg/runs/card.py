"""The model card of a run, from what the run recorded: no file is read, and nothing is said that the record lacks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_seg.runs.card_sections import METRICS, TASK, write_sections, write_summary
from hf_seg.text import address, code, markdown, printable, redact


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What binds the users of a model because of one thing that it was made from.

    Args:
        subject (`str`): that thing, in Markdown.
        text (`str`): the terms in a sentence or two.
        license (`str`, *optional*): the Hub's identifier, `"other"` or `"unknown"`; None when nobody has a say.
        name (`str`, *optional*), link (`str`, *optional*): with `"other"`, what the Hub shows in its place.
    """

    subject: str
    text: str
    license: str | None = None
    name: str | None = None
    link: str | None = None


# Terms of the weights that recipes start from by their own choice, by the beginning of the Hub id.
NVIDIA = {
    "license": "other",
    "name": "nvidia-segformer-license",
    "link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
    "text": "NVIDIA Source Code License for SegFormer. They and what derives from them may be used non-commercially "
    "only, by which the licence means for research or evaluation.",
}
WEIGHTS = {
    "nvidia/mit-b": NVIDIA,
    "nvidia/segformer-b": NVIDIA,
    "timm/resnet50.tv2_in1k": {
        "license": "bsd-3-clause",
        "text": "BSD 3-Clause, as their page on the Hub says. They were trained on ImageNet-1k, whose pictures have "
        "terms of their own.",
    },
}


def build_card(record: dict[str, Any], *, repo_id: str | None = None) -> ModelCard:
    """Build the card of a run.

    Args:
        record (`dict`): the content of a run's `results.json`. For a checkpoint of a run that goes on: `status`
            `"training"`, and of `train`, `validation` and `environment` what is known by then.
        repo_id (`str`, *optional*): the repository on the Hub that the card is for; by default the run's folder.

    Returns:
        `ModelCard`: metadata and text. Paths are reduced to their last part and tokens left out, so that nothing of
        the machine that the run was made on is published.
    """
    record = without_private_parts({key: value for key, value in record.items() if value is not None})
    record = _each_text(record, printable)
    # where things lie on that machine, which a recipe can do without
    record["recipe"]["data"].pop("cache", None)
    record["recipe"]["data"]["root"] = None
    terms = terms_of(record["model"]["init"], record["data"])
    metadata = _metadata(record, repo_id, terms)
    sections = write_sections(record, repo_id or f"runs/{record['recipe']['name']}", _terms_text(terms))
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return ModelCard(
        f"---\n{metadata.to_yaml()}\n---\n\n# {markdown(metadata.model_name)}\n\n{write_summary(record)}\n\n{body}\n"
    )


def without_private_parts(value: Any) -> Any:
    """A record without tokens, and with all its texts, names of classes among them, as [`redact`] makes them."""
    return _each_text(value, redact)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {change(key): _each_text(item, change) for key, item in value.items() if not key.endswith("token")}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def terms_of(init: dict[str, Any], data: dict[str, Any]) -> list[Terms]:
    """What binds a model: the terms of its initial weights, of the data that those were trained on, and of its own.

    Args:
        init (`dict`): where the initial weights came from, as `model.init` of a record.
        data (`dict`): the data set, as `data` of a record.

    Returns:
        `list[Terms]`: the oldest first.
    """
    encoder, found = init["encoder"], []
    if encoder.get("run"):
        found = terms_of(encoder["run"]["init"], encoder["run"]["data"])
    elif encoder["sha256"]:
        subject = f"Initial weights of the encoder ({code(encoder['source'])})"
        known = [terms for prefix, terms in WEIGHTS.items() if encoder["source"].startswith(prefix)]
        if known:
            found = [Terms(subject=subject, **known[0])]
        else:
            text = "hf_seg does not know their terms, which bind the model too: look them up where they come from."
            found = [Terms(subject=subject, text=text, license="unknown")]
    terms, name = data.get("terms"), data.get("license_name")
    own = Terms(
        subject=f"Data ({markdown(data.get('title', data['name']))})",
        text=terms or "hf_seg does not know its terms, which bind the model too: look them up where it comes from.",
        license="other" if name else None if terms else "unknown",
        name=name,
        link=data.get("homepage"),
    )
    return found if own in found else [*found, own]


def _terms_text(terms: list[Terms]) -> str:
    lines = [
        f"- {each.subject}: {markdown(each.text)}" + (f" <{address(each.link)}>" if each.link else "")
        for each in terms
    ]
    if not any(each.license for each in terms):
        lines.append("- Nobody else's weights or data are in the model: whoever publishes it chooses its licence.")
    return "\n".join(lines)


def _metadata(record: dict, repo_id: str | None, terms: list[Terms]) -> ModelCardData:
    data, size = record["data"], record["recipe"]["data"]["image_size"]
    scores = [
        EvalResult(
            task_type=TASK,
            task_name="Semantic segmentation",
            dataset_type=_identifier(data),
            dataset_name=f"{data['title']} at {size}×{size} pixels",
            dataset_split="test",
            metric_type=key,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for key, name in METRICS.items()
        if (value := record.get("test", {}).get(key)) is not None and not math.isnan(value)
    ]
    others = [each for each in terms if each.license == "other"]
    licenses = [each.license for each in terms if each.license]
    link = others[0].link if others else None
    if len(others) > 1 and repo_id:  # the Hub shows one, and the card has them all
        link = f"https://huggingface.co/{repo_id}#licence-and-terms"
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["semantic-segmentation", record["model"]["arch"], "hf_seg"],
        # the Hub takes one: what it has no identifier for, or else what is not known, comes before what is permissive
        license=next((kind for kind in ("other", "unknown", *licenses) if kind in licenses), None),
        license_name="-and-".join(each.name for each in others) or None,
        license_link=link,
        datasets=_datasets(record["model"]["init"], data) or None,
        base_model=_base_model(record["model"]["init"]),
        metrics=["mean_iou"] if scores else None,
        model_name=repo_id.rpartition("/")[2] if repo_id else record["recipe"]["name"],
        eval_results=scores or None,
    )


def _datasets(init: dict, data: dict) -> list[str]:
    """Identifiers of the model's data set and of those that its encoder saw; generated data is in no catalogue."""
    run = init["encoder"].get("run")
    mine = [_identifier(data)] if data.get("homepage") else []
    return list(dict.fromkeys([*mine, *(_datasets(run["init"], run["data"]) if run else [])]))


def _identifier(data: dict) -> str:
    return re.sub(r"[^a-z0-9]+", "-", data["title"].lower()).strip("-") or data["name"]


def _base_model(init: dict) -> str | None:
    encoder = init["encoder"]
    if encoder.get("run"):
        return _base_model(encoder["run"]["init"])
    return encoder["source"] if encoder.get("from_hub") else None
