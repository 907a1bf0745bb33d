"""The recipes in recipes/, the schema in docs/ and the tables of docs/recipes.md: none may fall behind the code."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hf_seg.data import load_spec
from hf_seg.models.build import build_model
from hf_seg.recipe import json_schema, load_recipes
from hf_seg.recipe.keys import ON_TIMM, all_keys, expectation
from hf_seg.recipe.passthrough import REFUSED
from hf_seg.recipe.rules import REFUSED_CONFIG, config_fields

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8"))

# name: data, arch, init, where the encoder's weights are from, frozen, config
V2, B0, LITE0 = "timm/resnet50.tv2_in1k", "nvidia/mit-b0", "timm/tf_efficientnet_lite0.in1k"
STRIDE2 = {"strides": [2, 2, 2, 2]}
FCN_STRIDE2 = {"output_stride": 32, "logits_stride": 2}
SHIPPED = {
    "cityscapes-fcn-finetune": ("cityscapes", "fcn", "imagenet", V2, False, {}),
    "cityscapes-fcn-lite0-finetune": ("cityscapes", "fcn", "imagenet", LITE0, False, {}),
    "cityscapes-fcn-lite0-scratch": ("cityscapes", "fcn", "scratch", None, False, {}),
    "cityscapes-fcn-scratch": ("cityscapes", "fcn", "scratch", None, False, {}),
    "cityscapes-segformer-finetune": ("cityscapes", "segformer", "imagenet", B0, False, {}),
    "cityscapes-segformer-scratch": ("cityscapes", "segformer", "scratch", None, False, {}),
    "cityscapes-segformer-stride2-scratch": ("cityscapes", "segformer", "scratch", None, False, STRIDE2),
    "oxford-pet-fcn-finetune": ("oxford_pet", "fcn", "imagenet", V2, False, {}),
    "oxford-pet-fcn-from-cityscapes": ("oxford_pet", "fcn", "checkpoint", "cityscapes-fcn-scratch", False, {}),
    "oxford-pet-fcn-from-cityscapes-frozen": (
        *("oxford_pet", "fcn", "checkpoint", "cityscapes-fcn-scratch", True, {}),
    ),
    "oxford-pet-fcn-from-cityscapes-half-lr": (
        *("oxford_pet", "fcn", "checkpoint", "cityscapes-fcn-scratch", False, {}),
    ),
    "oxford-pet-fcn-frozen": ("oxford_pet", "fcn", "imagenet", V2, True, {}),
    "oxford-pet-fcn-lite0-finetune": ("oxford_pet", "fcn", "imagenet", LITE0, False, {}),
    "oxford-pet-fcn-lite0-finetune-half-lr": ("oxford_pet", "fcn", "imagenet", LITE0, False, {}),
    "oxford-pet-fcn-lite0-frozen": ("oxford_pet", "fcn", "imagenet", LITE0, True, {}),
    "oxford-pet-fcn-lite0-scratch": ("oxford_pet", "fcn", "scratch", None, False, {}),
    "oxford-pet-fcn-scratch": ("oxford_pet", "fcn", "scratch", None, False, {}),
    "oxford-pet-fcn-stride2-scratch": ("oxford_pet", "fcn", "scratch", None, False, FCN_STRIDE2),
    "oxford-pet-mobilevit-scratch": (
        *("oxford_pet", "auto", "scratch", None, False, {"image_size": 64, "output_stride": 8}),
    ),
    "oxford-pet-segformer-finetune": ("oxford_pet", "segformer", "imagenet", B0, False, {}),
    "oxford-pet-segformer-from-cityscapes": (
        *("oxford_pet", "segformer", "checkpoint", "cityscapes-segformer-scratch", False, {}),
    ),
    "oxford-pet-segformer-from-cityscapes-half-lr": (
        *("oxford_pet", "segformer", "checkpoint", "cityscapes-segformer-scratch", False, {}),
    ),
    "oxford-pet-segformer-frozen": (
        *("oxford_pet", "segformer", "checkpoint", "cityscapes-segformer-scratch", True, {}),
    ),
    "oxford-pet-segformer-scratch": ("oxford_pet", "segformer", "scratch", None, False, {}),
    "oxford-pet-segformer-stride2-from-cityscapes": (
        *("oxford_pet", "segformer", "checkpoint", "cityscapes-segformer-stride2-scratch", False, STRIDE2),
    ),
    "oxford-pet-segformer-stride2-from-cityscapes-half-lr": (
        *("oxford_pet", "segformer", "checkpoint", "cityscapes-segformer-stride2-scratch", False, STRIDE2),
    ),
    "oxford-pet-segformer-stride2-frozen": (
        *("oxford_pet", "segformer", "checkpoint", "cityscapes-segformer-stride2-scratch", True, STRIDE2),
    ),
    "oxford-pet-segformer-stride2-scratch": ("oxford_pet", "segformer", "scratch", None, False, STRIDE2),
    "oxford-pet-unet-scratch": ("oxford_pet", "smp", "scratch", None, False, {}),
}
# name: the recipe that it is to be better than, at the same size
BEST = {
    "cityscapes-fcn-best": "cityscapes-fcn-scratch",
    "cityscapes-segformer-best": "cityscapes-segformer-scratch",
    "oxford-pet-fcn-best": "oxford-pet-fcn-scratch",
    "oxford-pet-fcn-lite0-best": "oxford-pet-fcn-lite0-finetune",
    "oxford-pet-segformer-best": "oxford-pet-segformer-scratch",
}
QUICKSTART = {"quickstart-fcn": "fcn", "quickstart-segformer": "segformer"}
# name: architecture, window, epochs of the field's steps (of 8 pictures, on the 2,550 of the training split)
FULL_SIZE = {
    "cityscapes-fcn-1024": ("fcn", (512, 1024), 80_000),
    "cityscapes-segformer-b0-1024": ("segformer", (1024, 1024), 160_000),
}
FILES = sorted(
    path for folder in (".", "quickstart", "full-size", "smp") for path in (ROOT / "recipes" / folder).glob("*.json")
)


def test_all_of_them_are_here_and_counted():
    assert {path.stem for path in FILES} == {*SHIPPED, *BEST, *QUICKSTART, *FULL_SIZE}
    assert len(FILES) == 38
    assert len(load_recipes(FILES)) == 38
    # recipes/*.json needs no extra
    assert {path.parent.name for path in FILES if '"smp"' in path.read_text(encoding="utf-8")} == {"smp"}


@pytest.mark.parametrize("name", SHIPPED)
def test_recipe_keeps_what_its_name_says_and_the_protocol_of_the_study(name):
    (path,) = (path for path in FILES if path.stem == name)
    recipe = load_recipes([path])[-1]
    model, data, training = recipe.model, recipe.data, recipe.training
    said = (data.name, model.arch, model.init, model.encoder_weights, model.freeze_encoder, model.config)
    assert said == SHIPPED[name]
    assert recipe.encoder_recipe == (model.encoder_weights if model.init == "checkpoint" else None)
    # Lite0's weights were trained on [-1, 1]; its scratch runs see the same, so that they differ in the weights alone
    lite0 = "-lite0-" in name
    assert model.encoder == ("tf_efficientnet_lite0" if lite0 else "resnet50" if model.arch in ON_TIMM else None)
    assert (data.image_size, data.normalize, data.augment) == (64, "inception" if lite0 else "none", "none")
    assert (data.max_train_samples, data.max_validation_samples, data.max_test_samples) == (None, None, None)
    assert (training.global_train_batch_size, training.num_train_epochs, training.eval_every_epochs) == (64, 30, 2)
    assert training.learning_rate == (5e-4 if name.endswith("-half-lr") else 1e-3)
    assert (training.amsgrad, training.lr_scheduler_type, training.lr_decay_per_epoch) == (True, "exponential", 0.98)
    assert (training.weight_decay, training.max_grad_norm, training.arguments) == (0.01, 1.0, {})
    assert training.push_to_hub is False


@pytest.mark.parametrize("name", BEST)
def test_a_better_recipe_has_the_size_of_the_one_it_beats_and_no_other_weights(name):
    ours, theirs = (load_recipes([ROOT / "recipes" / f"{each}.json"])[-1] for each in (name, BEST[name]))
    assert (ours.model.arch, ours.data.name) == (theirs.model.arch, theirs.data.name)
    assert ours.data.image_size == theirs.data.image_size == 64
    assert ours.model.init == "scratch" or "lite0" in name  # a row of its own
    assert ours.training.num_train_epochs <= 100
    spec = load_spec(ours.data)
    random = {"init": "scratch", "encoder_weights": None}
    counts = [build_model(replace(each.model, **random), spec)[0].num_parameters() for each in (ours, theirs)]
    assert 0.9 < counts[0] / counts[1] < 1.1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_spells_out_its_science(path):
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {"arch", "init", "freeze_encoder"} <= set(written["model"])
    assert {"name", "image_size", "normalize", "augment"} <= set(written["data"])
    assert {
        *("num_train_epochs", "global_train_batch_size", "learning_rate", "weight_decay", "amsgrad", "max_grad_norm"),
        *("lr_scheduler_type", "eval_every_epochs", "seed"),
    } <= set(written["training"])
    assert ("lr_decay_per_epoch" in written["training"]) == (written["training"]["lr_scheduler_type"] == "exponential")
    needed = {"fcn": "encoder", "segformer": "arch", "smp": "path", "auto": "path"}
    assert needed[written["model"]["arch"]] in written["model"]
    assert "encoder_weights" in written["model"] or written["model"]["init"] == "scratch"


@pytest.mark.parametrize("name", QUICKSTART)
def test_quickstart_is_small_and_needs_no_download(name):
    [recipe] = load_recipes([ROOT / "recipes" / "quickstart" / f"{name}.json"])
    assert recipe.model.arch == QUICKSTART[name]
    assert recipe.data.name.startswith("synthetic_")
    assert (recipe.model.init, recipe.data.image_size) == ("scratch", 64)
    assert recipe.data.max_train_samples <= 1024 and recipe.training.num_train_epochs <= 30


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_recipes_follow_the_field(name):
    [recipe] = load_recipes([ROOT / "recipes" / "full-size" / f"{name}.json"])
    model, data, training = recipe.model, recipe.data, recipe.training
    arch, window, steps = FULL_SIZE[name]
    assert (model.arch, model.init, data.name, data.size, data.resize) == (
        arch,
        "imagenet",
        "cityscapes",
        window,
        "crop",
    )
    assert (data.augment, data.normalize, training.global_train_batch_size) == ("standard", "imagenet", 8)
    assert training.num_train_epochs == math.ceil(steps / math.ceil(2550 / 8))
    # SegFormer's head has ten times the rate of its encoder, in its paper, too
    rates = (6e-5, 6e-4) if arch == "segformer" else (training.learning_rate,) * 2
    assert (training.learning_rate * training.encoder_lr_multiplier, training.learning_rate) == pytest.approx(rates)
    assert training.lr_scheduler_type == "polynomial" and training.arguments["lr_scheduler_kwargs"]["lr_end"] == 0


def test_a_needed_encoder_is_trained_first():
    names = [recipe.name for recipe in load_recipes([ROOT / "recipes" / "oxford-pet-segformer-frozen.json"])]
    assert names == ["cityscapes-segformer-scratch", "oxford-pet-segformer-frozen"]
    order = [recipe.name for recipe in load_recipes(sorted((ROOT / "recipes").glob("*.json"), reverse=True))]
    for name, (_, _, init, weights, _, _) in SHIPPED.items():
        if init == "checkpoint":
            assert order.index(weights) < order.index(name)


def test_effective_recipes_load_as_the_same_recipes(tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    files = [tmp_path / path.relative_to(ROOT) for path in FILES]
    effective = [recipe.to_dict() for recipe in load_recipes(files)]
    for path, recipe in zip(files, load_recipes(files), strict=True):
        path.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
    assert [recipe.to_dict() for recipe in load_recipes(files)] == effective


def test_saved_schema_is_the_generated_one():
    # Made by: hf-seg schema > docs/recipe.schema.json
    generated = json.loads(json.dumps(json_schema()))
    own = all_keys()
    for schema in (SCHEMA, generated):
        # What is passed on depends on the installed transformers; our own keys do not.
        arguments = schema["properties"]["training"]["properties"]
        schema["properties"]["training"]["properties"] = {key: arguments[key] for key in own["training"]}
    assert generated == SCHEMA


def follows(value, schema: dict) -> bool:
    """Whether a value is what the part of JSON Schema says that the keys use."""
    types = {"integer": int, "number": (int, float), "boolean": bool, "string": str, "object": dict, "array": list}
    if "anyOf" in schema:
        return any(follows(value, branch) for branch in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if schema["type"] == "null" or not isinstance(value, types[schema["type"]]):
        return schema["type"] == "null" and value is None
    if schema["type"] not in ("integer", "number"):
        return len(value) >= schema.get("minLength", 0) if schema["type"] == "string" else True
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
        and value % schema.get("multipleOf", 1) in (0, value % 1)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_follows_the_schema_it_names(path):
    schema = json.loads((ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8"))
    written = json.loads(path.read_text(encoding="utf-8"))
    named = path.parent / written.pop("$schema")
    assert named.resolve() == (ROOT / "docs" / "recipe.schema.json").resolve()
    assert set(written) == set(schema["required"])
    for section, keys in written.items():
        allowed = schema["properties"][section]
        assert set(allowed.get("required", [])) <= set(keys)
        for key, value in keys.items():
            assert follows(value, allowed["properties"][key]), key


def rows(section: str) -> list[str]:
    return [
        f"| `{key}` | {expectation(schema)} | "
        f"{'`' + json.dumps(schema['default']) + '`' if 'default' in schema else '**required**'} | "
        f"{schema['description']} |"
        for key, schema in all_keys()[section].items()
    ]


@pytest.mark.parametrize("section", all_keys())
def test_every_key_is_in_the_documentation(section):
    assert not [row for row in rows(section) if row not in DOCUMENT]  # shows the rows as they have to be
    assert "\n".join(rows(section)) in DOCUMENT  # in their order


@pytest.mark.parametrize("name", [*SHIPPED, *BEST, *QUICKSTART])
def test_every_recipe_is_in_the_documentation(name):
    assert f"`{name}`" in DOCUMENT


@pytest.mark.parametrize("key", [*REFUSED, *REFUSED_CONFIG, *config_fields("fcn")])
def test_every_refused_argument_is_in_the_documentation(key):
    assert f"`{key}`" in DOCUMENT
