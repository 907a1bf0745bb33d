import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import SegformerImageProcessor

from hf_seg.data import load_spec
from hf_seg.launch import parse_arguments, plan
from hf_seg.models.build import build_image_processor, build_model
from hf_seg.models.normalization import find_normalization
from hf_seg.problem import RecipeError
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import DataRecipe, ModelRecipe

TINY = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32}


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny SegFormer with the image processor that is given."""

    def make(processor=None):
        torch.manual_seed(0)
        spec = load_spec(DataRecipe(name="synthetic_pet"))
        build_model(ModelRecipe(arch="segformer", config=TINY), spec)[0].save_pretrained(tmp_path / "weights")
        if processor:
            processor.save_pretrained(tmp_path / "weights")
        return ModelRecipe(arch="segformer", config=TINY, init="checkpoint", encoder_weights=str(tmp_path / "weights"))

    return make


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"encoder": "tf_efficientnet_lite0"}, "inception"),
        ({"encoder": "resnet18"}, "imagenet"),
        ({"encoder": None}, "imagenet"),
        # the tag says more than the encoder: these are of adversarial training, on [-1, 1]
        ({"encoder": "tf_efficientnet_b0", "encoder_weights": "timm/tf_efficientnet_b0.ap_in1k"}, "inception"),
        ({"encoder": "tf_efficientnet_b0", "encoder_weights": "timm/tf_efficientnet_b0.aa_in1k"}, "imagenet"),
        ({"encoder": "tf_efficientnet_lite0", "encoder_weights": "some/one"}, "inception"),
        ({"arch": "smp", "path": "unet", "encoder": "tf_efficientnet_lite0"}, "inception"),
    ],
)
def test_timm_knows(section, expected):
    assert find_normalization(ModelRecipe(**{"arch": "fcn", "init": "imagenet"} | section)) == expected


@pytest.mark.parametrize("normalize", ["none", "imagenet", "inception"])
def test_the_image_processor_beside_the_weights_knows(checkpoint, normalize):
    model = checkpoint(build_image_processor(size=(64, 64), normalize=normalize))
    assert find_normalization(model) == normalize
    file = ModelRecipe(**vars(model) | {"encoder_weights": f"{model.encoder_weights}/model.safetensors"})
    assert find_normalization(file) == normalize


def test_weights_that_say_nothing(checkpoint):
    model = checkpoint()
    with pytest.raises(RecipeError) as caught:
        find_normalization(model)
    (problem,) = caught.value.problems
    assert problem.place == "data.normalize" and problem.remedy == "set it to imagenet, inception or none"
    assert f"{model.encoder_weights} does not say how pixels were normalised" in problem.what
    # MiT weights all have the same
    assert find_normalization(ModelRecipe(**vars(model) | {"init": "imagenet"})) == "imagenet"


def test_a_mean_without_a_name(checkpoint):
    model = checkpoint(SegformerImageProcessor(image_mean=[0.4, 0.5, 0.6]))
    with pytest.raises(RecipeError, match=r"data.normalize: .* has mean \[0.4, 0.5, 0.6\] and standard deviation \[0"):
        find_normalization(model)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"arch": "fcn", "encoder": "resnet5", "init": "imagenet"}, "model.encoder: .* did you mean"),
        ({"arch": "segformer", "init": "checkpoint", "encoder_weights": "no/where"}, "could not be fetched"),
        ({"arch": "fcn", "init": "imagenet", "encoder_weights": "timm/resnet50.nonsense"}, "could not be fetched"),
    ],
)
def test_what_is_wrong_with_the_weights_comes_first(section, said):
    with pytest.raises(RecipeError, match=said):
        find_normalization(ModelRecipe(**section))


def names_of(tmp_path, *paths):
    runs = plan(parse_arguments([*map(str, paths), "--output_dir", str(tmp_path / "runs")], None))
    return {run.recipe.name: run.recipe.data.normalize for run in runs}


def test_a_launch_has_names_only(write_recipe, tmp_path):
    lite0 = {"arch": "fcn", "encoder": "tf_efficientnet_lite0", "config": {}}
    scratch = write_recipe("scratch")
    given = write_recipe("given", model=lite0 | {"init": "imagenet"}, data={"normalize": "none"})
    first = write_recipe("first", model=lite0 | {"init": "imagenet"})
    second = write_recipe("second", model=lite0 | {"init": "checkpoint", "encoder_weights": "first"})
    # of recipes whose runs are not there yet; seeds rename them
    names = {"first": "inception", "second": "inception"}
    assert names_of(tmp_path, scratch, given, second, first) == {"scratch": "none", "given": "none"} | names
    seeds = {f"{name}-seed3": normalize for name, normalize in names.items()}
    assert names_of(tmp_path, second, first, "--seeds", "3") == seeds
    assert [recipe.data.normalize for recipe in load_recipes([scratch])] == ["none"]


def test_a_run_records_and_applies_it(write_recipe, run, tmp_path):
    torch.manual_seed(1)
    weights = tmp_path / "tiny.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)  # whose configuration has mean 0.5
    model = {"arch": "fcn", "encoder": "test_resnet", "init": "imagenet", "encoder_weights": str(weights)}
    data = {"max_train_samples": 8, "max_validation_samples": 2, "max_test_samples": 2}
    recipe = write_recipe("a", arch="fcn", model=model, data=data, training={"num_train_epochs": 1})
    assert run(recipe)[0] == 0
    assert json.loads((tmp_path / "runs/a/run.json").read_text())["recipe"]["data"]["normalize"] == "inception"
    assert json.loads((tmp_path / "runs/a/results.json").read_text())["recipe"]["data"]["normalize"] == "inception"
    processor = json.loads((tmp_path / "runs/a/preprocessor_config.json").read_text())
    assert processor["do_normalize"] and processor["image_mean"] == [0.5] * 3
    assert "scaled to [-1, 1]" in (tmp_path / "runs/a/README.md").read_text()
    assert ": finished, in" in run(recipe)[1]  # and not the run of another recipe
