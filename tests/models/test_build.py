import copy
import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from helpers import TINY_MODELS
from huggingface_hub import errors
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2 import functional as tvf
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
)

from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.models import FCNForSemanticSegmentation, weight_files
from hf_seg.models.build import (
    build_image_processor,
    build_model,
    check_model,
    encoder_of,
    locate_encoder_weights,
    measure_forward,
)
from hf_seg.models.weights import source_of
from hf_seg.problem import RecipeError
from hf_seg.recipe.keys import ModelRecipe
from hf_seg.recipe.rules import SEGFORMER_SIZES
from hf_seg.runs.record import describe_provenance

SPEC = DatasetSpec(
    name="three",
    class_names=("pet", "background", "boundary"),
    palette=((255, 0, 0), (0, 0, 0), (255, 255, 255)),
    label_table=build_label_table({1: 0, 2: 1, 3: 2}),
)
TINY_FCN = {"arch": "fcn", "encoder": "test_resnet"}
TINY_SEGFORMER = {"arch": "segformer", "config": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 80, 128]}}
HEADS = {"fcn": "classifier", "segformer": "decode_head"}
TINY = pytest.mark.parametrize("model", [TINY_FCN, TINY_SEGFORMER], ids=["fcn", "segformer"])


def build(seed=0, **recipe):
    torch.manual_seed(seed)
    return build_model(ModelRecipe(**recipe), SPEC)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """An empty Hub cache, and an error that no code here handles for whoever tries to connect."""

    def connect(*_):
        raise AssertionError("a test tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Encoder weights in the formats that the Hub has them in, and the modules that they were made from."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(11)
    cnn = timm.create_model("test_resnet", pretrained=False)
    for module in cnn.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
    save_file(cnn.state_dict(), folder / "test_resnet.safetensors")
    mit = SegformerForImageClassification(SegformerConfig(num_labels=10, **TINY_SEGFORMER["config"]))
    mit.save_pretrained(folder / "mit")
    names = load_file(folder / "mit" / "model.safetensors").keys()
    assert {"segformer.encoder.patch_embeddings.0.proj.weight", "classifier.weight"} <= names  # as in nvidia/mit-b0
    cnn.folder, mit.folder = folder / "test_resnet.safetensors", folder / "mit"
    return {"fcn": cnn, "segformer": mit}


def imagenet(model, files, **recipe):
    return model | {"init": "imagenet", "encoder_weights": str(files[model["arch"]].folder)} | recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of finished runs, other head sizes included."""
    folder = tmp_path_factory.mktemp("runs")
    spec = DatasetSpec(name="two", class_names=("a", "b"), palette=((0,) * 3, (1,) * 3), label_table=(0,) * 256)
    models = {}
    for model in (TINY_FCN, TINY_SEGFORMER):
        torch.manual_seed(12)
        models[model["arch"]], _ = build_model(ModelRecipe(**model), spec)
        models[model["arch"]].train()(torch.rand(2, 3, 64, 64))
        models[model["arch"]].save_pretrained(folder / model["arch"])
    return folder, models


def test_scratch_fcn_is_scratch():
    model, provenance = build(arch="fcn")
    assert isinstance(model, FCNForSemanticSegmentation)
    assert model.config.encoder == "resnet50"
    assert sum(p.numel() for p in model.parameters()) == 32_947_779
    assert provenance == {
        "init": "scratch",
        "frozen": False,
        "encoder": {
            "source": "random initialisation",
            "from_hub": False,
            "sha256": None,
            "tensors_loaded": 0,
            "tensors_fresh": 318,
        },
        "head": {"source": "fresh", "tensors_fresh": 8},
    }
    assert describe_provenance(provenance) == (
        "encoder: 318 fresh tensors (random initialisation); head: 8 fresh tensors"
    )


def test_scratch_segformer_is_the_native_b0():
    model, provenance = build(arch="segformer")
    assert isinstance(model, SegformerForSemanticSegmentation)
    assert sum(p.numel() for p in model.parameters()) == 3_714_915
    config = model.config
    assert [list(value) for value in (config.depths, config.hidden_sizes, config.patch_sizes, config.strides)] == [
        [2, 2, 2, 2],
        [32, 64, 160, 256],
        [7, 3, 3, 3],
        [4, 2, 2, 2],
    ]
    assert config.decoder_hidden_size == 256
    assert provenance["encoder"]["tensors_fresh"] + provenance["head"]["tensors_fresh"] == len(model.state_dict())


def test_sizes_of_segformer_are_the_published_ones():
    """Millions of parameters for 150 classes, and the weights on the Hub."""
    counts = {}
    for size, config in SEGFORMER_SIZES.items():
        with torch.device("meta"):
            counts[size] = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150, **config)).num_parameters()
        section = {"arch": "segformer", "path": size, "config": config, "init": "imagenet"}
        assert source_of(ModelRecipe(**section)) == f"nvidia/mit-{size}"
    published = {"b0": 3.8, "b1": 13.7, "b2": 27.5, "b3": 47.3, "b4": 64.1, "b5": 84.7}
    assert {size: round(count / 1e6, 1) for size, count in counts.items()} == pytest.approx(published, abs=0.1)


@TINY
def test_scratch_is_drawn_from_the_seed_alone(model):
    first, again, other = (build(seed, **model)[0] for seed in (0, 0, 1))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        # What does not depend on the seed is a constant: nothing can have been read from anywhere.
        assert not torch.equal(a, c) or torch.equal(a, a.flatten()[0].expand_as(a)), name


@TINY
def test_classes_come_from_the_data(model):
    config = build(**model)[0].config
    assert config.id2label == {0: "pet", 1: "background", 2: "boundary"}
    assert config.label2id == {"pet": 0, "background": 1, "boundary": 2}
    assert config.num_labels == 3 and config.semantic_loss_ignore_index == 255


@TINY
def test_both_models_have_the_same_loss(model):
    """Mean cross-entropy over the counted pixels of logits enlarged to the labels."""
    built, _ = build(**model)
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    labels[:, :9] = 255
    output = built.eval()(images, labels=labels)
    enlarged = nn.functional.interpolate(output.logits, size=(64, 64), mode="bilinear", align_corners=False)
    expected = nn.functional.cross_entropy(enlarged.movedim(1, 3)[labels != 255], labels[labels != 255])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@TINY
def test_trainer_leaves_the_scale_of_the_loss_alone(model, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert Trainer(model=build(**model)[0], args=arguments).model_accepts_loss_kwargs is False


@TINY
def test_imagenet_weights_from_a_local_file(model, files):
    source = files[model["arch"]]
    built, provenance = build(**imagenet(model, files))
    theirs = source.segformer.state_dict() if model["arch"] == "segformer" else source.state_dict()
    encoder = encoder_of(built).state_dict()
    for name, tensor in encoder.items():
        assert torch.equal(tensor, theirs[name]), name
    file = source.folder / "model.safetensors" if source.folder.is_dir() else source.folder
    assert provenance["encoder"] == {
        "source": str(source.folder),
        "from_hub": False,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "tensors_loaded": len(encoder),
        "tensors_fresh": 0,
    }
    assert provenance["head"] == {"source": "fresh", "tensors_fresh": len(built.state_dict()) - len(encoder)}
    assert json.loads(json.dumps(provenance)) == provenance
    # The head is what the same seed gives a run from scratch.
    scratch, _ = build(**model)
    for name, tensor in scratch.state_dict().items():
        if not name.startswith(built.base_model_prefix):
            assert torch.equal(built.state_dict()[name], tensor), name


def test_imagenet_weights_load_into_other_strides(files):
    config = TINY_SEGFORMER["config"] | {"strides": [2, 2, 2, 2]}
    built, _ = build(**imagenet(TINY_SEGFORMER, files, config=config))
    assert torch.equal(
        built.segformer.stages[0].patch_embeddings.proj.weight,
        files["segformer"].segformer.stages[0].patch_embeddings.proj.weight,
    )
    assert built(torch.rand(1, 3, 64, 64)).logits.shape == (1, 3, 32, 32)


def test_imagenet_weights_without_a_head_and_in_half_precision(files, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in files["fcn"].state_dict().items()}
    save_file({name: t for name, t in state.items() if not name.startswith("fc.")}, tmp_path / "headless.safetensors")
    built, _ = build(**imagenet(TINY_FCN, files, encoder_weights=str(tmp_path / "headless.safetensors")))
    assert built.dtype == torch.float32
    for name, tensor in built.encoder.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


@TINY
def test_checkpoint_gives_its_encoder_only(model, runs):
    folder, trained = runs
    run = folder / model["arch"]
    built, provenance = build(**model, init="checkpoint", encoder_weights=str(run))
    theirs = encoder_of(trained[model["arch"]]).state_dict()
    for name, tensor in encoder_of(built).state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert built.config.num_labels == 3 and trained[model["arch"]].config.num_labels == 2
    assert provenance["encoder"]["source"] == str(run)
    assert provenance["encoder"]["sha256"] == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    scratch, _ = build(**model)
    for name, tensor in scratch.state_dict().items():
        if not name.startswith(built.base_model_prefix):
            assert torch.equal(built.state_dict()[name], tensor), name
    # The file itself may be named as well.
    assert locate_encoder_weights(
        ModelRecipe(**model, init="checkpoint", encoder_weights=str(run / "model.safetensors"))
    )


def test_describe_provenance_names_the_source(runs):
    recipe = {"init": "checkpoint", "encoder_weights": str(runs[0] / "fcn"), "freeze_encoder": True}
    _, provenance = build(**TINY_FCN, **recipe)
    line = describe_provenance(provenance)
    digest = provenance["encoder"]["sha256"][:12]
    assert line.startswith(
        f"encoder: 90 tensors from {runs[0] / 'fcn'} (sha256 {digest}), frozen; head: 8 fresh tensors"
    )
    assert "\n" not in line


def step(model, count=2):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(count):
        model(torch.rand(4, 3, 64, 64), labels=torch.randint(0, 3, (4, 64, 64))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@TINY
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_does_not_change_in_training(model, files, frozen, tmp_path):
    built, provenance = build(**imagenet(model, files, freeze_encoder=frozen))
    assert provenance["frozen"] is frozen
    before = copy.deepcopy(built.state_dict())
    step(built)
    assert encoder_of(built).training is not frozen
    changed = {name for name, tensor in built.state_dict().items() if not torch.equal(tensor, before[name])}
    in_encoder = {name for name in changed if name.startswith(built.base_model_prefix)}
    assert changed - in_encoder
    assert bool(in_encoder) is not frozen
    if frozen:
        assert not any(module.training for module in encoder_of(built).modules())
        assert built.training and built.get_submodule(HEADS[model["arch"]]).training
    # Saving and loading is as ever; only the weights are saved, not the freezing.
    built.save_pretrained(tmp_path)
    loaded = type(built).from_pretrained(tmp_path)
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert encoder_of(loaded.train()).training and all(p.requires_grad for p in loaded.parameters())


@TINY
def test_a_copy_of_a_frozen_encoder_is_frozen_on_its_own(model, files):
    built, _ = build(**imagenet(model, files, freeze_encoder=True))
    twin = copy.deepcopy(built).train()
    assert not encoder_of(twin).training
    assert encoder_of(twin).train() is encoder_of(twin)
    before = copy.deepcopy(encoder_of(twin).state_dict())
    step(twin, 1)
    assert all(torch.equal(t, before[name]) for name, t in encoder_of(twin).state_dict().items())


@TINY
def test_locating_and_checking_draw_no_random_numbers(model, files):
    state = torch.get_rng_state()
    check_model(ModelRecipe(**model))
    locate_encoder_weights(ModelRecipe(**imagenet(model, files)))
    assert torch.equal(torch.get_rng_state(), state)
    assert locate_encoder_weights(ModelRecipe(**model)) is None


def refused(**recipe):
    with pytest.raises(RecipeError) as caught:
        locate_encoder_weights(ModelRecipe(**recipe))
    message = str(caught.value)
    assert message.startswith("model.") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {"arch": "segformer", "config": {"stride": [2]}},
            'model.config.stride: unknown key of "segformer"; did you mean "strides"?',
        ),
        ({"arch": "segformer", "config": {"output_attentions": True}}, "model.config.output_attentions: unknown key"),
        (
            {"arch": "segformer", "config": {"num_labels": 3}},
            "model.config.num_labels: cannot be set: it follows from the data set",
        ),
        (
            {"arch": "segformer", "config": {"strides": [2, 2, 2]}},
            "model.config.strides: needs one value for each of the 4 stages (num_encoder_blocks)",
        ),
        (
            {"arch": "segformer", "config": {"strides": 2}},
            "model.config.strides: must be a list [...], each a",
        ),
        ({"arch": "segformer", "config": {"hidden_act": "gelo"}}, "'gelo'"),
        (
            {"arch": "fcn", "config": {"qqqq": 1}},
            'model.config.qqqq: unknown key of "fcn"; accepted: output_stride, logits_stride, dropout',
        ),
        ({"arch": "fcn", "config": {"dropout": 3}}, "FCNConfig.dropout must be a number"),
        (
            {"arch": "fcn", "config": {"encoder": "resnet18"}},
            "model.config.encoder: cannot be set: it has a key of its own; set model.encoder",
        ),
        (
            {"arch": "fcn", "encoder": "resnet5"},
            "model.encoder: fcn cannot be built: encoder 'resnet5' is not a timm model: did you mean",
        ),
        ({"arch": "fcn", "encoder": "test_vit"}, "model.encoder: fcn cannot be built: encoder 'test_vit' is not a"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_training(recipe, said):
    assert said in refused(**recipe)
    with pytest.raises(RecipeError, match="model"):
        check_model(ModelRecipe(**recipe))
    with pytest.raises(RecipeError, match="model"):
        build_model(ModelRecipe(**recipe), SPEC)


def test_every_key_of_segformer_can_be_set():
    config = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 2], "hidden_sizes": [8, 16]}
    config |= {"patch_sizes": [5, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    config |= {"decoder_hidden_size": 24, "drop_path_rate": 0, "classifier_dropout_prob": 0.5, "hidden_act": "relu"}
    built, _ = build(arch="segformer", config=config)
    assert {key: getattr(built.config, key) for key in config} == config
    assert built(torch.rand(1, 3, 64, 64)).logits.shape == (1, 3, 32, 32)


def test_a_checkpoint_of_another_architecture_is_refused(runs):
    folder, _ = runs
    message = refused(**TINY_FCN, init="checkpoint", encoder_weights=str(folder / "segformer"))
    assert f"{folder / 'segformer'} is a checkpoint of another architecture" in message
    assert 'model.arch is "segformer" there and "fcn" here' in message
    message = refused(**TINY_SEGFORMER, init="checkpoint", encoder_weights=str(folder / "fcn"))
    assert 'model.arch is "fcn" there and "segformer" here; make them equal' in message


def test_a_checkpoint_of_another_encoder_is_refused(runs):
    folder, _ = runs
    message = refused(arch="fcn", encoder="test_convnext", init="checkpoint", encoder_weights=str(folder / "fcn"))
    assert 'model.encoder is "test_resnet" there and "test_convnext" here' in message
    config = TINY_SEGFORMER["config"] | {"strides": [2, 2, 2, 2]}
    message = refused(arch="segformer", config=config, init="checkpoint", encoder_weights=str(folder / "segformer"))
    assert "model.config.strides is [4, 2, 2, 2] there and [2, 2, 2, 2] here; make them equal" in message


def test_a_recipe_still_to_be_trained_is_compared_too():
    recipe = {"init": "checkpoint", "encoder_weights": "cityscapes-segformer-scratch"}
    check_model(ModelRecipe(**TINY_SEGFORMER, **recipe), ModelRecipe(**TINY_SEGFORMER))
    with pytest.raises(
        RecipeError,
        match="cityscapes-segformer-scratch is .*: model.config.depths is .2, 2, 2, 2. there",
    ):
        check_model(ModelRecipe(**TINY_SEGFORMER, **recipe), ModelRecipe(arch="segformer"))
    with pytest.raises(RecipeError, match='cityscapes-segformer-scratch is a .*: model.arch is "fcn" there'):
        check_model(ModelRecipe(**TINY_SEGFORMER, **recipe), ModelRecipe(**TINY_FCN))


def test_an_unfinished_or_broken_run_is_refused(runs, tmp_path):
    folder, _ = runs
    checkpoint = TINY_FCN | {"init": "checkpoint", "encoder_weights": str(tmp_path)}
    assert "is a folder without model.safetensors: a run has one when it has finished" in refused(**checkpoint)
    shutil.copy(folder / "fcn" / "model.safetensors", tmp_path)
    assert "has no config.json next to it" in refused(**checkpoint)
    (tmp_path / "config.json").write_text("[]")
    assert "has a config.json that is not a model's" in refused(**checkpoint)


def unreadable(**recipe):
    with pytest.raises(RecipeError) as caught:
        build_model(ModelRecipe(**recipe), SPEC)
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused(files, runs, tmp_path):
    another = "has weights of another architecture or size than the recipe's encoder"
    cnn, mit = str(files["fcn"].folder), str(files["segformer"].folder)

    message = unreadable(**imagenet(TINY_FCN, files, encoder_weights=mit))
    assert mit in message and another in message and "is missing; " in message and " more)" in message
    message = unreadable(**imagenet(TINY_SEGFORMER, files, encoder_weights=cnn))
    assert another in message and "is missing" in message
    # An hf_seg run is no file of timm's: none of its names is known there, and nothing may stay random silently.
    message = unreadable(**imagenet(TINY_FCN, files, encoder_weights=str(runs[0] / "fcn")))
    assert another in message and 'need init "checkpoint"' in message

    config = TINY_SEGFORMER["config"] | {"patch_sizes": [5, 3, 3, 3]}
    message = unreadable(**imagenet(TINY_SEGFORMER, files, config=config))
    assert "stages.0.patch_embeddings.proj.weight is (16, 3, 7, 7), not (16, 3, 5, 5)" in message

    state = load_file(cnn)
    state["layer1.0.conv1.weight"] = torch.zeros(7, 7, 1, 1)
    save_file(state, tmp_path / "shape.safetensors")
    message = unreadable(**imagenet(TINY_FCN, files, encoder_weights=str(tmp_path / "shape.safetensors")))
    assert another in message and "layer1.0.conv1.weight" in message and "[7, 7, 1, 1]" in message
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "lacking.safetensors")
    message = unreadable(**imagenet(TINY_FCN, files, encoder_weights=str(tmp_path / "lacking.safetensors")))
    assert f"{another} (layer1.0.conv1.weight is missing)" in message

    shutil.copytree(runs[0] / "fcn", tmp_path / "run")
    state = load_file(tmp_path / "run" / "model.safetensors")
    state["encoder.surplus"] = state.pop("encoder.layer1.0.conv1.weight")
    save_file(state, tmp_path / "run" / "model.safetensors")
    message = unreadable(**TINY_FCN, init="checkpoint", encoder_weights=str(tmp_path / "run"))
    assert f"{another} (layer1.0.conv1.weight is missing; surplus is unknown)" in message


def test_damaged_files_are_named(files, tmp_path):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(files["fcn"].folder.read_bytes()[:1000])
    assert f"{file} cannot be read (cut.safetensors: " in unreadable(
        **imagenet(TINY_FCN, files, encoder_weights=str(file))
    )


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["BOMB"]),)


def test_nothing_is_run_that_a_file_of_weights_says(files, tmp_path, monkeypatch):
    bang = tmp_path / "bang"
    monkeypatch.setenv("BOMB", str(bang))
    for name in ("weights.pth", "weights.bin"):
        torch.save(files["fcn"].state_dict(), tmp_path / name)
        message = refused(**imagenet(TINY_FCN, files, encoder_weights=str(tmp_path / name)))
        assert "is not a .safetensors file" in message and "save_file" in message
    # pytorch_model.bin is what nvidia/mit-b0 has: opened, but as data.
    hub = tmp_path / "hub"
    hub.mkdir()
    torch.save({"weight": Bomb()}, hub / "pytorch_model.bin")
    message = unreadable(**imagenet(TINY_FCN, files, encoder_weights=str(hub)))
    assert "cannot be read (pytorch_model.bin: " in message and "\n" not in message
    assert not bang.exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert bang.exists()  # the file would have gone off

    torch.save(files["fcn"].state_dict(), hub / "pytorch_model.bin")
    built, _ = build(**imagenet(TINY_FCN, files, encoder_weights=str(hub)))
    for name, tensor in built.encoder.state_dict().items():
        assert torch.equal(tensor, files["fcn"].state_dict()[name]), name


@pytest.mark.parametrize(
    ("recipe", "source"),
    [
        ({"arch": "fcn"}, "timm/resnet50.tv2_in1k"),
        ({"arch": "fcn", "encoder": "resnet50"}, "timm/resnet50.tv2_in1k"),
        ({"arch": "fcn", "encoder": "resnet18"}, "timm/resnet18.a1_in1k"),
        ({"arch": "fcn", "encoder": "resnet50.a1_in1k"}, "timm/resnet50.a1_in1k"),
        ({"arch": "segformer"}, "nvidia/mit-b0"),
        ({"arch": "segformer", "encoder_weights": "nvidia/mit-b1"}, "nvidia/mit-b1"),
    ],
)
def test_offline_the_default_weights_are_named_with_the_remedy(recipe, source):
    message = refused(**recipe, init="imagenet")
    assert message.startswith(f"model.encoder_weights: {source} is not a file or folder here")
    assert "the Hub cannot be reached" in message and "name a local file or folder in model.encoder_weights" in message


def test_an_encoder_without_weights_of_its_own_is_told_so():
    pretrained = {name.split(".")[0] for name in timm.list_models(pretrained=True)}
    encoder = next(name for name in timm.list_models("resnet*") if name not in pretrained)
    assert f"timm has no weights for {encoder!r}; name a file" in refused(arch="fcn", encoder=encoder, init="imagenet")


@pytest.mark.parametrize(
    "source", ["weights/missing.safetensors", "/no/such/folder", "missing", "a/b/c", "./run", "a b/c"]
)
def test_a_missing_path_is_not_asked_of_the_hub(source, files, monkeypatch):
    monkeypatch.setattr(weight_files, "hf_hub_download", None)
    message = refused(**imagenet(TINY_FCN, files, encoder_weights=source))
    assert message.startswith(f"model.encoder_weights: {source} does not exist")
    assert "name a local file or folder" in message


RESPONSE = SimpleNamespace(headers={}, request=None)  # as much of one as the errors of huggingface_hub look at


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError("401", response=RESPONSE), "no such repository, or a private one"),
        (errors.GatedRepoError("403", response=RESPONSE), "access is gated"),
        (errors.RemoteEntryNotFoundError("404", response=RESPONSE), "it has no model.safetensors"),
        (errors.LocalEntryNotFoundError("offline"), "the Hub cannot be reached"),
        (errors.HfHubHTTPError("503 Service\nUnavailable", response=RESPONSE), "503 Service Unavailable"),
        (OSError("No space left on device"), "No space left on device"),
    ],
)
def test_what_the_hub_answers_is_told(error, said, monkeypatch, files):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(weight_files, "hf_hub_download", fail)
    message = refused(**imagenet(TINY_FCN, files, encoder_weights="owner/name"))
    assert f"owner/name is not a file or folder here, and could not be fetched from the Hub: {said}" in message


def test_the_older_file_format_is_fetched_where_there_is_no_other(monkeypatch, files, tmp_path):
    asked = []

    def download(repo, name):
        asked.append((repo, name))
        if name == "model.safetensors":
            raise errors.RemoteEntryNotFoundError("404", response=RESPONSE)
        return str(tmp_path / name)

    monkeypatch.setattr(weight_files, "hf_hub_download", download)
    recipe = ModelRecipe(**imagenet(TINY_FCN, files, encoder_weights="owner/name"))
    assert locate_encoder_weights(recipe) == tmp_path / "pytorch_model.bin"
    assert asked == [("owner/name", "model.safetensors"), ("owner/name", "pytorch_model.bin")]


def cached(folder):
    """An empty repository owner/name in the Hub's cache; returns the folder of its files."""
    repository = folder / "hub-cache" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


@TINY
@pytest.mark.parametrize("init", ["imagenet", "checkpoint"])
def test_offline_the_cache_of_the_hub_is_used(model, init, files, runs, tmp_path):
    snapshot = cached(tmp_path)
    source = runs[0] / model["arch"] if init == "checkpoint" else files[model["arch"]].folder
    if source.is_dir():
        shutil.copytree(source, snapshot)
    else:
        snapshot.mkdir(parents=True)
        shutil.copy(source, snapshot / "model.safetensors")
    _, provenance = build(**model, init=init, encoder_weights="owner/name")
    assert provenance["encoder"]["source"] == "owner/name"
    assert provenance["encoder"]["tensors_loaded"] > 0


def test_offline_the_older_file_format_is_found_in_the_cache(files, tmp_path):
    snapshot = cached(tmp_path)
    snapshot.mkdir(parents=True)
    torch.save(files["fcn"].state_dict(), snapshot / "pytorch_model.bin")
    built, _ = build(**imagenet(TINY_FCN, files, encoder_weights="owner/name"))
    assert all(torch.equal(t, files["fcn"].state_dict()[name]) for name, t in built.encoder.state_dict().items())


MEAN_AND_STD = {
    "none": ([0, 0, 0], [1, 1, 1]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "inception": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


@pytest.mark.parametrize("normalize", MEAN_AND_STD)
def test_image_processor(normalize, tmp_path):
    build_image_processor(size=(96, 96), normalize=normalize).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is SegformerImageProcessor
    assert dict(processor.size) == {"height": 96, "width": 96}
    pixels = torch.randint(0, 256, (3, 150, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = tvf.resize(pixels, [96, 96], antialias=True).float() / 255
    expected = tvf.normalize(expected, *MEAN_AND_STD[normalize])
    result = processor(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")
    assert result["pixel_values"].shape == (1, 3, 96, 96)
    assert torch.allclose(result["pixel_values"][0], expected, atol=1e-5)
    labels = processor(pixels, segmentation_maps=torch.full((150, 200), 0), return_tensors="pt")["labels"]
    assert labels.unique().tolist() == [0]  # nothing is "reduced" to 255


def test_image_processor_keeps_a_value_range(tmp_path):
    build_image_processor(size=(96, 96), normalize="none", value_range=[-5, 0.5]).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).value_range == [-5, 0.5]


def test_image_processor_refuses_an_unknown_normalisation():
    with pytest.raises(KeyError, match="ImageNet"):
        build_image_processor(size=(64, 64), normalize="ImageNet")


PIPELINES = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_seg":
            raise ModuleNotFoundError("No module named 'hf_seg'")

sys.meta_path.insert(0, NotInstalled())
from PIL import Image
from transformers import pipeline

for folder, trust in (("fcn", True), ("smp", True), ("segformer", False)):
    segment = pipeline("image-segmentation", model=folder, trust_remote_code=trust)
    result = segment(Image.effect_noise((123, 77), 90).convert("RGB"))
    assert result and {entry["mask"].size for entry in result} == {(123, 77)}, result
    assert {entry["label"] for entry in result} <= {"pet", "background", "boundary"}, result
    assert sum(sum(entry["mask"].histogram()[1:]) for entry in result) == 123 * 77, result  # every pixel has a class
    print(type(segment.model).__module__)
assert not any(name.partition(".")[0] == "hf_seg" for name in sys.modules)
"""


def test_saved_models_segment_a_photograph_without_hf_seg(tmp_path):
    for model in (TINY_FCN, TINY_MODELS["smp"], TINY_SEGFORMER):
        built, _ = build(**model)
        built.save_pretrained(tmp_path / model["arch"])
        build_image_processor(size=(64, 64), normalize="none").save_pretrained(tmp_path / model["arch"])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", PIPELINES]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *own, segformer = done.stdout.split()
    assert all(module.startswith("transformers_modules.") for module in own) and len(own) == 2
    assert segformer.startswith("transformers.models.segformer")


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_the_colours_of_the_classes_are_saved_with_the_model(arch, tmp_path):
    recipe = ModelRecipe(arch=arch, encoder="resnet10t" if arch == "fcn" else None)
    model, _ = build_model(recipe, SPEC)
    model.config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).palette == [list(colour) for colour in SPEC.palette]


@pytest.mark.parametrize(
    ("recipe", "multiply_adds", "logits_size"),
    [
        ({"arch": "fcn"}, 2.16e9, 8),
        ({"arch": "segformer"}, 0.0388e9, 16),
        ({"arch": "smp", "path": "unet"}, 0.666e9, 64),
        ({"arch": "segformer", "fast_head": False}, 0.1054e9, 16),
    ],
    ids=["fcn", "segformer", "smp", "stock segformer"],
)
def test_the_cost_of_a_forward_pass(recipe, multiply_adds, logits_size):
    model, _ = build(**recipe)
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    config, mode = model.config.to_json_string(), [module.training for module in model.modules()]
    cost = measure_forward(model, (64, 64))
    assert cost["multiply_adds"] == pytest.approx(multiply_adds, rel=0.02) and cost["logits_size"] == [logits_size] * 2
    assert json.loads(json.dumps(cost)) == cost
    larger = measure_forward(model, (128, 128))  # four times the pixels; attention costs more than that
    assert larger["multiply_adds"] >= 4 * cost["multiply_adds"] and larger["logits_size"] == [2 * logits_size] * 2
    # the model is as it was, and so is the random state
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_json_string() == config and torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == mode


@TINY
def test_the_cost_is_what_torch_counts_for_the_model_itself(model):
    built, _ = build(**model)
    # torch 2.11 does not count the CPU's own attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = built.eval()(torch.rand(64, 3, 96, 96)).logits
    expected = {"multiply_adds": counter.get_total_flops() // 128, "logits_size": list(logits.shape[-2:])}
    assert measure_forward(built, (96, 96)) == expected
