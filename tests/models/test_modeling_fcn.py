import ast
import inspect
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.segmentation import fcn_resnet50
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from hf_seg.models import FCNConfig, FCNForSemanticSegmentation, configuration_fcn, modeling_fcn
from hf_seg.models.modeling_fcn import build_encoder

TINY = "test_resnet"  # timm's own test model, 0.4 M parameters


def tiny(encoder=TINY, seed=0, **config):
    torch.manual_seed(seed)
    return FCNForSemanticSegmentation(FCNConfig(encoder=encoder, **{"num_labels": 3} | config))


def enlarge(logits, size):
    return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def torchvision_fcn():
    torch.manual_seed(1)
    return fcn_resnet50(weights=None, weights_backbone=None, num_classes=5).eval()


@pytest.fixture(scope="module")
def our_fcn():
    return tiny("resnet50", seed=2, num_labels=5).eval()


def as_ours(name):
    return name.replace("backbone.", "encoder.")


def test_initial_weights_are_distributed_as_torchvisions(torchvision_fcn, our_fcn):
    ours = our_fcn.state_dict()
    theirs = torchvision_fcn.state_dict()
    assert {as_ours(name) for name in theirs} == ours.keys()
    compared = 0
    for name, their in theirs.items():
        our = ours[as_ours(name)].float()
        their = their.float()
        assert our.shape == their.shape
        if their.numel() == 1 or their.std() == 0:  # batch norms, whose weights torchvision leaves at 1
            assert torch.equal(our, their), name
            continue
        assert not torch.equal(our, their), name
        if their.numel() >= 4096:
            compared += 1
            assert our.std().item() == pytest.approx(their.std().item(), rel=0.05), name
            assert abs(our.mean()) < 0.05 * their.std(), name
            # The largest value tells a normal from a uniform distribution of the same deviation.
            assert (our.abs().max() / our.std()).item() == pytest.approx(
                (their.abs().max() / their.std()).item(), rel=0.3
            ), name
        else:  # the last layer: within the bound that torch draws from
            assert our.abs().max() <= 1 / 512**0.5 and our.std() > 0, name
    assert compared == 54  # every convolution but the last


def test_logits_equal_torchvisions_on_the_same_weights(torchvision_fcn):
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, tensor in torchvision_fcn.state_dict().items():
        if "running_mean" in name or "running_var" in name:  # fresh statistics would hide a batch norm in train mode
            tensor = torch.rand(tensor.shape, generator=generator) + 0.5
        state[name] = tensor
    torchvision_fcn.load_state_dict(state)
    model = tiny("resnet50", num_labels=5).eval()
    model.load_state_dict({as_ours(name): tensor for name, tensor in state.items()})
    images = torch.rand((2, 3, 64, 96), generator=generator)
    with torch.no_grad():
        logits = model(images).logits
        expected = torchvision_fcn(images)["out"]
    assert logits.shape == (2, 5, 8, 12)
    assert expected.std() > 0
    assert torch.equal(enlarge(logits, (64, 96)), expected)


def test_every_random_weight_comes_from_the_seed():
    first, again, other = tiny(seed=0), tiny(seed=0), tiny(seed=1)
    drawn = 0
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if a.std() > 0:
            drawn += 1
            assert not torch.equal(a, c), name
    assert drawn == sum(isinstance(module, nn.Conv2d) for module in first.modules()) + 1  # one of them has a bias


def test_building_asks_timm_for_random_weights(monkeypatch):
    calls = []
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: calls.append(k) or create_model(*a, **k))
    tiny()
    assert len(calls) == 1 and not calls[0].get("pretrained")


@pytest.mark.parametrize("encoder", [TINY, "resnetblur18", "test_convnext", "test_efficientnet"])
def test_save_and_load_keeps_every_bit(tmp_path, encoder):
    model = tiny(encoder).train()
    model(torch.rand(2, 3, 64, 64))  # moves the batch-norm statistics
    model.save_pretrained(tmp_path)
    loaded, report = FCNForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    saved = dict(model.named_parameters()) | dict(model.named_buffers())  # buffers that are not saved, too
    for name, tensor in (dict(loaded.named_parameters()) | dict(loaded.named_buffers())).items():
        assert torch.equal(tensor, saved.pop(name)), name
    assert not saved
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(images).logits, loaded(images).logits)


def test_another_number_of_labels_keeps_the_encoder_and_draws_a_fresh_head(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    options = {"num_labels": 19, "ignore_mismatched_sizes": True}
    loaded = [FCNForSemanticSegmentation.from_pretrained(tmp_path, **options) for _ in range(2)]
    for a, b in zip(model.encoder.state_dict().values(), loaded[0].encoder.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    heads = [found.classifier[4] for found in loaded]
    bound = 1 / heads[0].in_channels ** 0.5
    for head in heads:
        for tensor in head.parameters():
            assert tensor.shape[0] == 19
            assert tensor.isfinite().all() and tensor.std() > 0.3 * bound and tensor.abs().max() <= bound
    assert not torch.equal(heads[0].weight, heads[1].weight)


def test_a_missing_tensor_is_drawn_as_in_a_new_model(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    removed = state.pop("encoder.layer4.0.conv2.weight")
    del state["encoder.layer4.0.bn2.running_var"]
    save_file(state, file, metadata={"format": "pt"})
    loaded = FCNForSemanticSegmentation.from_pretrained(tmp_path)
    fresh = loaded.encoder.layer4[0].conv2.weight
    assert fresh.std().item() == pytest.approx(removed.std().item(), rel=0.1) and not torch.equal(fresh, removed)
    assert torch.equal(loaded.encoder.layer4[0].bn2.running_var, torch.ones(fresh.shape[0]))
    for name, tensor in state.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_loss_is_the_mean_over_counted_pixels():
    model = tiny(semantic_loss_ignore_index=7).eval()
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 50, 70))
    labels[0, :20] = 7
    output = model(images, labels=labels)
    log_probabilities = enlarge(output.logits, (50, 70)).log_softmax(1)
    picked = -log_probabilities.gather(1, labels.clamp(max=2)[:, None])[:, 0]
    assert output.loss.item() == pytest.approx(picked[labels != 7].mean().item(), rel=1e-5)
    assert output.loss.item() != pytest.approx(picked.mean().item(), rel=1e-5)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_outputs():
    model = tiny().eval()
    images = torch.rand(1, 3, 64, 64)
    output = model(images)
    assert output.loss is None and list(output) == ["logits"]
    (logits,) = model(images, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert model.base_model is model.encoder


@pytest.mark.parametrize("encoder", [TINY, "test_convnext", "test_efficientnet", "resnet18.a1_in1k"])
@pytest.mark.parametrize("stride", [8, 16])
def test_any_cnn_of_timm_keeps_the_stride(encoder, stride):
    logits = tiny(encoder, output_stride=stride).eval()(torch.rand(1, 3, 64, 96)).logits
    assert logits.shape == (1, 3, 64 // stride, 96 // stride)
    assert logits.isfinite().all() and logits.std() > 0


@pytest.mark.parametrize("encoder", [TINY, "test_efficientnet"])
@pytest.mark.parametrize(("stride", "finest"), [(32, 8), (32, 2), (8, 2), (16, 16)])
def test_finer_maps_add_their_scores(encoder, stride, finest):
    config = {"output_stride": stride, "logits_stride": finest, "dropout": 0}
    model, images = tiny(encoder, **config).eval(), torch.rand(2, 3, 64, 96)
    strides = [s for s in (16, 8, 4, 2) if finest <= s < stride]
    plain = tiny(encoder, output_stride=stride)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("skips.")})
    expected = plain.eval()(images).logits
    for s in strides:
        expected = enlarge(expected, (64 // s, 96 // s))
    # at first they say nothing, so that the coarse scores are learned first
    assert torch.allclose(model(images).logits, expected, atol=1e-6)
    assert len(model.skips) == len(strides)

    with torch.no_grad():
        for score in model.skips:
            nn.init.normal_(score.weight)
            nn.init.normal_(score.bias)
    *finer, last = model.encoder(images)
    expected = model.classifier(last)
    for features, score in zip(finer[::-1], list(model.skips)[::-1], strict=True):
        expected = enlarge(expected, features.shape[-2:])
        expected = (
            expected + torch.einsum("bchw,kc->bkhw", features, score.weight[..., 0, 0]) + score.bias[:, None, None]
        )
    logits = model(images).logits
    assert logits.shape == (2, 3, 64 // finest, 96 // finest)
    assert torch.allclose(logits, expected, atol=1e-4)


def test_scores_of_finer_maps_are_learned_saved_and_loaded(tmp_path):
    model = tiny(output_stride=32, logits_stride=2)
    model(torch.rand(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64))).loss.backward()
    assert all(score.weight.grad.abs().sum() > 0 for score in model.skips)
    with torch.no_grad():
        for score in model.skips:
            nn.init.normal_(score.weight)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in model.state_dict().items())


def test_an_encoder_without_so_fine_a_map_is_named():
    with pytest.raises(ValueError, match="encoder 'test_convnext' has no feature map of stride 2"):
        build_encoder("test_convnext", 32, 2)


def test_dropout_is_the_configured_one():
    assert tiny().classifier[3].p == 0.1
    assert tiny(dropout=0).classifier[3].p == 0


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("resnet5", r"'resnet5' is not a timm model: did you mean resnet5"),
        ("resnet50.a1_in", r"'resnet50.a1_in' is not a timm model: did you mean resnet50\.a1_in1k"),
        ("???", r"'\?\?\?' is not a timm model: `timm.list_models"),
        ("test_vit", r"'test_vit' is not a CNN with features at output stride 8"),
        ("densenet121", r"'densenet121' is not a CNN with features at output stride 8"),
        ("vgg11", r"'vgg11' is not a CNN with features at output stride 8"),
    ],
)
def test_unusable_encoders_are_named(encoder, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(encoder, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", ""),
        ("encoder", None),
        ("output_stride", 4),
        ("output_stride", 8.0),
        ("output_stride", True),
        ("logits_stride", 3),
        ("logits_stride", 16),  # coarser than the encoder's
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", "0.1"),
        ("semantic_loss_ignore_index", 255.5),
    ],
)
def test_configuration_refuses(key, value):
    with pytest.raises(ValueError, match=rf"FCNConfig\.{key} must be .*{value!r}"):
        FCNConfig(**{key: value})


def test_a_saved_model_carries_its_code(tmp_path):
    tiny(id2label={0: "pet", 1: "background", 2: "boundary"}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_fcn.FCNConfig",
        "AutoModelForSemanticSegmentation": "modeling_fcn.FCNForSemanticSegmentation",
    }
    for module in (configuration_fcn, modeling_fcn):
        name = module.__name__.rpartition(".")[2] + ".py"
        assert (tmp_path / name).read_text() == inspect.getsource(module)
    assert AutoConfig.from_pretrained(tmp_path).id2label[2] == "boundary"
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is FCNForSemanticSegmentation


@pytest.mark.parametrize("module", [configuration_fcn, modeling_fcn])
def test_files_for_the_hub_import_libraries_and_each_other_only(module):
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Import)]
    froms = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {n.module for n in froms if n.level == 0}
    assert names and {name.split(".")[0] for name in names} <= {
        "difflib",
        "timm",
        "torch",
        "torchvision",
        "transformers",
    }
    assert {(n.level, n.module) for n in froms if n.level} <= {(1, "configuration_fcn")}
