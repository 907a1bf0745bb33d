"""The models of segmentation_models_pytorch behind one class of transformers."""

import ast
import inspect
import json
import sys
from types import SimpleNamespace

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSemanticSegmentation
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models import SmpConfig, SmpForSemanticSegmentation, configuration_smp, modeling_smp
from hf_seg.models.build import build_image_processor, build_model, check_model, encoder_of, locate_encoder_weights
from hf_seg.problem import RecipeError, Refusal
from hf_seg.recipe.keys import ModelRecipe
from hf_seg.recipe.passthrough import smp_architectures
from hf_seg.scoring.loss import SegLoss

SPEC = DatasetSpec(
    name="three",
    class_names=("pet", "background", "boundary"),
    palette=((255, 0, 0), (0, 0, 0), (255, 255, 255)),
    label_table=build_label_table({1: 0, 2: 1, 3: 2}),
)
CNN = "test_resnet"  # timm's own test model
VIT = "test_vit"
UNET = {"decoder_channels": [16, 8, 8], "encoder_depth": 3}
TINY = {
    "unet": (CNN, UNET),
    "unetplusplus": (CNN, UNET),
    "deeplabv3plus": (CNN, {"decoder_channels": 16, "decoder_atrous_rates": [1, 2, 3]}),
    "fpn": (CNN, {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}),
    "upernet": (CNN, {"decoder_channels": 16}),
    "dpt": (
        VIT,
        {"encoder_depth": 2, "decoder_intermediate_channels": [8, 8], "decoder_fusion_channels": 8},
    ),
}
EVERY = pytest.mark.parametrize("architecture", TINY)


def tiny(architecture="unet", seed=0, **config):
    encoder, arguments = TINY[architecture]
    torch.manual_seed(seed)
    given = {"architecture": architecture, "encoder": encoder, "arguments": arguments, "num_labels": 3}
    return SmpForSemanticSegmentation(SmpConfig(**given | config))


def recipe(path="unet", **keys):
    encoder, config = TINY[path]
    return ModelRecipe(arch="smp", path=path, **{"encoder": encoder, "config": config} | keys)


@EVERY
def test_weights_and_logits_are_those_of_smp(architecture):
    encoder, arguments = TINY[architecture]
    more = {"dynamic_img_size": True} if architecture == "dpt" else {}
    torch.manual_seed(0)
    theirs = smp.create_model(architecture, f"tu-{encoder}", None, classes=3, **arguments, **more).eval()
    ours = tiny(architecture).eval()
    state = theirs.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    images = torch.rand(2, 3, 64, 96)
    logits = ours(images).logits
    assert torch.equal(logits, theirs(images))
    assert logits.shape == (2, 3, 64, 96) and logits.std() > 0
    assert ours.base_model is ours.encoder is encoder_of(ours)


@EVERY
def test_save_and_load_keeps_every_bit(tmp_path, architecture):
    model = tiny(architecture).train()
    SegLoss()(model(torch.rand(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64))).backward()  # moves the statistics
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SmpForSemanticSegmentation and not any(report.values()), report
    saved = dict(model.named_parameters()) | dict(model.named_buffers())  # buffers that are not saved, too
    for name, tensor in (dict(loaded.named_parameters()) | dict(loaded.named_buffers())).items():
        assert torch.equal(tensor, saved.pop(name)), name
    assert not saved


def test_buffers_that_timm_does_not_save(tmp_path):
    model = tiny("dpt", encoder="vit_small_patch16_dinov3").eval()  # with rotary positions
    model.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_missing_tensors_are_drawn_as_in_a_new_model(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    missing = {"encoder.model.layer1.0.conv1.weight", "decoder.blocks.0.conv1.0.weight"}
    save_file({n: t for n, t in state.items() if n not in missing}, file, metadata={"format": "pt"})
    options = {"num_labels": 19, "ignore_mismatched_sizes": True}
    loaded = SmpForSemanticSegmentation.from_pretrained(tmp_path, **options).state_dict()
    assert loaded["segmentation_head.0.weight"].shape[0] == 19
    assert (loaded["segmentation_head.0.bias"] == 0).all()  # as smp begins
    for name in missing:
        assert not torch.equal(loaded[name], state[name])
        assert (0.2 if "encoder" in name else 0.8) < loaded[name].std() / state[name].std() < 1.25
    head = {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert all(torch.equal(loaded[name], state[name]) for name in state.keys() - missing - head)


def test_loss_is_the_mean_over_counted_pixels():
    model = tiny(semantic_loss_ignore_index=7).eval()
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    labels[0, :20] = 7
    output = model(images, labels=labels)
    picked = -output.logits.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    assert output.loss.item() == pytest.approx(picked[labels != 7].mean().item(), rel=1e-5)
    (logits,) = model(images, return_dict=False)
    assert torch.equal(logits, output.logits)


def test_a_name_that_timm_and_smp_have_is_timms():
    names = [tiny(encoder=encoder, arguments={}).encoder for encoder in ("resnet18", "mit_b0")]
    assert [type(each).__name__ for each in names] == ["TimmUniversalEncoder", "MixVisionTransformerEncoder"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"encoder": "tu-test_resnet"},
            "model.encoder: unet on tu-test_resnet cannot be built: encoder 'tu-test_resnet' is neither a timm",
        ),
        ({"encoder": "test_resne"}, "did you mean test_resnet"),
        ({"encoder": "resnet1234"}, "did you mean resnet34 or resnetv2_34 or"),  # both have the first
        ({"encoder": "test_vit"}, "model.config: unet on test_vit cannot be built: "),
        ({"config": {"decoder_channels": [8]}}, "model.config: unet on test_resnet cannot be built: "),
        ({"config": {"decoder_chanels": [8]}}, 'unknown key of "unet"; did you mean "decoder_channels"?'),
    ],
)
def test_what_is_refused(keys, message):
    with pytest.raises(RecipeError) as refusal:
        check_model(recipe(**keys))
    assert message in str(refusal.value)


@EVERY
def test_weights_of_timm(tmp_path, architecture):
    encoder, _ = TINY[architecture]
    torch.manual_seed(5)
    theirs = timm.create_model(encoder)
    file = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), file)
    model, provenance = build_model(recipe(architecture, init="imagenet", encoder_weights=str(file)), SPEC)
    ours = model.encoder.state_dict()
    assert provenance["encoder"]["tensors_loaded"] == len(ours)
    # a ViT keeps its classifier, which nothing uses; a CNN does not
    assert all(torch.equal(tensor, theirs.state_dict()[name.removeprefix("model.")]) for name, tensor in ours.items())

    first = next(iter(theirs.state_dict()))
    save_file({n: t for n, t in theirs.state_dict().items() if n != first}, file)
    with pytest.raises(RecipeError, match=f"another architecture or size than the recipe's encoder.*{first}"):
        build_model(recipe(architecture, init="imagenet", encoder_weights=str(file)), SPEC)


def test_weights_of_timm_are_for_encoders_of_timm(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    for source in (None, str(tmp_path / "model.safetensors")):
        with pytest.raises(RecipeError, match="model.encoder: mit_b0 is one of smp's own encoders"):
            locate_encoder_weights(recipe(encoder="mit_b0", config={}, init="imagenet", encoder_weights=source))


def test_the_encoder_of_another_run(tmp_path):
    source = tiny("unet", seed=3)
    source.save_pretrained(tmp_path)
    start = {"init": "checkpoint", "encoder_weights": str(tmp_path), "freeze_encoder": True}
    config = {"encoder_depth": 3, "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
    model, _ = build_model(recipe("fpn", config=config, **start), SPEC)
    ours, theirs = model.encoder.state_dict(), source.encoder.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not model.train().encoder.training and not any(p.requires_grad for p in model.encoder.parameters())
    with pytest.raises(RecipeError, match="model.config.encoder_depth is 3 there and 5 here"):
        build_model(recipe("fpn", **start), SPEC)
    with pytest.raises(RecipeError, match='model.encoder is "test_resnet" there and "resnet18" here'):
        build_model(recipe(encoder="resnet18", **start), SPEC)
    with pytest.raises(RecipeError, match='model.arch is "smp" there and "fcn" here'):
        build_model(ModelRecipe(arch="fcn", encoder=CNN, **start), SPEC)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "u-net"}, "SmpConfig.architecture must be one of unet, .*, not 'u-net'"),
        (
            {"arguments": {"checkpoint_path": "a.pth"}},
            "SmpConfig.arguments has 'checkpoint_path', which unet does not take",
        ),
        ({"arguments": {"encoder_weights": True}}, "SmpConfig.arguments has 'encoder_weights'"),
        ({"encoder": "hf-hub:some/one"}, "encoder 'hf-hub:some/one' is neither a timm model"),
    ],
)
def test_what_a_config_file_may_not_name(config, message):
    with pytest.raises(ValueError, match=message):
        SmpForSemanticSegmentation(SmpConfig(**config))


def test_the_names_of_architectures_are_smps():
    assert smp_architectures().keys() == smp.MODEL_ARCHITECTURES_MAPPING.keys()
    for name, (file, class_name) in smp_architectures().items():
        found = smp.MODEL_ARCHITECTURES_MAPPING[name]
        assert found.__name__ == class_name and inspect.getfile(found).endswith(file)


def not_installed(name):
    if name == "segmentation_models_pytorch":
        raise ImportError(f"No module named '{name}'")


def test_a_saved_model_carries_its_code_which_names_what_is_missing(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path)
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_smp.SmpConfig",
        "AutoModelForSemanticSegmentation": "modeling_smp.SmpForSemanticSegmentation",
    }
    for module in (configuration_smp, modeling_smp):
        name = module.__name__.rpartition(".")[2] + ".py"
        assert (tmp_path / name).read_text() == inspect.getsource(module)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with monkeypatch.context() as patch, pytest.raises(ImportError, match="pip install segmentation_models_pytorch"):
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        patch.setattr("transformers.dynamic_module_utils.importlib", SimpleNamespace(import_module=not_installed))
        get_class_from_dynamic_module("modeling_smp.SmpForSemanticSegmentation", str(tmp_path))  # as without hf_seg
    with pytest.raises(Refusal, match="not installed: run `pip install segmentation-models-pytorch`"):
        load_segmenter(tmp_path)


@pytest.mark.parametrize("module", [configuration_smp, modeling_smp])
def test_files_for_the_hub_import_libraries_and_each_other_only(module):
    froms = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    assert {(node.level, node.module) for node in froms if node.level} <= {(1, "configuration_smp")}


def test_every_random_weight_comes_from_the_seed():
    first, again, other = (tiny(seed=seed) for seed in (0, 0, 1))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.std() == 0 or a.numel() == 1 or not torch.equal(a, c), name
    assert isinstance(first.segmentation_head[0], nn.Conv2d)
