"""The text of a model card, a function a section; each takes the record that `build_card` has been given.

What the record holds is text from outside: it goes through [`markdown`], [`code`] or [`link`], or into a table.
"""

from __future__ import annotations

import json
import math
import shlex

from hf_seg.text import Markdown, code, link, markdown, markdown_table

TASK = "image-segmentation"
METRICS = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
# The keys of SegformerConfig whose defaults make a SegFormer a B0.
SEGFORMER_SIZES = {"num_encoder_blocks", "depths", "hidden_sizes", "num_attention_heads", "decoder_hidden_size"}


def write_sections(record: dict, model: str, terms: str) -> dict[str, str]:
    """Write all sections of a card.

    Args:
        record (`dict`): of a run, without private parts.
        model (`str`): what `from_pretrained` takes to load the model.
        terms (`str`): the text of the section on licences.

    Returns:
        `dict[str, str]`: title → text, which is empty where the record has nothing for a section.
    """
    return {
        "How to use it": _usage(record, model),
        "Scores": _scores(record),
        "Pictures": _pictures(record),
        "Model": _model(record),
        "Initial weights": _initial_weights(record["model"]["init"]),
        "Data": _data(record),
        "Training": _training(record),
        "Licence and terms": terms,
        "Limits": _limits(record),
        "How to repeat it": _repeat(record),
    }


def write_summary(record: dict) -> str:
    """What the model is, in two sentences; before them, when training goes on, that it does."""
    data, size = record["data"], record["recipe"]["data"]["image_size"]
    names = f" ({', '.join(map(markdown, data['class_names']))})" if len(data["class_names"]) <= 6 else ""
    model = f"{'An' if record['model']['arch'] == 'fcn' else 'A'} {markdown(_architecture(record))}"
    text = (
        f"{model} for semantic segmentation into {len(data['class_names'])} classes{names}, trained on "
        f"{markdown(data['title'])} at {size}×{size} pixels by hf_seg. "
    )
    if record["status"] != "training":
        return (
            f"{text}Its mean IoU on the {data['counts']['test']:,} pictures of the test split, which were looked at "
            f"once and only after training, is {_score(record['test']['mean_iou'])}."
        )
    done, planned = record.get("train", {}).get("epochs"), record["recipe"]["training"]["num_train_epochs"]
    reached = f"after epoch {done:g} of {planned}" if done is not None else f"from within its {planned} epochs"
    return (
        f"> **Training is in progress.** These are the weights of a checkpoint {reached}.\n\n"
        f"{text}The test split is not looked at before training has ended."
    )


def _usage(record: dict, model: str) -> str:
    remote, quoted = record["model"]["arch"] == "fcn", json.dumps(model, ensure_ascii=False)
    text = (
        "```python\nfrom transformers import pipeline\n\n"
        f'segment = pipeline("{TASK}", model={quoted}{", trust_remote_code=True" if remote else ""})\n'
        'masks = segment("photograph.jpg")\n```\n\n'
        "Each of `masks` has a `label` and a `mask`: a PIL image of the photograph's size, 255 where the class is. "
    )
    if remote:
        text += (
            "The model's code comes with its weights (`modeling_fcn.py`, `configuration_fcn.py`) and imports torch, "
            "torchvision, timm and transformers; `trust_remote_code=True` lets it run. The pipeline then logs that "
            'the model "is not supported", since it is not on transformers\' built-in list, and works. In a process '
            "that has imported `hf_seg.models`, no `trust_remote_code` is needed and nothing is logged. "
        )
    return f"{text}Where hf_seg is installed, there is a command for folders of photographs:\n\n" + (
        f"```sh\nhf-seg predict {shlex.quote(model)} photographs/ --out masks\n```"
    )


def _scores(record: dict) -> str:
    splits = [split for split in ("test", "validation") if record.get(split)]
    if not splits:
        return ""
    size, counts = record["recipe"]["data"]["image_size"], record["data"]["counts"]
    header = ["", *(f"{split} ({counts[split]:,} pictures)" for split in splits)]
    names = METRICS | {"loss": "loss (cross-entropy)"}
    rows = [[name, *(_score(record[split].get(key)) for split in splits)] for key, name in names.items()]
    text = (
        f"At {size}×{size} pixels, summed over all pixels of a split; a mean is one over the classes that occur.\n\n"
        f"{markdown_table([header, *rows])}"
    )
    check = record.get("test", {}).get("cross_check", {})
    if check.get("available"):
        text += f"\n\nevaluate's `mean_iou` gives the test scores too, to within {check['largest_difference']:.0e}."
    if "per_category_iou" not in record[splits[0]]:
        return text
    return f"{text}\n\nBy class, on the {splits[0]} split:\n\n{_class_table(record[splits[0]], record['data'])}"


def _class_table(scores: dict, data: dict) -> str:
    pixels = [sum(row) for row in scores["confusion_matrix"]]
    columns = {"IoU": scores["per_category_iou"], "accuracy": scores["per_category_accuracy"]}
    if "roc_auc" in scores:
        columns["ROC AUC (one against the rest)"] = scores["roc_auc"]
    rows = []
    for name, count in zip(data["class_names"], pixels, strict=True):
        missing = "undefined" if count else "does not occur"
        cells = [_score(values.get(name), missing) for values in columns.values()]
        rows.append([name, *cells, f"{100 * count / max(sum(pixels), 1):.2f} %"])
    return markdown_table([["class", *columns, "share of the pixels"], *rows])


def _pictures(record: dict) -> str:
    if record["status"] == "training":  # they are drawn at the end
        return ""
    text = (
        "![Loss and validation mIoU during training](plots/curves.png)\n\n"
        "![Confusion matrix of the test split](plots/confusion.png)\n\n"
        "![ROC curves of the test split, one class against the rest](plots/roc.png)\n\n"
    )
    if record["data"]["publish_images"]:
        return f"{text}![Test pictures with their true and predicted masks](plots/samples.png)"
    return f"{text}Pictures of the data set with their masks are not shown here, because of its terms."


def _architecture(record: dict) -> str:
    model = record["recipe"]["model"]
    if model["arch"] == "fcn":
        return f"FCN with a {model['encoder'] or 'resnet50'} encoder"
    if model["arch"] == "auto":
        return f"{record['model']['class'].removesuffix('ForSemanticSegmentation')} model"
    return "SegFormer" if SEGFORMER_SIZES & model["config"].keys() else "SegFormer-B0"


def _input(record: dict) -> Markdown:
    data = record["recipe"]["data"]
    scaled = {
        "none": "scaled to [0, 1]",
        "imagenet": "scaled to [0, 1], less ImageNet's mean and by its standard deviation",
        "inception": "scaled to [-1, 1]",
    }[data["normalize"]]
    return Markdown(f"RGB, resized to {data['image_size']}×{data['image_size']} pixels, {scaled}")


def _model(record: dict) -> str:
    model, size = record["model"], record["recipe"]["data"]["image_size"]
    height, width = model["logits_size"]
    rows = [
        ["architecture", _architecture(record)],
        *([[code("path"), code(path)]] if (path := record["recipe"]["model"].get("path")) else []),
        *([code(key), code(json.dumps(value))] for key, value in record["recipe"]["model"]["config"].items()),
        ["parameters", f"{model['parameters']:,}"],
        ["multiply-adds", f"{model['multiply_adds'] / 1e9:.3g} G for a picture of {size}×{size} pixels"],
        ["input", _input(record)],
        ["output", f"logits of {len(record['data']['class_names'])} classes at {height}×{width} positions"],
    ]
    return markdown_table([["", ""], *rows])


def _initial_weights(init: dict) -> str:
    encoder, head = init["encoder"], init["head"]
    if not encoder["sha256"]:
        return (
            f"Random: all tensors, {encoder['tensors_fresh']} of the encoder and {head['tensors_fresh']} of the head, "
            "were drawn at random. No trained weights were loaded."
        )
    source, run = code(encoder["source"]), encoder.get("run")
    if encoder.get("from_hub"):
        source = link(encoder["source"], f"https://huggingface.co/{encoder['source']}")
    text = (
        f"- Encoder: all {encoder['tensors_loaded']} tensors from {source}"
        f"{'; it was frozen, so only the head was trained' if init['frozen'] else ''}.\n"
        f"- SHA-256 of the encoder's file: {code(encoder['sha256'])}\n"
        f"- Head: {head['tensors_fresh']} tensors, drawn at random."
    )
    if run:
        title = markdown(run["data"].get("title", run["data"]["name"]))
        text += (
            f"\n\nThe encoder is that of the run {code(run['name'])}, trained on {title} (fingerprint "
            f"{code(run['data']['fingerprint'])}). That run's own initial weights:\n\n{_initial_weights(run['init'])}"
        )
    return text


def _data(record: dict) -> str:
    data, recipe = record["data"], record["recipe"]["data"]
    rows = [["data set", link(data["title"], data["homepage"]) if data["homepage"] else data["title"]]]
    for split, count in data["counts"].items():
        limited = (
            f", the first of the split ({code(f'max_{split}_samples')})" if recipe[f"max_{split}_samples"] else ""
        )
        rows.append([split, Markdown(f"{count:,} pictures{limited}")])
    rows.append(["fingerprint", code(data["fingerprint"])])
    if data.get("stored_size"):
        sizes = dict.fromkeys("×".join(map(str, size)) for size in data["stored_size"].values())
        official = f" (the official ones: {data['official_size']})" if data.get("official_size") else ""
        rows.append(["first picture of each split, as stored", f"{', '.join(sizes)} pixels{official}"])
    rule = f"Splits: {markdown(data['split_rule'])} " if data["split_rule"] else ""
    return f"{markdown_table([['', ''], *rows])}\n\n{rule}Nothing was chosen by the test split."


def _training(record: dict) -> str:
    recipe, train, environment = record["recipe"], record.get("train", {}), record.get("environment", {})
    training, schedule = recipe["training"], recipe["training"]["lr_scheduler_type"]
    every = training["eval_every_epochs"]
    if schedule == "exponential":
        schedule = f"times {training['lr_decay_per_epoch']:g} after every epoch"
    amsgrad = " with AMSGrad" if training["amsgrad"] else ""
    rows = [
        ["input", _input(record)],
        ["augmentation", recipe["data"]["augment"]],
        ["loss", "cross-entropy of the logits enlarged to the mask, mean over the pixels of the global batch"],
        ["optimiser", f"AdamW{amsgrad}, weight decay {training['weight_decay']:g}"],
        ["learning rate", f"{training['learning_rate']:g}, {schedule}"],
        ["gradient clipping", f"to norm {training['max_grad_norm']:g}" if training["max_grad_norm"] else "none"],
        ["epochs", f"{training['num_train_epochs']}"],
        ["global batch", f"{training['global_train_batch_size']} pictures"],
        ["validation", "every epoch" if every == 1 else f"every {every} epochs and after the last"],
        ["kept", f"the checkpoint with the best validation mean IoU{_best(train)}"],
        ["seed", f"{training['seed']}"],
    ]
    if "precision" in train:
        rows.append(["precision", train["precision"] + (", channels_last" if train.get("channels_last") else "")])
    if "seconds" in train:
        rows.append(["time", f"{train['seconds'] / 60:.1f} minutes, validation included"])
    if "world_size" in train:
        rows.append(["processes", f"{train['world_size']}"])
    if environment:
        hardware = f"{environment['hardware']} ({environment['device']}), {environment['cpu_count']} CPU cores"
        versions = [name for name in environment if name not in ("hardware", "device", "cpu_count")]
        rows.append(["hardware", hardware])
        rows.append(["versions", ", ".join(f"{name} {environment[name]}" for name in versions)])
    full = json.dumps({key: value for key, value in recipe.items() if key != "name"}, indent=2)
    full = full.replace("<", "\\u003c")  # which JSON reads the same, and nobody takes for HTML
    return f"{markdown_table([['', ''], *rows])}\n\n" + (
        f"<details>\n<summary>The full recipe</summary>\n\n```json\n{full}\n```\n\n</details>"
    )


def _best(train: dict) -> str:
    best, history = train.get("best_step"), train.get("history", [])
    epoch = next((e["epoch"] for e in history if "eval_loss" in e and e.get("step") == best), None)
    return "" if epoch is None else f", so far of epoch {epoch:g}" if "seconds" not in train else f": epoch {epoch:g}"


def _limits(record: dict) -> str:
    size, (height, width) = record["recipe"]["data"]["image_size"], record["model"]["logits_size"]
    lines = [
        f"The model sees {size}×{size} pixels: a photograph is squeezed to a square, whatever its aspect ratio, and "
        f"decided on at {height}×{width} positions. Masks are enlarged from there to the photograph's size; what is "
        f"narrower than about {100 / min(height, width):.0f} % of the picture's side is mostly lost.",
        f"The scores are those of masks of {size}×{size} pixels. They do not say how well masks fit at a photograph's "
        "own size, and cannot be compared with scores taken at another size.",
        *map(markdown, record["data"].get("limits", [])),
        "How the model does on pictures of any other kind has not been measured.",
        "Its softmax scores are not calibrated: a score of 0.9 does not mean right nine times out of ten.",
        "This is one run with one seed. How much the scores vary from seed to seed has not been measured.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _repeat(record: dict) -> str:
    train, encoder = record.get("train", {}), record["model"]["init"]["encoder"]
    name, version = f"{record['recipe']['name']}.json", record.get("environment", {}).get("hf_seg")
    text = (
        f"Save the full recipe as {code(name)} and run it with hf_seg{f' {markdown(version)}' if version else ''}, on "
        f"data of the fingerprint above:\n\n```sh\naccelerate launch hf_seg/train.py {shlex.quote(name)}\n```\n\n"
        "Other hardware and other versions round otherwise, and end at slightly different scores."
    )
    if "precision" in train and record["recipe"]["training"]["bf16"] == "auto":
        text += f' The recipe\'s `"bf16": "auto"` meant {markdown(train["precision"])} here.'
    if encoder.get("run"):
        text += f" The encoder comes from the run {code(encoder['run']['name'])}, which has to be made first."
    elif encoder["sha256"] and not encoder.get("from_hub"):
        text += " The file of the encoder's weights is needed too; the recipe above shows only the end of its path."
    return text


def _score(value: float | None, missing: str = "undefined") -> str:
    return missing if value is None or math.isnan(value) else f"{value:.4f}"
