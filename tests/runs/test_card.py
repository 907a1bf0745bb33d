import ast
import copy
import json
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import yaml
from hostile_names import NAMES
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from markdown_it import MarkdownIt
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_seg import train
from hf_seg.data import load_spec
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.build import build_image_processor
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import DataRecipe
from hf_seg.recipe.rules import SEGFORMER_SIZES
from hf_seg.runs.card import build_card, describe_model, without_private_parts
from hf_seg.text import markdown, printable

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "oxford-pet-segformer-scratch"
SCRATCH = {"source": "random initialisation", "from_hub": False, "sha256": None, "run": None}
SCRATCH |= {"tensors_loaded": 0, "tensors_fresh": 192}


def loaded_from(source, *, from_hub=False, run=None):
    """An encoder's provenance."""
    return {
        "source": source,
        "from_hub": from_hub,
        "sha256": "0123456789abcdef" * 4,
        "run": run,
        "tensors_loaded": 192,
        "tensors_fresh": 0,
    }


def scores_of(names, absent=()):
    """Scores that all differ, of classes of which some do not occur."""
    present = [name for name in names if name not in absent]
    confusion = [
        [(3 + i * j) * (a in present) * (b in present) for j, b in enumerate(names)] for i, a in enumerate(names)
    ]
    return {
        "loss": 0.71239,
        "mean_iou": 0.612345,
        "mean_dice": 0.654321,
        "mean_accuracy": 0.723456,
        "overall_accuracy": 0.834567,
        "per_category_iou": {name: 0.5 + 0.011111 * i for i, name in enumerate(present)},
        "per_category_accuracy": {name: 0.6 + 0.011111 * i for i, name in enumerate(present)},
        "confusion_matrix": confusion,
    }


@pytest.fixture
def record(write_recipe):
    """`record(data="cityscapes", arch="fcn", encoder={...}, absent=[...])`: what a finished run records."""

    def build(data="oxford_pet", arch="segformer", encoder=None, absent=()):
        (recipe,) = load_recipes([write_recipe("my-run", arch=arch, data={"name": data})])
        spec = load_spec(recipe.data)
        scores = scores_of(spec.class_names, absent)
        init = {"init": "scratch", "frozen": False, "encoder": encoder or SCRATCH}
        return {
            "recipe": {"name": recipe.name, **recipe.to_dict()},
            "status": "finished",
            "model": {
                "arch": arch,
                "parameters": 3_714_915,
                "multiply_adds": 105_426_944,
                "logits_size": [16, 16],
                "init": init | {"head": {"source": "fresh", "tensors_fresh": 16}},
            },
            "data": {
                "name": data,
                **spec.describe(),
                "fingerprint": "57efe7c7096c9da7",
                "counts": {"train": 32, "validation": 10, "test": 3669},
                "stored_size": {split: [128, 96] for split in ("train", "validation", "test")},
            },
            "train": {
                "epochs": 2.0,
                "steps": 8,
                "best_step": 4,
                "seconds": 754.321,
                "images_per_second": 12.3456789,
                "world_size": 1,
                "gradient_accumulation_steps": 1,
                "precision": "fp32",
                "channels_last": True,
                "seed": 0,
                "history": [{"eval_loss": 0.7, "epoch": 1.0, "step": 4}, {"eval_loss": 0.8, "epoch": 2.0, "step": 8}],
            },
            "validation": scores | {"mean_iou": 0.598765},
            "test": scores
            | {
                "roc_auc": {name: 0.9 for name in spec.class_names if name not in absent}
                | dict.fromkeys(absent, float("nan")),
                "cross_check": {"available": False, "reason": "no file /home/someone/mean_iou.py"},
            },
            "environment": {
                "hf_seg": "0.1",
                "torch": "2.15.0",
                "device": "cpu",
                "hardware": "a CPU",
                "cpu_count": "2",
            },
        }

    return build


def in_training(record, **known):
    return {key: record[key] for key in ("recipe", "model", "data")} | {"status": "training"} | known


def tables(card):
    """First cell of a row → its other cells, of all tables; and that every table's columns stand under each other."""
    rows = {}
    for table in re.findall(r"(?:^\|.*\n)+", str(card), re.MULTILINE):
        lines = table.splitlines()
        assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {"|", "-"}
        for line in lines:
            first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows.setdefault(first, []).append(others)
    return rows


def check_form(card):
    """What holds for every card: its metadata is what the Hub's schema asks for, its text is whole."""
    text = str(card)
    again = ModelCard(text)
    assert str(again) == text and again.data.to_dict() == card.data.to_dict()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "image-segmentation"
    assert {"semantic-segmentation", "hf_seg"} < set(metadata["tags"])
    assert metadata.get("license") in (None, "other", "unknown", "bsd-3-clause", "apache-2.0")
    assert ("license_name" in metadata) == ("license_link" in metadata) == (metadata.get("license") == "other")
    if "license_name" in metadata:
        assert re.fullmatch(r"[a-z0-9.-]+", metadata["license_name"])
        assert metadata["license_link"].startswith("https://")
    for name in [*metadata.get("datasets", []), *filter(None, [metadata.get("base_model")])]:
        validate_repo_id(name)

    assert "ore information needed" not in text and "None" not in text and "nan" not in text.split()
    body = text.split("---\n", 2)[2]
    sections = re.split(r"^## .+$", body, flags=re.MULTILINE)
    assert len(sections) >= 8 and all(section.strip() for section in sections)
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"\d\.\d{5}", prose), "a number with more digits than mean anything"
    tables(card)
    return metadata


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
@pytest.mark.parametrize("data", ["oxford_pet", "cityscapes", "synthetic_pet", "synthetic_cityscapes"])
def test_card_of_a_finished_run(record, arch, data):
    card = build_card(record(data, arch), repo_id="someone/streets")
    metadata = check_form(card)
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "streets" and {result.dataset_split for result in results} == {"test"}
    assert {result.metric_type: result.metric_value for result in results} == {
        "mean_iou": 0.6123,
        "mean_dice": 0.6543,
        "mean_accuracy": 0.7235,
        "overall_accuracy": 0.8346,
    }
    rows = tables(card)
    assert rows["mean IoU"] == [["0.6123", "0.5988"]] and rows["loss (cross-entropy)"] == [["0.7124", "0.7124"]]
    assert rows["parameters"] == [["3,714,915"]] and rows["time"] == [["12.6 minutes, validation included"]]
    assert "best validation mean IoU: epoch 1" in str(card)
    assert arch in metadata["tags"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("unet", "A U-Net with a resnet18 encoder"), ("fpn", "An FPN with a"), ("linknet", "A linknet with a")],
)
def test_card_of_a_model_of_smp(record, path, words):
    one = record()
    one["recipe"]["model"] |= {"arch": "smp", "path": path, "encoder": "resnet18", "config": {}}
    one["model"]["arch"] = "smp"
    card = build_card(one, repo_id="someone/pets")
    check_form(card)
    text = str(card)
    assert f"{words}" in text and "trust_remote_code=True" in text
    assert "(`modeling_smp.py`, `configuration_smp.py`) and imports torch, segmentation_models_pytorch" in text


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"arch": "fcn"}, "FCN with a resnet50 encoder"),
        ({"arch": "smp", "path": "unet", "encoder": "resnet18"}, "U-Net with a resnet18 encoder"),
        ({"arch": "segformer", "config": {"strides": [2, 2, 2, 2]}}, "SegFormer-B0"),
        ({"arch": "segformer", "config": SEGFORMER_SIZES["b2"] | {"strides": [2, 2, 2, 2]}}, "SegFormer-B2"),
        ({"arch": "segformer", "config": SEGFORMER_SIZES["b2"] | {"depths": [1, 1, 1, 1]}}, "SegFormer"),
        ({"arch": "segformer", "config": {"num_attention_heads": [1, 1, 1, 1]}}, "SegFormer"),
        ({"arch": "auto", "path": "mobilevit"}, "MobileViT model"),
    ],
)
def test_a_model_in_words(model, words):
    assert describe_model(model, "MobileViTForSemanticSegmentation") == words


def test_pictures_are_shown_only_where_the_terms_allow_it(record):
    for data in ("oxford_pet", "cityscapes"):
        text = str(build_card(record(data)))
        assert "samples.png" not in text and "because of its terms" in text
        assert {"plots/curves.png", "plots/confusion.png", "plots/roc.png"} <= set(re.findall(r"\((\S+png)\)", text))
    for data in ("synthetic_pet", "synthetic_cityscapes"):
        assert "(plots/samples.png)" in str(build_card(record(data)))


def test_absent_classes_are_said_to_be_absent(record):
    rows = tables(build_card(record("cityscapes", absent=["train", "bus"])))
    # "train" is also the name of a split
    assert ["does not occur", "does not occur", "does not occur", "0.00 %"] in rows["train"]
    assert rows["bus"] == [["does not occur", "does not occur", "does not occur", "0.00 %"]]
    assert rows["road"][0][:3] == ["0.5000", "0.6000", "0.9000"]
    # predicted and never there: the IoU is 0, the accuracy has no value
    one = record("cityscapes", absent=["bus"])
    one["test"]["per_category_iou"]["bus"] = 0.0
    assert tables(build_card(one))["bus"] == [["0.0000", "does not occur", "does not occur", "0.00 %"]]


MIT = loaded_from("nvidia/mit-b0", from_hub=True)
RESNET = loaded_from("timm/resnet50.tv2_in1k", from_hub=True)
DINO = loaded_from("timm/vit_small_patch16_dinov3.lvd1689m", from_hub=True) | {"license": "dinov3-license"}
LITE0 = loaded_from("timm/tf_efficientnet_lite0.in1k", from_hub=True) | {"license": "apache-2.0"}


@pytest.mark.parametrize(
    ("data", "encoder", "expected"),
    [
        ("oxford_pet", None, ("other", "oxford-iiit-pet-terms", "robots.ox.ac.uk", None)),
        ("cityscapes", None, ("other", "cityscapes-terms", "cityscapes-dataset.com", None)),
        ("synthetic_pet", None, (None, None, None, None)),
        ("synthetic_pet", MIT, ("other", "nvidia-segformer-license", "NVlabs/SegFormer", "nvidia/mit-b0")),
        (
            "oxford_pet",
            MIT,
            ("other", "nvidia-segformer-license-and-oxford-iiit-pet-terms", "NVlabs/SegFormer", "nvidia/mit-b0"),
        ),
        ("synthetic_pet", RESNET, ("bsd-3-clause", None, None, "timm/resnet50.tv2_in1k")),
        ("cityscapes", RESNET, ("other", "cityscapes-terms", "cityscapes-dataset.com", "timm/resnet50.tv2_in1k")),
        ("synthetic_pet", DINO, ("other", "dinov3-license", "huggingface.co/timm/vit_small", DINO["source"])),
        ("synthetic_pet", LITE0, ("apache-2.0", None, None, LITE0["source"])),
        ("synthetic_pet", LITE0 | {"license": "other"}, ("unknown", None, None, LITE0["source"])),
        ("synthetic_pet", loaded_from("org/thing", from_hub=True), ("unknown", None, None, "org/thing")),
        ("synthetic_pet", loaded_from("/home/someone/weights"), ("unknown", None, None, None)),
        ("oxford_pet", loaded_from("org/thing"), ("other", "oxford-iiit-pet-terms", "robots.ox.ac.uk", None)),
    ],
)
def test_licence_follows_from_weights_and_data(record, data, encoder, expected):
    license, name, link, base_model = expected
    card = build_card(record(data, encoder=encoder))
    metadata = check_form(card)
    assert (metadata.get("license"), metadata.get("license_name")) == (license, name)
    assert (link or "") in metadata.get("license_link", "") and metadata.get("base_model") == base_model
    text = str(card)
    assert ("NVIDIA Source Code License" in text) == (encoder is MIT)
    said = encoder in (None, MIT, RESNET, DINO, LITE0)
    assert ("hf_seg does not know their terms" in text) == (not said)
    assert ("according to timm. It also binds the model" in text) == (encoder in (DINO, LITE0))
    assert ("whoever publishes it chooses its licence" in text) == (license is None)
    assert ("No trained weights were loaded" in text) == (encoder is None)
    assert (encoder is None) or encoder["sha256"] in text


def test_the_terms_of_the_run_that_gave_the_encoder_are_inherited(record):
    city = record("cityscapes", encoder=MIT)
    run = {"name": "city-run", "data": city["data"], "init": city["model"]["init"]}
    pet = record("oxford_pet", encoder=loaded_from("city-run", run=run))
    card = build_card(pet)
    metadata = check_form(card)
    assert metadata["license_name"] == "nvidia-segformer-license-and-cityscapes-terms-and-oxford-iiit-pet-terms"
    assert metadata["base_model"] == "nvidia/mit-b0" and metadata["datasets"] == ["oxford-iiit-pet", "cityscapes"]
    assert "NVlabs" in metadata["license_link"]
    assert build_card(pet, repo_id="a/b").data.license_link == "https://huggingface.co/a/b#licence-and-terms"
    text = str(card)
    assert "The encoder is that of the run `city-run`, trained on Cityscapes" in text
    assert "Only for non-commercial purposes such as research" in text and "NVIDIA Source Code License" in text
    assert "only the head was trained" not in text
    pet["model"]["init"]["frozen"] = True
    assert "it was frozen, so only the head was trained" in str(build_card(pet))
    # the same data twice has one set of terms; a run of an older version has none that are known
    twice = build_card(record("cityscapes", encoder=loaded_from("city-run", run=run)))
    assert twice.data.license_name == "nvidia-segformer-license-and-cityscapes-terms"
    old = run | {"data": {"name": "cityscapes", "fingerprint": "0"}, "init": record()["model"]["init"]}
    text = str(build_card(record("synthetic_pet", encoder=loaded_from("old", run=old))))
    assert "license: unknown" in text and "hf_seg does not know its terms" in text


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({}, "cross-entropy of the logits enlarged to the mask, mean over the pixels of the global batch"),
        (
            {"loss": {"cross_entropy": 1, "dice": 0.5}, "class_weights": "balanced", "label_smoothing": 0.1},
            "cross-entropy + 0.5 × Dice loss (pixels weighted by class, label smoothing 0.1) of the logits enlarged "
            "to the mask, mean over the pixels of the global batch (of Dice and Lovász: over its images)",
        ),
    ],
)
def test_the_loss_of_a_card(record, training, text):
    whole = record()
    whole["recipe"]["training"] |= training
    card = build_card(whole)
    check_form(card)
    assert tables(card)["loss"] == [[text]]


def test_the_learning_rates_of_a_card(record):
    whole = record()
    whole["recipe"]["training"] |= {"encoder_lr_multiplier": 0.1, "layer_lr_decay": 0.9, "ema_decay": 0.999}
    for warmup, words in ((5, "5 steps"), (0.05, "5 % of all steps")):
        whole["recipe"]["training"]["warmup_steps"] = warmup
        card = build_card(whole)
        check_form(card)
        assert tables(card)["learning rate"] == [
            [
                f"0.001, times 0.98 after every epoch, after a warm-up of {words}, in the encoder times 0.1, in each "
                "of its layers times 0.9 of the layer above"
            ]
        ]
        assert tables(card)["weights"] == [["their moving average: each step keeps at most 0.999 of it"]]


def test_card_of_a_checkpoint_in_training(record):
    whole = record("synthetic_pet")
    card = build_card(in_training(whole), repo_id="a/b")
    check_form(card)
    text = str(card)
    assert "**Training is in progress.** These are the weights of a checkpoint from within its 2 epochs." in text
    assert "model-index" not in text and "plots/" not in text and "mean IoU |" not in text
    # as a callback of Trainer knows it: no classes
    validation = {"loss": 0.7, "mean_iou": 0.43219, "mean_accuracy": 0.5, "overall_accuracy": 0.6, "runtime": 1.2}
    known = {"train": {"epochs": 1.0, "steps": 4}, "validation": validation, "environment": whole["environment"]}
    card = build_card(in_training(whole, **known, test=None))
    check_form(card)
    assert "checkpoint after epoch 1 of 2." in str(card) and card.data.eval_results is None
    assert tables(card)["mean IoU"] == [["0.4322"]]
    # with classes
    card = build_card(in_training(whole, validation=whole["validation"]))
    check_form(card)
    assert tables(card)["boundary"][0][:2] == ["0.5222", "0.6222"] and "By class, on the validation split" in str(card)


def test_a_head_of_another_model(record):
    one = record(encoder=loaded_from("org/name", from_hub=True))
    counts = {"tensors_loaded": 14, "tensors_by_class": 2, "tensors_fresh": 0}
    head = {"source": "as the encoder", "classes_loaded": ["a"], "classes_fresh": ["b", "c"]} | counts
    one["model"]["init"] |= {"init": "model", "head": head}
    text = str(build_card(one))
    assert "- Head: 14 tensors of the same model, and 2 in which 1 classes keep their weights from there" in text
    assert "and 2 others were drawn at random.\n" in text and "missing there" not in text
    assert "Initial weights (`org/name`)" in text
    head["tensors_fresh"] = 3
    assert "were drawn at random; 3 tensors, missing there or of a different shape" in str(build_card(one))


def test_a_class_may_be_called_token():
    scores = {"per_category_iou": {"token": 0.5, "bus_token": 0.4}}
    assert without_private_parts(scores) == scores


def test_nothing_of_the_machine_and_no_token_gets_into_a_card(record):
    token = "hf_" + "aB3" * 12
    one = record(encoder=loaded_from("/home/someone/encoders/mine"))
    one["recipe"]["data"]["root"] = "/home/someone/data"
    one["recipe"]["model"]["encoder_weights"] = "/home/someone/encoders/mine"
    one["recipe"]["training"] |= {
        "hub_token": "abc",
        "deepspeed": "C:\\Users\\someone\\zero.json",
        "run_name": f"{token} in '/home/someone/x', see https://example.org/a/b",
        "fsdp_config": {"path": ["../someone/y", "file:///home/someone/z"]},
    }
    before = copy.deepcopy(one)
    text = str(build_card(one))
    assert one == before
    assert "someone" not in text and token not in text and "hub_token" not in text
    assert (
        '"encoder_weights": "mine"' in text
        and "192 tensors from `mine`" in text
        and '"deepspeed": "zero.json"' in text
    )
    assert "in 'x', see https://example.org/a/b" in text and '"root": null' in text


@pytest.mark.parametrize(
    "text", ["org/name", "runs/x", "timm/resnet50.tv2_in1k", "and/or", "a / b", "", "https://a.b/c", "hf_seg", "~5 %"]
)
def test_what_is_no_path_stays(text):
    assert without_private_parts({"a": [text, 1, None]}) == {"a": [text, 1, None]}


def test_hostile_names_are_text_in_a_card(record):
    """As names of classes, of data sets, of runs, of an encoder and of what it was made from."""
    names, whole = [printable(name) for name in NAMES.values()], record("synthetic_pet", "fcn")
    for name, shown in zip(NAMES.values(), names, strict=True):
        one = copy.deepcopy(whole)
        run = {"name": name, "data": whole["data"] | {"title": name}, "init": whole["model"]["init"]}
        one["model"]["init"]["encoder"] = loaded_from(name, run=run)
        scores = scores_of([*NAMES.values()])
        scores["roc_auc"] = dict.fromkeys(NAMES.values(), 0.9)
        one |= {"validation": scores, "test": scores}
        one["recipe"]["name"] = one["recipe"]["model"]["encoder_weights"] = name
        one["recipe"]["model"]["config"] = {name: [name]}
        one["data"] |= {"title": name, "class_names": [*NAMES.values()], "limits": [name], "split_rule": name}
        one["environment"]["hardware"] = name
        card = build_card(one)
        text = str(card)
        assert all(line.isprintable() for line in text.split("\n"))
        metadata = yaml.safe_load(text.split("---\n")[1])
        assert metadata == card.data.to_dict() and metadata["library_name"] == "transformers"
        assert metadata["model-index"][0]["name"] == shown
        dataset = metadata["model-index"][0]["results"][0]["dataset"]
        assert dataset["name"] == f"{shown} at 64×64 pixels" and dataset["type"]
        assert str(ModelCard(text)) == text
        body = text.split("---\n", 2)[2]
        assert body.startswith(f"\n# {markdown(shown)}\n")
        page = MarkdownIt("commonmark").enable("table").render(body)
        # all markup is the card's own
        tags = re.sub(r"<(code|a href=.https://[^<>]*|img src=.plots/[^<>]*|pre><code class=.[^<>]*)>", "", page)
        allowed = "h1 h2 p ul li table thead tbody tr th td strong blockquote details summary".split()
        assert set(re.findall(r"<([a-z0-9]+)", tags)) <= set(allowed)
        rows = [line for line in body.split("\n") if line.startswith("|")]
        assert page.count("<tr>") == len(rows) - page.count("<table>")
        by_class = next(t for t in re.findall("<table>.*?</table>", page, re.DOTALL) if "ROC AUC" in t)
        cells = [re.findall("<td>(.*?)</td>", row, re.DOTALL) for row in by_class.split("<tr>")[2:]]
        assert [unescape(first) for first, *_ in cells] == [name.strip() for name in names]
        assert {len(row) for row in cells} == {5}
        recipe = re.search("```json\n(.*?)\n```", text, re.DOTALL)[1]
        assert json.loads(recipe)["model"]["config"] == {shown: [shown]}
        python, shell = re.findall("```(?:python|sh)\n(.*?)\n```", text, re.DOTALL)[:2]
        call = ast.parse(python).body[1].value
        assert {key.arg: key.value.value for key in call.keywords}["model"] == f"runs/{shown}"
        assert shlex.split(shell)[2] == f"runs/{shown}"


def test_the_recipe_in_a_card_makes_the_run_again(record, tmp_path):
    one = record("cityscapes", "fcn")
    one["recipe"]["data"]["root"] = "/home/someone/data"
    shown = re.search(r"```json\n(.*?)\n```", str(build_card(one)), re.DOTALL)[1]
    path = tmp_path / "again.json"
    path.write_text(shown)
    (again,) = load_recipes([path])
    one["recipe"]["data"]["root"] = None
    assert {"name": "my-run", **again.to_dict()} == one["recipe"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_the_lines_that_use_a_model_do(record, arch, tmp_path):
    names = {0: "foreground", 1: "background", 2: "boundary"}
    if arch == "fcn":
        model = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", id2label=names))
    else:
        sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32}
        model = SegformerForSemanticSegmentation(SegformerConfig(id2label=names, **sizes))
    model.save_pretrained(tmp_path / "org" / "name")
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(tmp_path / "org" / "name")
    Image.new("RGB", (90, 70), (200, 90, 10)).save(tmp_path / "photograph.jpg")
    text = str(build_card(record(arch=arch), repo_id="org/name"))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code += "print({(mask['label'], mask['mask'].size, mask['mask'].getextrema()[1]) for mask in masks})"
    code += "\nimport sys; assert 'hf_seg' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    segments = eval(done.stdout.splitlines()[-1])
    assert segments and {size for _, size, _ in segments} == {(90, 70)} and {value for *_, value in segments} == {255}
    assert {label for label, *_ in segments} <= set(names.values())
    # what the card says of the message
    assert ("is not supported" in done.stderr) == ('logs that the model "is not supported"' in text) == (arch == "fcn")


@pytest.mark.parametrize("branch", ["seed-0", "main", None])
def test_the_lines_for_a_branch_load_it(record, branch):
    text = str(build_card(record(arch="fcn"), repo_id="org/name", revision=branch))
    if branch == "seed-0":
        assert 'model="org/name", revision="seed-0", trust_remote_code=True)' in text
        lines = "hf download org/name --revision seed-0 --local-dir name\nhf-seg predict name photographs/ --out masks"
    else:
        assert 'model="org/name", trust_remote_code=True)' in text
        lines = "hf-seg predict org/name photographs/ --out masks"
    assert f"```sh\n{lines}\n```" in text


def test_the_example_is_the_card_of_its_results():
    results = json.loads((EXAMPLE / "results.json").read_text())
    assert results["status"] == "finished" and results["recipe"]["data"]["name"] == "oxford_pet"
    card = build_card(results)
    check_form(card)
    assert (EXAMPLE / "README.md").read_text() == str(card)
    # its links lead somewhere, and no photograph is among them
    linked = re.findall(r"\]\((plots/\S+)\)", str(card))
    assert {path.relative_to(EXAMPLE).as_posix() for path in EXAMPLE.glob("*/*")} == set(linked)
    assert "plots/samples.png" not in linked


def test_the_numbers_of_the_example_are_those_of_its_results():
    results, card = json.loads((EXAMPLE / "results.json").read_text()), ModelCard.load(EXAMPLE / "README.md")
    test, validation, rows = results["test"], results["validation"], tables(card)
    four = "{:.4f}".format
    assert {each.metric_type: four(each.metric_value) for each in card.data.eval_results} == {
        key: four(test[key]) for key in ("mean_iou", "mean_dice", "mean_accuracy", "overall_accuracy")
    }
    for label, key in {
        "mean IoU": "mean_iou",
        "mean Dice (F1)": "mean_dice",
        "mean accuracy": "mean_accuracy",
        "pixel accuracy": "overall_accuracy",
        "loss (cross-entropy)": "loss",
    }.items():
        assert rows[label] == [[four(test[key]), four(validation[key])]]
    assert f"is {test['mean_iou']:.4f}.\n" in card.text
    total = sum(map(sum, test["confusion_matrix"]))
    assert len(results["data"]["class_names"]) == 3
    for name, pixels in zip(results["data"]["class_names"], test["confusion_matrix"], strict=True):
        (cells,) = rows[name]
        values = [test[key][name] for key in ("per_category_iou", "per_category_accuracy", "roc_auc")]
        assert cells == [*map(four, values), f"{100 * sum(pixels) / total:.2f} %"]
    for split, count in results["data"]["counts"].items():
        assert [f"{count:,} pictures"] in rows[split]
    assert rows["parameters"] == [[f"{results['model']['parameters']:,}"]]
    assert rows["multiply-adds"][0][0].startswith(f"{results['model']['multiply_adds'] / 1e6:.0f} M ")
    assert rows["fingerprint"] == [[f"`{results['data']['fingerprint']}`"]]
    assert rows["time"][0][0].startswith(f"{results['train']['seconds'] / 60:.1f} minutes")
    assert results["environment"]["hardware"] in rows["hardware"][0][0]
    for package in ("hf_seg", "torch", "transformers"):
        assert f"{package} {results['environment'][package]}" in rows["versions"][0][0]
    epoch = next(e["epoch"] for e in results["train"]["history"] if e["step"] == results["train"]["best_step"])
    assert rows["kept"][0][0].endswith(f": epoch {epoch:g}")


def test_the_hub_accepts_the_example(hub):
    ModelCard.load(EXAMPLE / "README.md").validate()


def test_the_example_says_what_the_code_says_today():
    results = json.loads((EXAMPLE / "results.json").read_text())
    spec = load_spec(DataRecipe(name="oxford_pet"))
    assert results["data"] | spec.describe() == results["data"]


@pytest.mark.slow
def test_a_run_records_what_its_card_says(write_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe("city", data={"name": "synthetic_cityscapes"}, training={"num_train_epochs": 1})
    pet = write_recipe(
        "pet", model={"init": "checkpoint", "encoder_weights": "city"}, training={"num_train_epochs": 1}
    )
    assert train.main([str(pet)]) == 0
    results = json.loads(Path("runs/pet/results.json").read_text())
    data, model, run = results["data"], results["model"], results["model"]["init"]["encoder"]["run"]
    assert data | load_spec(DataRecipe(name="synthetic_pet")).describe() == data
    assert data["stored_size"] == {"train": [96, 96], "validation": [96, 96], "test": [96, 96]}
    assert model["logits_size"] == [16, 16] and model["multiply_adds"] > 1e6
    assert run["name"] == "city" and run["data"]["title"] == "Generated streets"
    assert run["init"]["encoder"]["run"] is None and run["init"]["init"] == "scratch"

    card = build_card(results)
    check_form(card)
    assert "The encoder is that of the run `city`, trained on Generated streets" in str(card)
    linked = re.findall(r"\]\((plots/\S+)\)", str(card))
    assert len(linked) == 4 and all(Path("runs/pet", name).is_file() for name in linked)
    assert str(tmp_path) not in str(card)
