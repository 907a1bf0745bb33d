"""`arch: "auto"`: models that hf_seg knows nothing of but what transformers says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models.build import (
    build_image_processor,
    build_model,
    check_model,
    encoder_of,
    locate_encoder_weights,
)
from hf_seg.problem import RecipeError, Refusal
from hf_seg.recipe.keys import ModelRecipe
from hf_seg.runs.record import load_results
from hf_seg.scoring.loss import SegLoss

SPEC = DatasetSpec(
    name="three",
    class_names=("pet", "background", "boundary"),
    palette=((255, 0, 0), (0, 0, 0), (255, 255, 255)),
    label_table=build_label_table({1: 0, 2: 1, 3: 2}),
)
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
TINY = {
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32],
        "aspp_out_channels": 16,
    },
    "dpt": VIT
    | {
        "image_size": 64,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
    },
    "upernet": {
        "hidden_size": 16,
        "backbone_config": {
            "model_type": "convnext",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 12, 16, 20],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    },
}
EVERY = pytest.mark.parametrize("path", TINY)


def recipe(path, of="mobilevit", **keys):
    return ModelRecipe(arch="auto", path=str(path), **{"config": TINY[of]} | keys)


@pytest.fixture
def saved(tmp_path):
    """`saved(model type)`: the folder of a model of seven classes, and the model."""

    def save(path, **keys):
        torch.manual_seed(7)
        config = AutoConfig.for_model(path, num_labels=7, **TINY[path] | keys)
        model = AutoModelForSemanticSegmentation.from_config(config)
        model.save_pretrained(tmp_path / path)
        return tmp_path / path, model

    return save


def test_batch_norms_start_from_one():
    torch.manual_seed(0)
    model, _ = build_model(recipe("mobilevit"), SPEC)
    scales = [module.weight for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(scales) > 20 and all((scale == 1).all() for scale in scales)  # transformers draws them near 0
    # so that what tells the images apart reaches the logits
    theirs = AutoModelForSemanticSegmentation.from_config(AutoConfig.for_model("mobilevit", **TINY["mobilevit"]))
    images = torch.rand(8, 3, 64, 64)
    spread, before = (each.train()(pixel_values=images).logits.std(dim=0).mean() for each in (model, theirs))
    assert spread > 3 * before


@EVERY
def test_from_scratch_under_the_loss_of_all(path):
    torch.manual_seed(0)
    model, provenance = build_model(recipe(path, path), SPEC)
    assert type(model) in AutoModelForSemanticSegmentation._model_mapping.values()
    assert model.config.id2label == dict(enumerate(SPEC.class_names))
    assert provenance["encoder"]["source"] == "random initialisation"
    assert provenance["encoder"]["tensors_fresh"] == len(encoder_of(model).state_dict())
    assert provenance["head"]["tensors_fresh"] > 0
    labels = torch.randint(0, 3, (2, 64, 64))
    SegLoss()(model(pixel_values=torch.rand(2, 3, 64, 64)), labels).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name in unused if "auxiliary" in name]  # a head that this loss does not train
    assert len(unused) <= (6 if path == "dpt" else 0)  # DPT's own: a norm and half a layer that it leaves out


@EVERY
@pytest.mark.parametrize("frozen", [False, True])
def test_the_encoder_of_a_folder(saved, path, frozen):
    folder, source = saved(path)
    torch.manual_seed(0)
    model, provenance = build_model(recipe(folder, path, init="checkpoint", config={}, freeze_encoder=frozen), SPEC)
    theirs, ours = encoder_of(source).state_dict(), encoder_of(model).state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    head = {name for name, _ in model.named_parameters()} - {
        name for name, p in model.named_parameters() if any(p is q for q in encoder_of(model).parameters())
    }
    assert head and any(
        not torch.equal(model.get_parameter(n), source.get_parameter(n)) for n in head if "class" not in n
    )
    assert provenance["encoder"] | {"sha256": None} == {
        "source": str(folder),
        "from_hub": False,
        "sha256": None,
        "tensors_loaded": len(ours),
        "tensors_fresh": 0,
    }
    assert not any(p.requires_grad for p in encoder_of(model).parameters()) == frozen


@EVERY
def test_a_tensor_that_is_missing_is_refused_unless_nothing_uses_it(saved, path):
    folder, source = saved(path)
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    source.train()(pixel_values=torch.rand(2, 3, 64, 64)).logits.sum().backward()
    used = [name for name, parameter in source.named_parameters() if parameter.grad is not None]
    # what has no gradient is of no use, nor are the auxiliary head and the counters of batch norms
    kept = {name: tensor for name, tensor in tensors.items() if name in used or "running" in name}
    assert len(kept) < len(tensors) or path == "upernet"
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load_segmenter(folder, device="cpu")
    for gone in (used[0], used[len(used) // 2], used[-1]):
        save_file(
            {n: t for n, t in tensors.items() if n != gone}, folder / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises(Refusal, match=f"has no weights for {gone}, so it is not a trained"):
            load_segmenter(folder, device="cpu")


def test_a_config_file_gives_the_architecture_only(saved):
    folder, source = saved("mobilevit")
    model, provenance = build_model(recipe(folder / "config.json", config={"aspp_out_channels": 8}), SPEC)
    assert model.config.hidden_sizes == source.config.hidden_sizes and model.config.aspp_out_channels == 8
    assert provenance["encoder"]["tensors_loaded"] == 0


def test_an_encoder_of_other_sizes_is_refused_before_it_is_read(saved):
    folder, _ = saved("mobilevit", hidden_sizes=[16, 24, 40])
    with pytest.raises(RecipeError, match=r"its encoder's .* is of \(40.* there and of \(32.* here"):
        locate_encoder_weights(recipe("mobilevit", init="checkpoint", encoder_weights=str(folder)))
    other = recipe("mobilevit", config=TINY["mobilevit"] | {"hidden_sizes": [16, 24, 40]})
    with pytest.raises(RecipeError, match="make them equal, or name another run"):
        check_model(recipe("mobilevit", init="checkpoint", encoder_weights="other"), other)


def test_weights_that_are_not_all_there(saved):
    from safetensors.torch import load_file, save_file

    folder, _ = saved("mobilevit")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "encoder" in name and name.endswith("weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match="is missing"):
        build_model(recipe(folder, init="checkpoint"), SPEC)


def config_of(folder, **keys):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keys))
    return folder


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = config_of(tmp_path / "remote", model_type="remote", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(RecipeError, match="does not give a configuration"):
        check_model(recipe(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "config", "message"),
    [
        ("mobilevitt", {}, "model.path: mobilevitt does not give a configuration"),
        ("org/name", {}, "a Hub id (offline, one that is in the cache)"),
        ("bert", {}, "model.path: bert is a model of type bert, and transformers has no semantic segmentation model"),
        (
            "mobilevit",
            {"hiden_sizes": [1]},
            'model.config.hiden_sizes: unknown key of "mobilevit"; did you mean "hidden_sizes"?',
        ),
        ("mobilevit", {"num_labels": 4}, "model.config.num_labels: cannot be set: it follows from the data set"),
        ("mobilevit", {"hidden_sizes": [15, 24, 32]}, "model.config: mobilevit cannot be built"),
        ("upernet", {"use_auxiliary_head": True}, "all models have the same loss"),
    ],
)
def test_what_is_refused(path, config, message):
    with pytest.raises(RecipeError) as refusal:
        check_model(recipe(path, config=config))
    assert message in str(refusal.value)


def test_a_size_that_a_model_does_not_take():
    model = recipe("data2vec-vision", config=VIT | {"image_size": 64, "out_indices": [1, 2, 3, 4]})
    check_model(model, size=(64, 64))
    with pytest.raises(RecipeError, match="data2vec-vision cannot be built"):
        check_model(model, size=(128, 128))


@pytest.mark.slow
def test_a_run_beside_the_others(write_recipe, run, tmp_path):
    from transformers import pipeline

    one = {"num_train_epochs": 1}
    first = write_recipe(
        "first", model={"arch": "auto", "path": "mobilevit", "config": TINY["mobilevit"]}, training=one
    )
    section = {"init": "checkpoint", "encoder_weights": "first", "freeze_encoder": True}
    second = write_recipe(
        "second", model={"arch": "auto", "path": "mobilevit", "config": TINY["mobilevit"]} | section, training=one
    )
    assert run(second)[0] == 0
    results = load_results(tmp_path / "runs" / "second")
    assert results["model"]["class"] == "MobileViTForSemanticSegmentation"
    assert results["model"]["init"]["encoder"]["source"] == first.stem
    assert results["model"]["init"]["encoder"]["tensors_loaded"] > 0
    assert "A MobileViT model for semantic segmentation" in (tmp_path / "runs" / "second" / "README.md").read_text()
    segment = pipeline("image-segmentation", model=str(tmp_path / "runs" / "second"))
    assert segment.model.config.id2label[1] in segment.model.config.label2id
