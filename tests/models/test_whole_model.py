"""`init: "model"`: the encoder and the head of another model, classes by name."""

import json

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_seg.data import load_spec
from hf_seg.data.spec import DatasetSpec
from hf_seg.models.build import build_model, encoder_of
from hf_seg.problem import RecipeError
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import DataRecipe, ModelRecipe
from hf_seg.runs.folder import Run
from hf_seg.runs.record import describe_provenance
from hf_seg.training.setup import build_initial_model

TINY = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 80, 128], "decoder_hidden_size": 32}
MOBILEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32],
    "aspp_out_channels": 16,
}
MODELS = {
    "fcn": {"arch": "fcn", "encoder": "test_resnet"},
    "smp": {
        **{"arch": "smp", "path": "unet", "encoder": "test_resnet"},
        "config": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    },
    "segformer": {"arch": "segformer", "config": TINY},
    "auto": {"arch": "auto", "path": "mobilevit", "config": MOBILEVIT},
}
LAST = {
    "fcn": "classifier.4",
    "smp": "segmentation_head.0",
    "segformer": "decode_head.classifier",
    "auto": "segmentation_head.classifier.convolution",
}


def spec(*names):
    return DatasetSpec(name="made", class_names=names, palette=((0,) * 3,) * len(names), label_table=(0,) * 256)


def build(names, seed=0, **section):
    torch.manual_seed(seed)
    return build_model(ModelRecipe(**section), spec(*names))


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_three_classes_from_a_segformer_of_150(tmp_path):
    torch.manual_seed(5)
    names = [f"thing {number}" for number in range(150)]
    names[17], names[98] = "sky", "cat"
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    source = SegformerForSemanticSegmentation(SegformerConfig(**TINY, **labels))
    source.train()(torch.rand(2, 3, 64, 64))  # so that the batch norm has statistics
    source.save_pretrained(tmp_path)
    section = MODELS["segformer"] | {"init": "model", "encoder_weights": str(tmp_path)}
    built, provenance = build(["cat", "dog", "sky"], **section)
    theirs, ours = state_of(source), state_of(built)
    scratch, _ = build(["cat", "dog", "sky"], **MODELS["segformer"])
    by_class = {f"decode_head.classifier.{name}" for name in ("weight", "bias")}
    assert ours.keys() == theirs.keys() and by_class < ours.keys()
    for name, tensor in ours.items():
        if name in by_class:
            drawn = scratch.state_dict()[name]
            assert torch.equal(tensor, torch.stack([theirs[name][98], drawn[1], theirs[name][17]])), name
        else:
            assert torch.equal(tensor, theirs[name]), name
    assert built.config.id2label == {0: "cat", 1: "dog", 2: "sky"}
    head = len(ours) - len(encoder_of(built).state_dict())
    assert provenance["encoder"]["tensors_loaded"] + head == len(ours) and provenance["init"] == "model"
    assert provenance["head"] == {
        "source": "as the encoder, classes by name",
        "tensors_loaded": head - 2,
        "tensors_by_class": 2,
        "tensors_fresh": 0,
        "classes_loaded": ["cat", "sky"],
        "classes_fresh": ["dog"],
    }
    assert json.loads(json.dumps(provenance)) == provenance
    assert describe_provenance(provenance).endswith(
        f"; head: {head - 2} tensors of the same model; 2 tensors by class, 2 classes kept, 1 fresh because that "
        "model has no class with their name (dog)"
    )


@pytest.mark.parametrize("arch", MODELS)
def test_classes_in_another_order(tmp_path, arch):
    """As many classes, so that no shape tells them apart."""
    source, _ = build(["a", "b", "c"], seed=7, **MODELS[arch])
    source.train()(torch.rand(2, 3, 64, 64))
    source.save_pretrained(tmp_path)
    section = MODELS[arch] | {"init": "model", "encoder_weights": str(tmp_path)}
    same, provenance = build(["a", "b", "c"], **section)
    theirs = source.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in same.state_dict().items())
    assert provenance["head"]["classes_fresh"] == [] and provenance["head"]["tensors_fresh"] == 0
    turned, provenance = build(["c", "new", "a"], **section)
    scratch = build(["c", "new", "a"], **MODELS[arch])[0].state_dict()
    for name in (f"{LAST[arch]}.weight", f"{LAST[arch]}.bias"):
        assert torch.equal(turned.state_dict()[name][[0, 2]], theirs[name][[2, 0]])
        assert torch.equal(turned.state_dict()[name][1], scratch[name][1])
    assert provenance["head"]["classes_loaded"] == ["c", "a"]


def test_a_head_of_another_width_is_fresh(tmp_path):
    source, _ = build(["a", "b"], seed=7, **MODELS["segformer"])
    source.save_pretrained(tmp_path)
    wide = {"arch": "segformer", "config": TINY | {"decoder_hidden_size": 48}}
    built, provenance = build(["a", "b"], **wide, init="model", encoder_weights=str(tmp_path))
    scratch = build(["a", "b"], **wide)[0].state_dict()
    for name, tensor in built.state_dict().items():
        # the bias of a class alone would be of no use
        fits = tensor.shape == source.state_dict()[name].shape and name != "decode_head.classifier.bias"
        assert torch.equal(tensor, (source.state_dict() if fits else scratch)[name]), name
    head, line = provenance["head"], describe_provenance(provenance)
    assert head["tensors_by_class"] == 0 and head["tensors_fresh"] > 5 and head["classes_loaded"] == []
    assert line.endswith(f"; {head['tensors_fresh']} fresh tensors, missing there or of a different shape")


def test_a_run_goes_on_from_another(write_recipe, tmp_path):
    data = load_spec(DataRecipe(name="synthetic_pet"))
    write_recipe("first", training={"seed": 5})
    path = write_recipe("second", model={"init": "model", "encoder_weights": "first"})
    first, second = (Run(recipe, tmp_path / "runs" / recipe.name) for recipe in load_recipes([path]))
    trained, _ = build_initial_model(first, data)
    trained.train()(torch.rand(2, 3, 64, 64))
    trained.save_pretrained(first.folder)
    built, described = build_initial_model(second, data)
    theirs = trained.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in built.state_dict().items())
    init = described["init"]
    assert init["encoder"]["source"] == "first" and init["head"]["classes_loaded"] == list(data.class_names)


def test_another_encoder_is_refused(tmp_path):
    build(["a"], **MODELS["segformer"])[0].save_pretrained(tmp_path)
    deeper = {"arch": "segformer", "config": TINY | {"depths": [2, 1, 1, 1]}}
    with pytest.raises(RecipeError, match="is a checkpoint of another architecture: model.config.depths"):
        build(["a"], **deeper, init="model", encoder_weights=str(tmp_path))
