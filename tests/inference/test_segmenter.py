"""Models that are not of hf_seg: queries instead of logits a pixel, sizes that vary, and what is no such model."""

import builtins
import hashlib
import json
import shutil
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from query_models import save_query_model
from safetensors.torch import load_file, save_file
from transformers import (
    DetrConfig,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_seg import cli
from hf_seg.inference import segmenter
from hf_seg.inference.predict import predict
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models.build import build_image_processor
from hf_seg.problem import Refusal

NAMES = {0: "cat", 1: "dog", 2: "ground"}
TINY_SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [8, 4],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [4, 4],
    "decoder_hidden_size": 32,
}


@pytest.fixture(scope="module", params=["mask2former", "maskformer"])
def folder(request, tmp_path_factory):
    """A query model with random weights, whose image processor keeps the sides' ratio."""
    path = tmp_path_factory.mktemp(request.param)
    return save_query_model(path, request.param, NAMES, shortest_edge=64, longest_edge=128)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Wide, tall and square ones, two of each shape."""
    root = tmp_path_factory.mktemp("in")
    for number, size in enumerate([(120, 80), (50, 70), (64, 64)] * 2):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(root / f"{number}.png")
    return root


def expected_scores(folder, path, size=None):
    """transformers' own mask and scores of one photograph, alone."""
    loaded = load_segmenter(folder, device="cpu")
    image = Image.open(path)
    with torch.inference_mode():
        outputs = loaded.model(**loaded.image_processor(image, return_tensors="pt"))
    size = [size or (image.height, image.width)]
    post_process = loaded.image_processor.post_process_semantic_segmentation
    (mask,) = post_process(outputs, target_sizes=size)
    (scored,) = post_process(outputs, target_sizes=size, return_segmentation_scores=True)
    return mask.numpy(), scored["segmentation_scores"]


def test_query_models_give_the_masks_of_their_image_processor(folder, photographs):
    occurring = set()
    for result in predict(folder, [photographs], batch_size=4, device="cpu"):
        mask, scores = expected_scores(folder, result.path)
        assert result.mask.shape == mask.shape == (result.image.height, result.image.width)
        assert (result.mask == mask).mean() > 0.999  # a batch rounds otherwise than a single image
        confidence = (scores.max(dim=0).values / scores.sum(dim=0)).mean()
        assert result.mean_confidence == pytest.approx(float(confidence), abs=1e-4)
        assert 1 / 3 < result.mean_confidence < 1
        occurring |= set(np.unique(mask))
    assert len(occurring) > 1


def test_query_models_flip_tile_and_model_size(folder, photographs, tmp_path):
    paths = [photographs / "0.png", photographs / "2.png"]
    plain = list(predict(folder, paths, device="cpu"))
    small = list(predict(folder, paths, size="model", device="cpu"))
    assert [result.mask.shape for result in small] == [(64, 96), (64, 64)]
    mask, _ = expected_scores(folder, paths[0], size=(64, 96))
    assert (small[0].mask == mask).mean() > 0.999

    Image.open(paths[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    one, other = predict(folder, [paths[0], tmp_path / "mirrored.png"], flip=True, device="cpu")
    assert (one.mask == other.mask[:, ::-1]).mean() > 0.999
    assert one.mean_confidence != plain[0].mean_confidence

    whole = list(predict(folder, paths, tile=120, device="cpu"))
    for tiled, expected in zip(whole, plain, strict=True):
        assert (tiled.mask == expected.mask).mean() > 0.999
        assert tiled.mean_confidence == pytest.approx(expected.mean_confidence, abs=1e-4)
    (tiled,) = predict(folder, paths[:1], tile=64, batch_size=3, device="cpu")
    assert tiled.mask.shape == (80, 120) and 1 / 3 < tiled.mean_confidence < 1


def test_a_bias_that_fused_attention_would_hide_is_missed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(copy / "model.safetensors")
    gone = max(name for name in tensors if name.endswith(("encoder_attn.q_proj.bias", "cross_attn.in_proj_bias")))
    del tensors[gone]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="has no weights for "):
        load_segmenter(copy, device="cpu")


def test_command_takes_query_models(folder, photographs, tmp_path):
    assert cli.main(["predict", str(folder), str(photographs), "--out", str(tmp_path), "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(set(line["class_shares"]) <= set(NAMES.values()) for line in lines)


def test_shapes_that_vary_within_a_batch(photographs, tmp_path):
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(id2label=NAMES, **TINY_SEGFORMER)).save_pretrained(tmp_path)
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path)
    results = list(predict(tmp_path, [photographs], size="model", device="cpu"))
    assert [result.mask.shape for result in results] == [(80, 120), (70, 50), (64, 64)] * 2
    for result in results:
        mask, _ = expected_scores(tmp_path, result.path)
        assert (result.mask == mask).mean() > 0.999


@pytest.mark.parametrize("tile", [None, 200])
def test_a_picture_of_a_size_that_a_model_refuses_is_left_out(folder, photographs, tmp_path, tile):
    other = tmp_path / "pixels"  # a model whose image processor keeps the size
    SegformerForSemanticSegmentation(SegformerConfig(id2label=NAMES, **TINY_SEGFORMER)).save_pretrained(other)
    SegformerImageProcessor(do_resize=False).save_pretrained(other)
    Image.new("RGB", (300, 1)).save(tmp_path / "thin.png")
    for model in (folder, other):
        refused, usual = predict(model, [tmp_path / "thin.png", photographs / "0.png"], device="cpu", tile=tile)
        if tile is None or model == other:
            assert (refused.code, refused.place) == ("picture-size", str(tmp_path / "thin.png"))
            assert refused.what.startswith("the model or its image processor cannot use a picture of this size (")
        assert usual.mask.shape == (80, 120)


def save_segformer(path, kind=SegformerForSemanticSegmentation):
    kind(SegformerConfig(num_labels=3, **TINY_SEGFORMER)).save_pretrained(path)
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(path)


def test_an_encoder_is_no_segmentation_model(tmp_path):
    save_segformer(tmp_path, SegformerForImageClassification)
    with pytest.raises(Refusal, match=r"no weights for decode_head\.\S+, .* so it is not a trained semantic segm"):
        load_segmenter(tmp_path)


def test_other_kinds_of_models_are_refused(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    DetrConfig().save_pretrained(tmp_path / "detr")
    for name in ("vit", "detr"):
        ViTImageProcessor().save_pretrained(tmp_path / name)
        with pytest.raises(
            Refusal, match=f"{name}: no semantic segmentation model .* cannot use a model of type {name}"
        ):
            load_segmenter(tmp_path / name)


def test_a_damaged_file_of_a_folder_is_refused(tmp_path):
    save_segformer(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(Refusal, match="no semantic segmentation model .* folder of a finished run"):
        load_segmenter(tmp_path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    save_segformer(tmp_path)

    def load(*_, **__):
        raise ImportError("\nMask2FormerLoss requires the scipy library:\n`pip install scipy`.")

    monkeypatch.setattr(segmenter.AutoModelForSemanticSegmentation, "from_pretrained", load)
    with pytest.raises(Refusal, match="requires the scipy library: `pip install scipy`"):
        load_segmenter(tmp_path)


@pytest.mark.parametrize("damage", ["none", "bit", "cut"])
def test_a_damaged_download_is_refused(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_segformer(snapshot)
    weights = (snapshot / "model.safetensors").read_bytes()
    blob = repository / "blobs" / hashlib.sha256(weights).hexdigest()
    blob.parent.mkdir()
    if damage == "bit":  # the last one of a weight: it loads
        weights = weights[:-1] + bytes([weights[-1] ^ 1])
    blob.write_bytes(weights[: len(weights) // 2] if damage == "cut" else weights)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    if damage == "none":
        assert load_segmenter("owner/name", device="cpu").class_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    else:
        with pytest.raises(Refusal, match=f"model.safetensors is damaged: .* Delete {blob} and try again"):
            load_segmenter("owner/name", device="cpu")


# -- folders that are damaged, or made to do harm ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    save_segformer(path)
    return path


def config(**keys):
    """Change keys of config.json."""

    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return change


def processor(**keys):
    def change(folder):
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return change


def tensors(change_one):
    """Change the file of weights, tensor by tensor; None leaves one out."""

    def change(folder):
        file = folder / "model.safetensors"
        changed = {name: change_one(name, tensor.clone()) for name, tensor in load_file(file).items()}
        save_file({n: t for n, t in changed.items() if t is not None}, file, metadata={"format": "pt"})

    return change


def one_value(value):
    def change(name, tensor):
        if name.endswith("classifier.weight"):
            tensor.flatten()[0] = value
        return tensor

    return tensors(change)


def unknown_dtype(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F99"', 1))


def own_code(folder):
    config(model_type="theirs", architectures=["Theirs"], auto_map={"AutoConfig": "theirs.Theirs"})(folder)
    processor(image_processor_type="Theirs", auto_map={"AutoImageProcessor": "theirs.Theirs"})(folder)
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Theirs: pass\n")


def drop(pattern):
    return tensors(lambda name, tensor: None if pattern in name else tensor)


FAULTS = {
    "a block is missing": (drop("block.1.0"), r"has no weights for segformer\S*1.blocks.0\S*, .* and \d+ more"),
    "a norm is missing": (drop("running_var"), "has no weights for decode_head.batch_norm.running_var, so it"),
    "the classifier is missing": (drop("head.classifier"), r"head.classifier.weight, so|3 classes, but no tensor"),
    "a value is NaN": (one_value(torch.nan), "decode_head.classifier.weight are NaN or infinite"),
    "a value is infinite": (one_value(torch.inf), "decode_head.classifier.weight are NaN or infinite"),
    "other shapes": (
        tensors(lambda name, t: t[:, :8].contiguous() if name.endswith("classifier.weight") else t),
        r"decode_head.classifier.weight is \(3, 8, 1, 1\), not \(3, 32, 1, 1\)",
    ),
    "std 0": (processor(do_normalize=True, image_mean=[0.5] * 3, image_std=[0, 0, 0]), "image_std zero"),
    "size 0": (processor(size={"height": 0, "width": 0}), "size in preprocessor_config.json is"),
    "size -1": (processor(size={"height": 64, "width": -1}), "size in preprocessor_config.json is"),
    "huge size": (processor(size={"height": 10**6, "width": 10**6}), "a side must have 1 to 16,384 pixels"),
    "a range": (
        processor(value_range="[0, 1]"),
        "value_range in preprocessor_config.json is .0, 1., but",
    ),
    "a range from above": (
        processor(value_range=[1, 0]),
        "value_range in preprocessor_config.json is .1, 0., but",
    ),
    "black": (processor(rescale_factor=0), "values that are not finite or all equal"),
    "gaps": (config(id2label={"0": "a", "2": "b", "3": "c"}), "id2label in config.json must name each id from 0 to 2"),
    "no text": (config(id2label={"0": "a", "1": None, "2": "c"}), "id2label in config.json must name each id"),
    "no number": (config(id2label={"a": "a", "1": "b", "2": "c"}), "no semantic segmentation model"),
    "ten million labels": (config(id2label=None, num_labels=10**7), "10,000,000 classes, but no tensor in its"),
    "layers": (config(depths=[10**5, 1]), "config.json has depths 100,000, but its weight file has only \\d+ tensors"),
    "lists": (config(hidden_sizes=[16] * 10**5), "config.json has hidden_sizes 100,000, but its weight file"),
    "width": (
        config(decoder_hidden_size=10**6),
        r"gives a model of 2,\d{3},[\d,]+ parameters, but its weight file has \d+,",
    ),
    "unknown dtype": (unknown_dtype, "no semantic segmentation model"),
    "dtype in config": (config(dtype="float99"), "no semantic segmentation model"),
    "code": (own_code, "no semantic segmentation model"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "nesting": (lambda folder: (folder / "config.json").write_text("[" * 10**5), "no semantic segmentation model"),
    "length": (lambda folder: (folder / "config.json").write_bytes(b" " * (2**24 + 1)), "has more than 16 MB"),
    "zero heads": (config(num_attention_heads=[0, 0]), "no semantic segmentation model|cannot segment a picture"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_whole_model_is_refused(whole, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked on standard input"))
    folder = shutil.copytree(whole, tmp_path / "model")
    change, message = FAULTS[fault]
    change(folder)
    start = time.perf_counter()
    with pytest.raises(Refusal, match=message):
        load_segmenter(folder, device="cpu")
    assert time.perf_counter() - start < 5  # minutes, where something is built of a hostile config.json
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("model", ["a/b/c", "../../x", "x" * 5000, "", "runs/x/model.safetensors", "a b", "a"])
def test_what_is_neither_a_folder_nor_a_hub_id(model):
    with pytest.raises(Refusal, match="is neither a folder nor a Hub id such as"):
        load_segmenter(model)


def test_a_file_is_no_folder_of_a_model(whole):
    with pytest.raises(Refusal, match="model.safetensors: is a file; name the folder of the model"):
        load_segmenter(whole / "model.safetensors")


def test_a_folder_that_is_not_there_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"^runs/x: is neither a folder nor in the cache of the Hub, and HF_HUB_OFFLINE"):
        load_segmenter("runs/x")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:7", "meta", "", "xpu"])
def test_a_device_that_is_not_there(whole, device, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    arguments = ["predict", str(whole), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", device]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: device: there is no {device!r} here, only cpu") and not (tmp_path / "out").exists()


def test_a_precision_that_is_none(whole):
    with pytest.raises(Refusal, match="dtype: 'float99' is not one of float32, bfloat16, float16"):
        load_segmenter(whole, dtype="float99")


def test_counters_of_a_batch_norm_may_be_missing(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "model")
    drop("num_batches_tracked")(folder)
    load_segmenter(folder, device="cpu")
    assert "%|" not in capsys.readouterr().err  # no bar of transformers


def test_a_model_of_one_class_is_refused(tmp_path):
    small = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=1, **small)).save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="it has one class, which every pixel would get"):
        load_segmenter(tmp_path)
