"""Every way a recipe can be wrong, by its message; and what a right one becomes."""

import dataclasses
import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_seg import cli
from hf_seg.problem import RecipeError
from hf_seg.recipe import Recipe, load_recipes, over_seeds, passthrough
from hf_seg.recipe.keys import TrainingRecipe, all_keys, expectation, fits, mismatch
from hf_seg.recipe.passthrough import (
    REFUSED,
    key_type,
    scheduler_types,
    trackers,
    training_arguments,
)
from hf_seg.recipe.rules import REFUSED_CONFIG, config_fields

RECIPES = Path(__file__).parents[2] / "recipes"


def smallest(**sections: dict) -> dict:
    """A recipe with nothing but what is required, and the given keys."""
    return {
        "model": {"arch": "fcn"} | sections.get("model", {}),
        "data": {"name": "synthetic_pet"} | sections.get("data", {}),
        "training": sections.get("training", {}),
    }


def save(folder: Path, name: str = "run", text: str | None = None, **sections: dict) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(smallest(**sections)) if text is None else text, encoding="utf-8")
    return path


def problems(*paths: Path | str, overrides: list[str] | None = None) -> list[str]:
    """The problems of a launch, each file by its name only."""
    with pytest.raises(RecipeError) as caught:
        load_recipes(paths, overrides or [])
    lines = [str(problem) for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(lines)
    for folder in sorted({str(Path(path).parent) for path in paths}, key=len, reverse=True):
        lines = [line.replace(folder + "/", "") for line in lines]
    return lines


def test_defaults_are_the_protocol_of_the_study(tmp_path):
    [recipe] = load_recipes([save(tmp_path)])
    assert (recipe.name, recipe.path, recipe.encoder_recipe) == ("run", tmp_path / "run.json", None)
    assert recipe.to_dict() == {
        "model": {
            "arch": "fcn",
            "path": None,
            "encoder": None,
            "init": "scratch",
            "encoder_weights": None,
            "freeze_encoder": False,
            "fast_head": True,
            "config": {},
        },
        "data": {
            "name": "synthetic_pet",
            "root": None,
            "path": None,
            "revision": None,
            "config_name": None,
            "image_column": None,
            "mask_column": None,
            "layout": None,
            "value_range": None,
            "image_size": 64,
            "resize": "stretch",
            "normalize": "none",
            "augment": "none",
            "max_train_samples": None,
            "max_validation_samples": None,
            "max_test_samples": None,
            "cache": "auto",
            "on_bad_pair": "stop",
        },
        "training": {
            "num_train_epochs": 30,
            "global_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "loss": "cross_entropy",
            "class_weights": None,
            "label_smoothing": 0.0,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "amsgrad": True,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "exponential",
            "lr_decay_per_epoch": 0.98,
            "encoder_lr_multiplier": 1.0,
            "layer_lr_decay": None,
            "ema_decay": None,
            "eval_every_epochs": 2,
            "early_stopping_patience": None,
            "seed": 0,
            "bf16": "auto",
            "fp16": "auto",
            "channels_last": "auto",
            "sync_batch_norm": "auto",
            "compile": "auto",
            "cuda_graphs": "auto",
            "report_to": "auto",
            "push_to_hub": False,
        },
    }


def test_other_training_arguments_are_kept_apart_and_saved_flat(tmp_path):
    training = {"dataloader_num_workers": 2, "tf32": True, "save_total_limit": None, "max_steps": 5}
    [recipe] = load_recipes([save(tmp_path, training=training)])
    assert recipe.training.arguments == training
    assert recipe.to_dict()["training"].items() >= training.items()
    assert "arguments" not in recipe.to_dict()["training"]


def test_whole_numbers_are_taken_for_float_keys(tmp_path):
    [recipe] = load_recipes([save(tmp_path, training={"learning_rate": 1})])
    assert type(recipe.training.learning_rate) is float


def test_schema_line_and_byte_order_mark_are_ignored(tmp_path):
    path = save(tmp_path, text="\ufeff" + json.dumps({"$schema": "x.json"} | smallest()))
    assert load_recipes([path])[0].model.arch == "fcn"


def test_recipes_share_no_mutable_value(tmp_path):
    paths = [save(tmp_path, "a"), save(tmp_path, "b")]
    first, second = load_recipes(paths)
    assert first.model.config is not second.model.config
    first, second = load_recipes(paths, ["--model.config", '{"dropout": 0.2}', "--model.config.output_stride", "16"])
    assert first.model.config == second.model.config == {"dropout": 0.2, "output_stride": 16}
    assert first.model.config is not second.model.config


NOT_JSON = [
    ('{"model": }', "is not JSON: Expecting value at line 1, column 11; correct it"),
    ('{"model": {},\n "data" {}}', "is not JSON: Expecting ':' delimiter at line 2, column 9; correct it"),
    ("", "is not JSON: Expecting value at line 1, column 1; correct it"),
    ('{"model": {}, "model": {}}', 'the key "model" is given twice; keep one of the two'),
    ('{"training": {"seed": 1, "seed": 2}}', 'the key "seed" is given twice; keep one of the two'),
    ('{"training": {"learning_rate": NaN}}', "NaN is not a finite number; write a finite number"),
    ('{"training": {"learning_rate": -Infinity}}', "-Infinity is not a finite number; write a finite number"),
    ('{"training": {"learning_rate": 1e999}}', "1e999 is not a finite number; write a finite number"),
    ("[" * 100_000, "is nested too deeply"),
    ("[]", "must be an object {...} with the sections model, data, training"),
    ("null", "must be an object {...} with the sections model, data, training"),
]


@pytest.mark.parametrize(("text", "message"), NOT_JSON, ids=range(len(NOT_JSON)))
def test_text_that_is_no_recipe(tmp_path, text, message):
    assert problems(save(tmp_path, text=text)) == [f"run.json: {message}"]


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parents[2] / "recipes" / "quickstart" / "quickstart-fcn.json"
    (tmp_path / "quickstart-fcn").mkdir()  # such as a run's folder
    assert [recipe.path for recipe in load_recipes(["quickstart-fcn"])] == [shipped]
    assert problems("quickstart-fnc") == ['quickstart-fnc: there is no such file; did you mean "quickstart-fcn"?']
    assert problems("runs/quickstart-fcn") == ["quickstart-fcn: there is no such file; check the path"]


def test_a_file_goes_before_a_shipped_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "own").rename("quickstart-fcn")
    assert [recipe.path for recipe in load_recipes(["quickstart-fcn"])] == [Path("quickstart-fcn")]


def test_files_that_cannot_be_read(tmp_path):
    save(tmp_path, "cityscapes")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    paths = [tmp_path / f"{name}.json" for name in ("cityscape", "nothing-like-it", "binary", "folder")]
    assert problems(*paths, tmp_path / "no-folder" / "run.json") == [
        'cityscape.json: there is no such file; did you mean "cityscapes.json"?',
        "nothing-like-it.json: there is no such file; check the path",
        "binary.json: is not text in UTF-8; save it as UTF-8",
        "folder.json: cannot be read: Is a directory; name a recipe file",
        "run.json: there is no such file; check the path",
    ]
    assert problems() == ["no recipe given; name one or more, such as quickstart-fcn"]


def test_sections(tmp_path):
    text = json.dumps({"modell": {}, "data": [], "seed": 1, "colour": 2})
    assert problems(save(tmp_path, text=text)) == [
        'run.json: modell: unknown section; did you mean "model"?',
        'run.json: seed: unknown section; it belongs to "training"',
        "run.json: colour: unknown section; sections are model, data, training",
        'run.json: model: the section is missing; add "model": {...}',
        "run.json: data: must be an object {...}",
        'run.json: training: the section is missing; add "training": {...}',
    ]


# A section and its keys; below, indented, what is said of them.
KEYS = r"""
training {"learning_rat": 1}
    learning_rat: unknown key; did you mean "learning_rate"?
training {"dataloader_num_worker": 1}
    dataloader_num_worker: unknown key; did you mean "dataloader_num_workers"?
training {"image_size": 64}
    image_size: unknown key; it belongs to "data"
data {"qqq": 1}
    qqq: unknown key; accepted: name, root, path, revision, config_name, image_column, mask_column, layout,
    value_range, image_size, resize, normalize, augment, max_train_samples, max_validation_samples, max_test_samples,
    cache, on_bad_pair
training {"learning_rate": "1e-4"}
    learning_rate: must be a number, above 0, at most 10, but is "1e-4"; write it without quotes
training {"learning_rate": true}
    learning_rate: must be a number, above 0, at most 10, but is true
training {"learning_rate": 0}
    learning_rate: must be a number, above 0, at most 10, but is 0
training {"learning_rate": 100000000000000000000}
    learning_rate: must be a number, above 0, at most 10, but is 100000000000000000000
training {"lr_decay_per_epoch": 1.01}
    lr_decay_per_epoch: must be a number, above 0, at most 1, but is 1.01
training {"seed": false}
    seed: must be a whole number, from 0 to 4294967295, but is false
training {"seed": 1.0}
    seed: must be a whole number, from 0 to 4294967295, but is 1.0
training {"num_train_epochs": 0}
    num_train_epochs: must be a whole number, from 1 to 100000, but is 0
training {"amsgrad": 1}
    amsgrad: must be true or false, but is 1
training {"bf16": "yes"}
    bf16: must be true or false or "auto", but is "yes"
training {"bf16": "true"}
    bf16: must be true or false or "auto", but is "true"; write it without quotes
training {"report_to": ["wandb", 1]}
    report_to: must be a string, or a list [...], each a string, but is ["wandb", 1]
training {"eval_every_epochs": null}
    eval_every_epochs: must be a whole number, from 1 to 100000, but is null
data {"image_size": 50}
    image_size: must be a whole number, from 32 to 2048, a multiple of 32, or a list of 2, each a whole number,
    from 32 to 2048, a multiple of 32, but is 50; the nearest is 64
data {"image_size": [1080, 1920]}
    image_size: must be a whole number, from 32 to 2048, a multiple of 32, or a list of 2, each a whole number,
    from 32 to 2048, a multiple of 32, but is [1080, 1920]; the nearest is [1088, 1920]
data {"image_size": [64, 64, 3]}
    image_size: must be a whole number, from 32 to 2048, a multiple of 32, or a list of 2, each a whole number,
    from 32 to 2048, a multiple of 32, but is [64, 64, 3]
data {"image_size": 4000}
    image_size: must be a whole number, from 32 to 2048, a multiple of 32, or a list of 2, each a whole number,
    from 32 to 2048, a multiple of 32, but is 4000
data {"augment": "flips"}
    augment: must be "none", "flip", "standard" or "strong", but is "flips"
data {"max_train_samples": 0}
    max_train_samples: must be a whole number, at least 1, or null, but is 0
data {"root": ""}
    root: must be a string, not empty, or null, but is ""
data {"cache": "False"}
    cache: is the text "False"; it must be true, false, "auto" or the name of a folder
model {"encoder": 18}
    encoder: must be a string, not empty, or null, but is 18; write it in quotes
model {"config": []}
    config: must be an object {...}, but is []
# arguments that are passed on
training {"dataloader_num_workers": "2"}
    dataloader_num_workers: must be a whole number, at least 0, but is "2"; write it without quotes
training {"logging_strategy": "epochs"}
    logging_strategy: must be "no", "steps" or "epoch", but is "epochs"
training {"adam_beta1": 1}
    adam_beta1: must be a number, at least 0, below 1, but is 1
training {"full_determinism": null}
    full_determinism: must be true or false, but is null
training {"max_steps": 2.5}
    max_steps: must be a whole number, but is 2.5
training {"hub_model_id": 3}
    hub_model_id: must be a string or null, but is 3; write it in quotes
# the model's configuration
model {"config": {"drop_out": 0.1}}
    config.drop_out: unknown key of "fcn"; did you mean "dropout"?
model {"config": {"zzz": 0.1}}
    config.zzz: unknown key of "fcn"; accepted: output_stride, logits_stride, dropout
model {"config": {"output_stride": "8"}}
    config.output_stride: must be a whole number, but is "8"; write it without quotes
model {"config": {"num_labels": 3}}
    config.num_labels: cannot be set: it follows from the data set; leave it out
model {"config": {"encoder": "resnet18"}}
    config.encoder: cannot be set: it has a key of its own; set model.encoder
model {"arch": "segformer", "config": {"stride": [2, 2, 2, 2]}}
    config.stride: unknown key of "segformer"; did you mean "strides"?
model {"arch": "segformer", "config": {"strides": [2, 2, 2]}}
    config.strides: needs one value for each of the 4 stages (num_encoder_blocks)
model {"arch": "segformer", "config": {"strides": [2, 2, 2, true]}}
    config.strides: must be a list [...], each a whole number, but is [2, 2, 2, true]
# keys that contradict each other
model {"arch": "segformer", "encoder": "resnet18"}
    encoder: is for "fcn" and "smp" only; leave it out; path names the model, or SegFormer's size, b0 to b5
model {"path": "mobilevit"}
    path: is not for "fcn"; leave it out, or set another arch
model {"arch": "segformer", "path": "b9", "encoder": null}
    path: "b9" is not a size of SegFormer; its sizes are b0, b1, b2, b3, b4, b5; arch "auto" takes any model
model {"arch": "fcn", "fast_head": false}
    fast_head: is for SegFormer only; leave it out
model {"arch": "auto"}
    path: is missing, and arch "auto" needs it; name a Hub id, a folder, a config.json or a model type of transformers
model {"arch": "auto", "path": "mobilevit", "encoder": "resnet18"}
    encoder: is for "fcn" and "smp" only; leave it out; path names the model, or SegFormer's size, b0 to b5
model {"arch": "auto", "path": "org/name", "init": "imagenet"}
    init: "imagenet" is for "fcn", "smp" and "segformer"; set "checkpoint", which takes the encoder's weights from path
model {"arch": "smp"}
    path: is missing, and arch "smp" needs it; it has unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3,
    deeplabv3plus, pan, upernet, segformer, dpt
model {"arch": "smp", "path": "u-net"}
    path: "u-net" is not an architecture of smp; did you mean "unet"?
model {"arch": "smp", "path": "dpt"}
    encoder: is missing, and "dpt" needs a ViT; name one, such as vit_small_patch16_dinov3
model {"arch": "smp", "path": "unet", "fast_head": false}
    fast_head: is for SegFormer only; leave it out
model {"arch": "smp", "path": "unet", "config": {"decoder_chanels": [8]}}
    config.decoder_chanels: unknown key of "unet"; did you mean "decoder_channels"?
model {"arch": "smp", "path": "unet", "config": {"decoder_channels": [8, "4"]}}
    config.decoder_channels: must be a list [...], each a whole number, but is [8, "4"]
model {"arch": "smp", "path": "fpn", "config": {"classes": 3}}
    config.classes: cannot be set: it follows from the data set; leave it out
model {"arch": "auto", "path": "mobilevit", "init": "checkpoint"}
    path: "mobilevit" has no weights; name them in model.encoder_weights, or a Hub id as path
model {"freeze_encoder": true}
    freeze_encoder: a frozen random encoder learns nothing; set it to false, or init to "imagenet"
model {"encoder_weights": "a/b"}
    encoder_weights: contradicts init "scratch"; leave it out, or set another init
model {"init": "checkpoint"}
    encoder_weights: is missing, and init "checkpoint" needs it; name a run's folder, a Hub id or another recipe
model {"init": "imagenet", "encoder_weights": "weights.pth"}
    encoder_weights: "weights.pth" is neither an existing path nor a Hub id of the form org/name; correct it
data {"root": "/data"}
    root: generated data has no folder; leave it out
data {"name": "folder"}
    root: is missing, and "folder" needs it; name the folder that holds images and masks
data {"on_bad_pair": "drop"}
    on_bad_pair: is for "folder" and "hub" only; leave it out
data {"value_range": [0, 1]}
    value_range: is for "folder" and "hub" only; leave it out
data {"name": "folder", "root": "/data", "value_range": [9, 0.5]}
    value_range: goes from 9 to 0.5; put the lower value first
data {"name": "folder", "root": "/data", "value_range": [9]}
    value_range: must be a list of 2, each a number, or null, but is [9]
data {"layout": "images+masks"}
    layout: is for "folder" only; leave it out
data {"mask_column": "label"}
    mask_column: is for "hub" only; leave it out, or set name to "hub"
data {"name": "hub", "root": "/data"}
    path: is missing, and "hub" needs it; name a Hub id, org/name, or a folder of Parquet files
data {"name": "hub", "path": "no such folder"}
    path: "no such folder" is neither an existing folder nor a Hub id of the form org/name; correct it
data {"name": "hub", "path": "org/name"}
    root: is missing: a data set on the Hub needs a folder for classes.json; make it with `hf-seg init org/name --out
    DIR`
data {"name": "hub", "path": "/", "revision": "main"}
    revision: is for a data set on the Hub only, and / is local; leave it out
data {"name": "hub", "path": "/", "image_column": "image", "mask_column": "image"}
    mask_column: is "image", the same as image_column; name two columns
training {"lr_scheduler_type": "constant", "warmup_steps": 10}
    warmup_steps: has no effect on the "constant" schedule; choose constant_with_warmup, or leave it out
training {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0.1}
    warmup_steps: has no effect on the "reduce_lr_on_plateau" schedule; leave it out, or choose another
training {"warmup_steps": 2.5}
    warmup_steps: is 2.5; set a whole number of steps, or a share of all steps below 1
training {"bf16": true, "fp16": true}
    fp16: is true, and bf16 too, but a run computes in one precision; set one of them to false
training {"encoder_lr_multiplier": 0}
    encoder_lr_multiplier: must be a number, above 0, at most 1000, but is 0
training {"layer_lr_decay": 1.5}
    layer_lr_decay: must be a number, above 0, at most 1, or null, but is 1.5
training {"ema_decay": 1}
    ema_decay: must be a number, above 0, below 1, or null, but is 1
training {"ema_decay": 0.9, "compile": true}
    ema_decay: is not tested with compile; leave it out, or set compile to false
training {"ema_decay": 0.9, "cuda_graphs": true}
    ema_decay: is not tested with cuda_graphs; leave it out, or set cuda_graphs to false
training {"early_stopping_patience": 0}
    early_stopping_patience: must be a whole number, from 1 to 100000, or null, but is 0
training {"compile": true, "cuda_graphs": true}
    cuda_graphs: compile is true, and makes CUDA graphs too; set one of them to false
training {"cuda_graphs": true, "gradient_accumulation_steps": 2}
    gradient_accumulation_steps: CUDA graphs cannot sum the gradients of parts; set it to 1, or cuda_graphs to false
training {"compile": true, "gradient_accumulation_steps": 2}
    gradient_accumulation_steps: CUDA graphs cannot sum the gradients of parts; set it to 1, or compile to false
training {"torch_compile_mode": "default"}
    torch_compile_mode: has no effect without compile; set compile to true, or leave it out
training {"lr_scheduler_kwargs": {}}
    lr_scheduler_kwargs: the exponential schedule takes none; set lr_decay_per_epoch instead
training {"lr_scheduler_type": "cosine", "lr_decay_per_epoch": 0.9}
    lr_decay_per_epoch: has no effect on the "cosine" schedule; leave it out
training {"lr_scheduler_type": "cosin"}
    lr_scheduler_type: there is no schedule "cosin"; did you mean "cosine"?
training {"gradient_accumulation_steps": 3}
    gradient_accumulation_steps: a batch of 64 cannot be divided by 3; choose one of 1, 2, 4, 8, 16, 32, 64
training {"loss": "dise"}
    loss: must be "cross_entropy", "dice", "lovasz" or "focal", or an object {...} in which each value is a number,
    above 0, at most 1000, not empty, but is "dise"
training {"loss": {"cross_entropy": 1, "dise": 0.5}}
    loss: must be "cross_entropy", "dice", "lovasz" or "focal", or an object {...} in which each value is a number,
    above 0, at most 1000, not empty, but is {"cross_entropy": 1, "dise": 0.5}
training {"loss": {"dice": -1}}
    loss: must be "cross_entropy", "dice", "lovasz" or "focal", or an object {...} in which each value is a number,
    above 0, at most 1000, not empty, but is {"dice": -1}
training {"loss": {}}
    loss: must be "cross_entropy", "dice", "lovasz" or "focal", or an object {...} in which each value is a number,
    above 0, at most 1000, not empty, but is {}
training {"class_weights": "balance"}
    class_weights: must be "balanced", a list [...], each a number, from 0 to 1000, or null, but is
    "balance"
training {"class_weights": [1, -0.5, 1]}
    class_weights: must be "balanced", a list [...], each a number, from 0 to 1000, or null, but is
    [1, -0.5, 1]
training {"class_weights": [0, 0, 0]}
    class_weights: has no weight above 0, so no pixel counts; correct it
training {"class_weights": "balanced", "loss": {"dice": 1, "lovasz": 1}}
    class_weights: has no effect on dice and lovasz, in which the classes of an image count the same; leave it out, or
    add cross_entropy to training.loss
training {"label_smoothing": 0.1, "loss": "focal"}
    label_smoothing: has no effect on focal; leave it out, or add cross_entropy to training.loss
training {"label_smoothing": 1}
    label_smoothing: must be a number, at least 0, below 1, but is 1
training {"report_to": "wanbd"}
    report_to: there is no tracker "wanbd"; did you mean "wandb"?
"""


def cases(table: str) -> list[tuple[str, dict, str]]:
    found: list[tuple[str, dict, str]] = []
    for line in table.strip().splitlines():
        if line.startswith("    "):
            section, keys, message = found.pop()
            found.append((section, keys, f"{message} {line.strip()}".strip()))
        elif not line.startswith("#"):
            section, _, keys = line.partition(" ")
            found.append((section, json.loads(keys), ""))
    return found


@pytest.mark.parametrize(("section", "keys", "message"), cases(KEYS))
def test_keys(tmp_path, monkeypatch, section, keys, message):
    monkeypatch.chdir(tmp_path)
    assert problems(save(tmp_path, **{section: keys})) == [f"run.json: {section}.{message}"]


@pytest.mark.parametrize("key", [key for key in REFUSED if key not in training_arguments()])
def test_refused_training_arguments_say_why(tmp_path, key):
    [line] = problems(save(tmp_path, training={key: None}))
    assert line == f"run.json: training.{key}: cannot be set: {'; '.join(filter(None, REFUSED[key]))}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "begins with a dot"),
        (".hidden", "begins with a dot"),
        (".mine.replaced", "begins with a dot"),
        ("mine.", "reserved on Windows"),
        ("mine ", "reserved on Windows"),
        ("con", "reserved on Windows"),
        ("NUL", "reserved on Windows"),
        ("Com1.best", "reserved on Windows"),
        ("LPT²", "reserved on Windows"),
        ("ä" * 123, "has 246 bytes, but the name of a run's folder may have at most 245"),
    ],
)
def test_names_that_no_folder_may_have(tmp_path, name, words):
    path = save(tmp_path, name)
    [line] = problems(path)
    assert words in line and line.endswith("; rename the file")
    if name == ".":
        return  # as weights it is a folder
    # nor where the file is only the encoder of another recipe
    mine = save(tmp_path, "mine", model={"init": "checkpoint", "encoder_weights": name})
    assert any(words in line for line in problems(mine))


@pytest.mark.parametrize("path", ["b2", "nvidia/mit-b2"])
def test_a_size_of_segformer(tmp_path, path):
    model = {"arch": "segformer", "path": path, "config": {"decoder_hidden_size": 64}}
    [recipe] = load_recipes([save(tmp_path, model=model)])
    sizes = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]}
    assert recipe.model.config == sizes | {"decoder_hidden_size": 64} and recipe.model.path == path
    written = tmp_path / "again.json"
    written.write_text(json.dumps(recipe.to_dict()))
    assert load_recipes([written])[0].to_dict() == recipe.to_dict()


@pytest.mark.parametrize("name", ["a.b", "console", "com", "com10", "lpt", "a.con", "ä" * 122, "two words"])
def test_names_that_a_folder_may_have(tmp_path, name):
    assert [recipe.name for recipe in load_recipes([save(tmp_path, name)])] == [name]


def test_names_that_get_too_long_with_a_seed(tmp_path):
    recipes = load_recipes([save(tmp_path, "a" * 240)])
    with pytest.raises(RecipeError, match="with the seed, the name has 246 bytes.*rename the file"):
        over_seeds(recipes, {"a" * 240}, [3, 4])


def test_accepted_combinations(tmp_path):
    training = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "lr_scheduler_kwargs": {"num_cycles": 1}}
    [recipe] = load_recipes([save(tmp_path, training=training | {"gradient_accumulation_steps": 4})])
    assert recipe.training.arguments == {"warmup_steps": 0.1, "lr_scheduler_kwargs": {"num_cycles": 1}}
    for warmup in (0, 0.1, 10):
        load_recipes([save(tmp_path, training={"warmup_steps": warmup})])
    weighted = {"loss": {"focal": 1, "dice": 0.5}, "class_weights": [0, 1, 2.5]}
    load_recipes([save(tmp_path, training=weighted)])
    load_recipes([save(tmp_path, model={"init": "imagenet", "freeze_encoder": True})])
    load_recipes([save(tmp_path, model={"init": "imagenet", "encoder_weights": "timm/resnet50.tv2_in1k"})])
    load_recipes([save(tmp_path, data={"name": "oxford_pet", "root": "somewhere"})])
    load_recipes(
        [save(tmp_path, model={"arch": "segformer", "config": {"num_encoder_blocks": 4, "drop_path_rate": 0}})]
    )


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({"arch": "segformer"}, {"layer_lr_decay": 0.9}, 'is for "fcn" only, whose layers timm knows; leave it out; '),
        ({"init": "imagenet", "freeze_encoder": True}, {"layer_lr_decay": 0.5}, "has no effect on a frozen encoder; "),
        (
            {"init": "imagenet", "freeze_encoder": True},
            {"encoder_lr_multiplier": 0.5},
            "has no effect on a frozen encoder; ",
        ),
    ],
)
def test_learning_rates_that_the_model_has_not(tmp_path, model, training, message):
    [line] = problems(save(tmp_path, model=model, training=training))
    assert line.startswith(f"run.json: training.{next(iter(training))}: {message}")


def test_trackers_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, find=importlib.util.find_spec: (
        None if name in ("wandb", "azureml") else name if name == "mlflow" else find(name)
    ))  # fmt: skip
    training = {"report_to": ["mlflow", "wandb", "azure_ml"]}
    assert problems(save(tmp_path, training=training)) == [
        f'run.json: training.report_to: "{name}" is not installed here; install its package, or set "none"'
        for name in ("wandb", "azure_ml")
    ]
    for report_to in ("mlflow", "auto", "none", "all", ["none"], []):
        load_recipes([save(tmp_path, training={"report_to": report_to})])


def test_number_beyond_all_bounds(tmp_path):
    # Python reads whole numbers of any length, and fails to make a float of this one.
    lines = problems(save(tmp_path, training={"learning_rate": 10**400, "warmup_steps": 10**400, "max_steps": 2**63}))
    assert [line.split(":")[1] for line in lines] == [
        " training.learning_rate",
        " training.warmup_steps",
        " training.max_steps",
    ]
    assert lines[0].endswith("but is 1" + "0" * 76 + "...")


def test_missing_keys(tmp_path):
    assert problems(save(tmp_path, text='{"model": {}, "data": {}, "training": {}}')) == [
        'run.json: model.arch: is missing; it must be "fcn", "segformer", "smp" or "auto"',
        'run.json: data.name: is missing; it must be "oxford_pet", "cityscapes", "synthetic_pet", '
        '"synthetic_cityscapes", "folder" or "hub"',
    ]


def test_one_mistake_makes_one_problem(tmp_path):
    # A wrong or misspelt key is not also held against the keys that depend on it.
    for model, key in [
        ({"init": "chekpoint", "encoder_weights": "a/b"}, "init"),
        ({"init": "checkpoint", "encoder_weight": "a/b"}, "encoder_weight"),
        ({"int": "imagenet", "freeze_encoder": True}, "int"),
        ({"arch": "fnc", "config": {"strides": [2, 2, 2, 2]}, "encoder": "resnet18"}, "arch"),
    ]:
        [line] = problems(save(tmp_path, model=model))
        assert line.startswith(f"run.json: model.{key}: ")


def test_all_problems_of_all_files_come_at_once(tmp_path):
    first = save(tmp_path, "first", model={"x": 1}, data={"image_size": 1}, training={"seed": -1, "output_dir": "x"})
    second = save(tmp_path, "second", text="{")
    third = save(tmp_path, "third", model={"init": "checkpoint", "encoder_weights": "frist"}, training={"lr": 1})
    starts = [": ".join(line.split(": ")[:2]) for line in problems(first, second, third)]
    assert starts == [
        "first.json: model.x",
        "first.json: data.image_size",
        "first.json: training.seed",
        "first.json: training.output_dir",
        "second.json: is not JSON",
        "third.json: training.lr",
        "third.json: model.encoder_weights",
    ]


def test_text_from_a_file_cannot_break_up_the_message(tmp_path):
    path = save(
        tmp_path,
        training={"a\nb: fake": 1, "report_to": "auto"},
        model={"init": "imagenet", "encoder_weights": "\ud800"},
    )
    lines = problems(path)
    assert len(lines) == 2 and "\n" not in "".join(lines)
    assert r"a\nb: fake" in lines[0] and r"\ud800" in lines[1]
    "".join(lines).encode()


def test_two_recipes_with_one_folder(tmp_path):
    (tmp_path / "other").mkdir()
    first, other = save(tmp_path), save(tmp_path / "other")
    assert problems(first, first) == ["run.json: is given twice; name it once"]
    assert problems(first, tmp_path / "other" / ".." / "run.json")[0].endswith("is given twice; name it once")
    with pytest.raises(RecipeError) as caught:
        load_recipes([first, other])
    assert str(caught.value) == f'{other}: would write to the same folder "run" as {first}; rename one of the two'


class TestEncoderOfAnotherRecipe:
    @staticmethod
    def needs(name: str, **model) -> dict:
        return {"init": "checkpoint", "encoder_weights": name} | model

    def test_is_loaded_and_comes_first(self, tmp_path):
        save(tmp_path, "base")
        path = save(tmp_path, "late", model=self.needs("base"))
        recipes = load_recipes([path], ["--training.seed", "7"])
        assert [(recipe.name, recipe.encoder_recipe, recipe.training.seed) for recipe in recipes] == [
            ("base", None, 0),  # not named, so not overridden
            ("late", "base", 7),
        ]

    def test_named_too_is_overridden_and_moved_to_the_front(self, tmp_path):
        paths = [save(tmp_path, "late", model=self.needs("base")), save(tmp_path, "z"), save(tmp_path, "base")]
        recipes = load_recipes(paths, ["--training.seed", "7"])
        assert [recipe.name for recipe in recipes] == ["base", "late", "z"]
        assert {recipe.training.seed for recipe in recipes} == {7}

    def test_may_be_anywhere_in_the_launch(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        recipes = load_recipes(
            [save(tmp_path, "late", model=self.needs("base")), save(tmp_path / "elsewhere", "base")]
        )
        assert [recipe.name for recipe in recipes] == ["base", "late"]

    def test_chain(self, tmp_path):
        save(tmp_path, "a")
        save(tmp_path, "b", model=self.needs("a"))
        c, d = save(tmp_path, "c", model=self.needs("b")), save(tmp_path, "d", model=self.needs("a"))
        assert [recipe.name for recipe in load_recipes([d, c])] == ["a", "d", "b", "c"]

    def test_problems_of_a_recipe_that_was_not_named_are_reported(self, tmp_path):
        save(tmp_path, "base", training={"seed": -1})
        lines = problems(save(tmp_path, "late", model=self.needs("base")))
        assert lines == ["base.json: training.seed: must be a whole number, from 0 to 4294967295, but is -1"]

    def test_circle(self, tmp_path):
        save(tmp_path, "b", model=self.needs("a"))
        [line] = problems(save(tmp_path, "a", model=self.needs("b")))
        remedy = "start one of them from something else"
        assert line == f"a.json: model.encoder_weights: is circular, a → b → a; {remedy}"
        [line] = problems(save(tmp_path, "self", model=self.needs("self")))
        assert line == f"self.json: model.encoder_weights: is circular, self → self; {remedy}"

    def test_unknown_name(self, tmp_path):
        save(tmp_path, "cityscapes-fcn-scratch")
        [line] = problems(save(tmp_path, "late", model=self.needs("cityscapes-fcn-scrach")))
        assert line == (
            'late.json: model.encoder_weights: "cityscapes-fcn-scrach" is neither a recipe in this launch or next to '
            "this file, nor an existing path, nor a Hub id of the form org/name; "
            'did you mean "cityscapes-fcn-scratch"?'
        )

    @pytest.mark.parametrize("weights", ["a", "runs/a", "org/name", "../somewhere"])
    def test_path_and_hub_id_are_left_alone(self, tmp_path, monkeypatch, weights):
        working = tmp_path / "working"
        (working / "runs" / "a").mkdir(parents=True)
        (working / "a").mkdir()
        (tmp_path / "somewhere").mkdir()
        monkeypatch.chdir(working)
        [recipe] = load_recipes([save(tmp_path, "late", model=self.needs(weights))])
        assert (recipe.encoder_recipe, recipe.model.encoder_weights) == (None, weights)

    def test_two_of_one_name_in_two_folders(self, tmp_path):
        paths = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir()
            save(folder, "base")
            paths.append(save(folder, f"late-{folder.name}", model=self.needs("base")))
        with pytest.raises(
            RecipeError, match='two/base.json: would write to the same folder "base" as .*one/base.json'
        ):
            load_recipes(paths)

    @pytest.mark.parametrize(
        ("base", "late", "difference"),
        [
            ({"arch": "segformer"}, {}, 'model.arch is "segformer" there and "fcn" here'),
            ({"encoder": "resnet18"}, {}, 'model.encoder is "resnet18" there and "resnet50" here'),
            (
                {"arch": "segformer"},
                {"arch": "segformer", "config": {"strides": [2, 2, 2, 2]}},
                "model.config.strides is [4, 2, 2, 2] there and [2, 2, 2, 2] here",
            ),
        ],
    )
    def test_of_another_architecture(self, tmp_path, base, late, difference):
        save(tmp_path, "base", model=base)
        [line] = problems(save(tmp_path, "late", model=self.needs("base", **late)))
        expected = f'"base" is a checkpoint of another architecture: {difference}; make them equal'
        assert line == f"late.json: model.encoder_weights: {expected}"

    def test_same_encoder_said_differently(self, tmp_path):
        save(tmp_path, "base", model={"encoder": "resnet50"})
        load_recipes([save(tmp_path, "late", model=self.needs("base", encoder=None, config={"dropout": 0.5}))])
        config = {"strides": [4, 2, 2, 2], "decoder_hidden_size": 128, "drop_path_rate": 0.2}
        save(tmp_path, "base", model={"arch": "segformer"})
        load_recipes([save(tmp_path, "late", model=self.needs("base", arch="segformer", config=config))])


class TestOverrides:
    def test_values_are_json_or_text(self, tmp_path):
        overrides = ["--training.learning_rate", "5e-4", "--training.amsgrad=false", "--training.run_name", "my run"]
        overrides += [
            "--model.config.output_stride",
            "16",
            "--data.max_train_samples=null",
            "--training.max_steps",
            "-1",
        ]
        [recipe] = load_recipes([save(tmp_path, data={"max_train_samples": 4})], overrides)
        assert (recipe.training.learning_rate, recipe.training.amsgrad) == (5e-4, False)
        assert recipe.training.arguments == {"run_name": "my run", "max_steps": -1}
        assert (recipe.model.config, recipe.data.max_train_samples) == ({"output_stride": 16}, None)

    def test_lists(self, tmp_path):
        path = save(tmp_path, model={"arch": "segformer", "config": {"drop_path_rate": 0.2}})
        [recipe] = load_recipes([path], ["--model.config.strides", "[2,2,2,2]", "--training.report_to=[]"])
        assert recipe.model.config == {"drop_path_rate": 0.2, "strides": [2, 2, 2, 2]}
        assert recipe.training.report_to == []

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["--training.learning_rat", "1"], 'training.learning_rat: unknown key; did you mean "learning_rate"?'),
            (["--training.seed", "x"], 'training.seed: must be a whole number, from 0 to 4294967295, but is "x"'),
            (["--training.seed", "NaN"], 'training.seed: must be a whole number, from 0 to 4294967295, but is "NaN"'),
            (
                ["--training.seed.x", "1"],
                'training.seed: must be a whole number, from 0 to 4294967295, but is {"x": 1}',
            ),
            (["--model.config.drop", "1"], 'model.config.drop: unknown key of "fcn"; did you mean "dropout"?'),
            (
                ["--training.output_dir", "x"],
                f"training.output_dir: cannot be set: {'; '.join(REFUSED['output_dir'])}",
            ),
            (["--train.seed", "1"], '--train.seed: there is no section "train"; did you mean "training"?'),
            (["--qqq.seed=1"], '--qqq.seed: there is no section "qqq"; sections are model, data, training'),
            (["--training.seed"], "--training.seed: has no value; write --training.seed VALUE"),
            (["--training.seed", "1", "--training.seed=2"], "--training.seed: is given twice; keep one of the two"),
            (["--seed", "3"], '--seed: is not understood; write --section.key value; did you mean "--training.seed"?'),
            (
                ["--fast"],
                "--fast: is not understood; write --section.key value, where section is model or data or training",
            ),
            (
                ["more.json"],
                "more.json: is not understood; write --section.key value, where section is model or data or training",
            ),
            (["-training.seed", "3"], None),
            (["--training.", "3"], None),
            (["--.seed", "3"], None),
            (["--training", "3"], None),
        ],
    )
    def test_wrong_ones(self, tmp_path, overrides, message):
        # Two recipes: what is wrong with the command line is said once.
        lines = problems(save(tmp_path, "a"), save(tmp_path, "b"), overrides=overrides)
        if message is None:
            assert lines[0].startswith(f"command line: {overrides[0]}: is not understood; write --section.key value")
        else:
            assert lines == [f"command line: {message}"]

    def test_flag_is_not_taken_for_a_value(self, tmp_path):
        lines = problems(save(tmp_path), overrides=["--training.run_name", "--training.seed", "3"])
        assert lines == ["command line: --training.run_name: has no value; write --training.run_name VALUE"]


class TestAgainstTransformers:
    """What is read from the source is what the library says when it is imported."""

    def test_every_training_argument_is_ours_or_passed_on_or_refused(self):
        from transformers import TrainingArguments

        assert all(kind.json_schema() for kind in training_arguments().values())  # each type is understood
        installed = {field.name: field for field in dataclasses.fields(TrainingArguments)}
        assert set(training_arguments()) == set(installed) - set(REFUSED)
        for name, kind in training_arguments().items():
            default = installed[name].default
            if default is not dataclasses.MISSING:
                assert fits(getattr(default, "value", default), kind), name
        for name, reason in REFUSED.items():
            if "has no such argument" in reason[0]:
                assert name not in installed

    def test_trackers(self):
        from transformers.integrations import integration_utils

        assert set(trackers()) == set(integration_utils.INTEGRATION_TO_CALLBACK)
        available = {"comet_ml": "comet", "azure_ml": "azureml", "flyte": "flytekit"}
        for name, installed in trackers().items():
            if name != "kubeflow":  # which is about the machine
                assert installed == getattr(integration_utils, f"is_{available.get(name, name)}_available")(), name

    def test_schedules(self):
        from transformers import SchedulerType

        assert scheduler_types() == tuple(member.value for member in SchedulerType)

    @pytest.mark.parametrize("arch", ["fcn", "segformer"])
    def test_configurations(self, arch):
        from transformers import SegformerConfig

        from hf_seg.models.configuration_fcn import FCNConfig

        config = {"fcn": FCNConfig, "segformer": SegformerConfig}[arch]()
        assert config_fields(arch)
        for name, (_, default) in config_fields(arch).items():
            value = getattr(config, name)
            assert (tuple(value) if isinstance(value, list) else value) == default
        assert not set(config_fields(arch)) & set(REFUSED_CONFIG)

    def test_arguments_of_smp(self):
        from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

        for path, model_class in MODEL_ARCHITECTURES_MAPPING.items():
            theirs = inspect.signature(model_class).parameters
            fields = config_fields("smp", path)
            assert {*fields} == {*theirs} - {*REFUSED_CONFIG, "kwargs"}
            assert {name: default for name, (_, default) in fields.items()} == {n: theirs[n].default for n in fields}
            assert all(fits(default, kind) for kind, default in fields.values() if not isinstance(default, tuple))

    def test_smp_is_not_installed(self, tmp_path, monkeypatch):
        path = save(tmp_path, model={"arch": "smp", "path": "unet", "config": {"decoder_channels": [8]}})
        start = {"init": "checkpoint", "encoder_weights": "run"}
        other = save(tmp_path, "other", model={"arch": "smp", "path": "fpn"} | start)
        assert len(load_recipes([path, other])) == 2
        monkeypatch.setattr(passthrough, "SMP", "segmentation_models_that_are_not_here")
        line = 'model.arch: "smp" needs segmentation_models_pytorch, which is not installed; '
        line += "run `pip install 'hf_seg[smp]'`"
        assert problems(path) == [f"run.json: {line}"]
        config_fields.cache_clear()
        assert problems(path, other) == [f"run.json: {line}", f"other.json: {line}"]
        config_fields.cache_clear()

    def test_annotation_that_is_not_understood(self):
        with pytest.raises(TypeError, match=r"cannot read the type annotation 'int \| Callable\[\[\], int\]'"):
            key_type("int | Callable[[], int]")

    def test_argument_whose_type_is_not_understood_is_left_to_the_trial_step(self, monkeypatch):
        monkeypatch.setattr(passthrough, "annotated_fields", lambda *_: [("new", "Callable[[], int]", None)])
        known = training_arguments.__wrapped__()
        assert list(known) == ["new"] and fits({"a": [1]}, known["new"])


def test_reading_a_recipe_imports_no_heavy_library(tmp_path):
    program = (
        "import sys; from hf_seg.recipe import load_recipes; "
        f"load_recipes([{str(save(tmp_path, training={'max_steps': 3}))!r}]); "
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'timm', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


class TestCommand:
    def test_check_prints_names_in_training_order(self, tmp_path, capsys):
        base, late = save(tmp_path, "base"), tmp_path / "late.json"
        save(tmp_path, "late", model={"init": "checkpoint", "encoder_weights": "base"})
        assert cli.main(["check", str(late), "--training.seed", "3"]) == 0
        first, second, last = capsys.readouterr().out.splitlines()
        assert (first, second) == (f"1. base ({base})", f"2. late ({late}, encoder of base)")
        assert last.startswith("not checked: data, weights, the Hub, and a training step")

    def test_check_prints_problems(self, tmp_path, capsys):
        path = save(tmp_path)
        assert cli.main(["check", str(path), "--training.sed=3"]) == 1
        captured = capsys.readouterr()
        said = 'error: command line: training.sed: unknown key; did you mean "seed"?\n'
        assert (captured.out, captured.err) == ("", said)

    def test_schema(self, capsys):
        assert cli.main(["schema"]) == 0
        assert json.loads(capsys.readouterr().out)["title"] == "hf_seg recipe"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "fcn", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KNOWN = [(section, key) for section, keys in all_keys().items() for key in [*keys, "config2"]]
KNOWN += [("training", key) for key in [*training_arguments(), *REFUSED]]


def load_or_refuse(folder: Path, text: str, overrides: list[str] = ()) -> None:
    """Whatever stands in a file: recipes, or a RecipeError with problems. And recipes survive being saved."""
    path = folder / "run.json"
    path.write_text(text, encoding="utf-8")
    try:
        [recipe] = load_recipes([path], overrides)
    except RecipeError as error:
        assert error.problems and all(problem.what for problem in error.problems)
        return
    path.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
    [again] = load_recipes([path])
    assert again == recipe


@settings(max_examples=300, deadline=None)
@given(document=VALUES | st.fixed_dictionaries({}, optional=dict.fromkeys(["model", "data", "training"], VALUES)))
def test_any_json_is_loaded_or_refused(tmp_path_factory, document):
    load_or_refuse(tmp_path_factory.getbasetemp(), json.dumps(document))


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_is_loaded_or_refused(tmp_path_factory, text):
    load_or_refuse(tmp_path_factory.getbasetemp(), text.replace("\r", ""))


@settings(max_examples=500, deadline=None)
@given(
    arch=st.sampled_from(["fcn", "segformer", "smp", "auto"]),
    changes=st.lists(st.tuples(st.sampled_from(KNOWN), VALUES | st.just("delete")), max_size=4),
    config=st.dictionaries(
        st.sampled_from([*config_fields("fcn"), *config_fields("segformer"), *REFUSED_CONFIG]), VALUES, max_size=2
    ),
)
def test_any_change_to_a_recipe_is_loaded_or_refused(tmp_path_factory, arch, changes, config):
    recipe = smallest(model={"arch": arch, "config": config})
    for (section, key), value in changes:
        if value == "delete":
            recipe[section].pop(key, None)
        else:
            recipe[section][key] = value
    load_or_refuse(tmp_path_factory.getbasetemp(), json.dumps(recipe))


@settings(max_examples=300, deadline=None)
@given(
    overrides=st.lists(
        st.text(max_size=8)
        | st.sampled_from([f"--{section}.{key}" for section, key in KNOWN])
        | VALUES.map(json.dumps),
        max_size=4,
    )
)
def test_any_command_line_is_taken_or_refused(tmp_path_factory, overrides):
    load_or_refuse(tmp_path_factory.getbasetemp(), json.dumps(smallest()), overrides)


@given(value=VALUES, annotation=st.sampled_from(["int | None", "float", "str | list[str]", "dict[str, bool]", "Any"]))
def test_what_does_not_fit_is_told_apart_from_what_does(value, annotation):
    kind = key_type(annotation)
    wrong = mismatch(value, kind)
    assert (wrong is None) == fits(value, kind)
    if wrong is not None:
        assert wrong[0].startswith(f"must be {expectation(kind.json_schema())}, but is ")


def test_the_recipe_class_needs_every_section():
    with pytest.raises(TypeError, match="data"):
        Recipe(name="x", path=Path("x"), model=None, training=TrainingRecipe())
