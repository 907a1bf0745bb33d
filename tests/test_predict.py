import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline

from hf_seg import cli
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.build import build_image_processor
from hf_seg.predict import PredictError, Unreadable, _starts, expand_paths, load_segmenter, predict
from hf_seg.predict_files import palette_of

NAMES = {0: "cat", 1: "dog", 2: "ground"}
PALETTE = [[200, 10, 10], [10, 200, 10], [10, 10, 200]]


@pytest.fixture(scope="module", params=["fcn", "segformer"])
def folder(request, tmp_path_factory):
    """A saved model with random weights, as a run leaves it."""
    torch.manual_seed(0)
    if request.param == "fcn":
        model = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", id2label=NAMES))
    else:
        sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32}
        model = SegformerForSemanticSegmentation(SegformerConfig(id2label=NAMES, **sizes))
    model.config.palette = PALETTE
    path = tmp_path_factory.mktemp(request.param)
    # random logits differ by little: spread them, so that all classes occur
    head = model.classifier[-1] if request.param == "fcn" else model.decode_head.classifier
    torch.nn.init.normal_(head.weight, std=1.0)
    model.save_pretrained(path)
    build_image_processor(image_size=64, normalize="none").save_pretrained(path)
    return path


def photograph(size=(90, 70), seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photographs(tmp_path):
    """Files of many kinds and sizes, one of them damaged."""
    root = tmp_path / "in"
    (root / "more").mkdir(parents=True)
    photograph().save(root / "a.jpg")
    photograph((50, 60), 1).convert("RGBA").save(root / "b.png")
    photograph((40, 30), 2).save(root / "b.gif")
    photograph((64, 64), 3).save(root / "more" / "c.webp")
    whole = (root / "a.jpg").read_bytes()
    (root / "d.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "._a.jpg").write_bytes(b"not an image")
    (root / "notes.txt").write_text("not an image either")
    return root


def by_name(results):
    return {result.path.name: result for result in results}


def test_masks_are_those_of_the_image_processor(folder, photographs):
    segmenter = load_segmenter(folder, device="cpu")
    results = by_name(predict(segmenter, [photographs], batch_size=2))
    assert list(results) == ["a.jpg", "b.gif", "b.png", "d.jpg", "c.webp"]  # the order of the paths
    assert isinstance(results["d.jpg"], Unreadable) and "truncated" in results["d.jpg"].reason
    occurring = set()
    for name in ("a.jpg", "b.gif", "b.png", "c.webp"):
        result = results[name]
        with Image.open(result.path) as file:
            image = file.convert("RGB")
        with torch.inference_mode():
            outputs = segmenter.model(**segmenter.image_processor(image, return_tensors="pt"))
        size = [(image.height, image.width)]
        (expected,) = segmenter.image_processor.post_process_semantic_segmentation(outputs, target_sizes=size)
        assert result.mask.shape == size[0] and result.mask.dtype == np.uint8
        assert (result.mask == expected.numpy()).mean() > 0.999  # a batch rounds otherwise than a single image
        assert sum(result.class_shares.values()) == pytest.approx(1)
        for class_id, class_name in NAMES.items():
            assert result.class_shares.get(class_name, 0) == pytest.approx((result.mask == class_id).mean())
        assert 1 / 3 < result.mean_confidence <= 1
        occurring |= set(np.unique(result.mask))
    assert len(occurring) > 1


def test_mask_at_the_size_of_the_model(folder, photographs):
    (result,) = predict(folder, [photographs / "a.jpg"], size="model", device="cpu")
    assert result.mask.shape == (64, 64) and result.image.size == (90, 70)


def test_photographs_are_turned_upright(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    photograph().save(tmp_path / "phone.jpg", exif=exif, quality=95)
    (result,) = predict(folder, [tmp_path / "phone.jpg"], device="cpu")
    assert result.mask.shape == (90, 70) and result.image.size == (70, 90)


def test_flip_does_not_know_left_from_right(folder, tmp_path):
    photograph((64, 64)).save(tmp_path / "a.png")
    photograph((64, 64)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    one, other = predict(folder, [tmp_path / "a.png", tmp_path / "b.png"], flip=True, device="cpu")
    assert (one.mask == other.mask[:, ::-1]).mean() > 0.999
    plain, _ = predict(folder, [tmp_path / "a.png", tmp_path / "b.png"], device="cpu")
    assert plain.mean_confidence != one.mean_confidence


def test_one_tile_is_the_whole_image(folder, photographs):
    (whole,) = predict(folder, [photographs / "a.jpg"], device="cpu")
    (tiled,) = predict(folder, [photographs / "a.jpg"], tile=100, device="cpu")
    assert (whole.mask == tiled.mask).mean() > 0.999
    assert tiled.mean_confidence == pytest.approx(whole.mean_confidence, abs=1e-4)


def test_tiles_see_each_part_as_a_picture_of_its_own(folder, tmp_path):
    # the same tile four times over: far from the seams, each quarter's mask is that of the tile alone
    tile = np.asarray(photograph((128, 128)))
    Image.fromarray(tile).save(tmp_path / "tile.png")
    Image.fromarray(np.tile(tile, (1, 3, 1))).save(tmp_path / "wide.png")
    alone, _ = predict(folder, [tmp_path / "tile.png", tmp_path / "wide.png"], device="cpu")
    (wide,) = predict(folder, [tmp_path / "wide.png"], tile=128, batch_size=2, device="cpu")
    assert wide.mask.shape == (128, 384)
    assert (wide.mask[:, :32] == alone.mask[:, :32]).mean() > 0.999
    assert (wide.mask[:, -32:] == alone.mask[:, -32:]).mean() > 0.999


@pytest.mark.parametrize("length", [1, 64, 65, 100, 128, 1000, 2048])
def test_tiles_cover_everything_and_overlap_by_a_quarter(length):
    starts = _starts(length, 64)
    covered = np.zeros(length, dtype=bool)
    for start in starts:
        assert 0 <= start and (start + 64 <= length or length < 64)
        covered[start : start + 64] = True
    assert covered.all()
    assert all(b - a <= 48 for a, b in zip(starts, starts[1:], strict=False))


def test_command_writes_masks_overlays_and_lines(folder, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    pattern = str(photographs / "*.[jpg][pni]*")  # for shells that do not expand
    status = cli.main(["predict", str(folder), str(photographs), pattern, "--out", str(out), "--device", "cpu"])
    assert status == 1
    assert f"{photographs / 'd.jpg'}: left out, it cannot be read (" in capsys.readouterr().err
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {"predictions.jsonl"} | {
        f"{name}{ending}" for name in ("a", "b_png", "b_gif", "more/c") for ending in (".png", "_overlay.jpg")
    }
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and sum("error" in line for line in lines) == 1
    line = next(line for line in lines if line["file"].endswith("a.jpg"))
    mask = Image.open(out / "a.png")
    assert mask.mode == "P" and mask.size == (line["width"], line["height"]) == (90, 70)
    assert mask.getpalette()[:9] == [part for colour in PALETTE for part in colour]
    shares = {name: (np.asarray(mask) == class_id).mean() for class_id, name in NAMES.items()}
    assert line["class_shares"] == pytest.approx({name: share for name, share in shares.items() if share})
    # the overlay is the mean of the photograph and the mask's colours
    overlay, colours = Image.open(out / "a_overlay.jpg"), np.asarray(mask.convert("RGB"), dtype=float)
    expected = (np.asarray(Image.open(photographs / "a.jpg"), dtype=float) + colours) / 2
    assert np.abs(np.asarray(overlay, dtype=float) - expected).mean() < 6

    assert cli.main(["predict", str(folder), str(photographs / "a.jpg"), "--out", str(out), "--tta", "flip"]) == 0


def test_colours_of_a_model_that_saved_none(folder):
    segmenter = load_segmenter(folder, device="cpu")
    assert palette_of(segmenter) == [tuple(colour) for colour in PALETTE]
    segmenter.model.config.palette = None
    assert len(set(palette_of(segmenter))) == 3


@pytest.mark.parametrize(
    ("model", "paths", "options", "message"),
    [
        ("MODEL", ["nowhere"], {}, "nowhere: there is no such file, folder or match"),
        ("MODEL", ["*.nothing"], {}, "no such file, folder or match; name image files"),
        ("MODEL", ["empty"], {}, "empty: holds no image"),
        ("MODEL", [], {}, "no path given"),
        ("MODEL", ["a.png"], {"size": "huge"}, 'neither "native" nor "model"'),
        ("MODEL", ["a.png"], {"tile": 8}, "at least 32"),
        ("empty", ["a.png"], {}, "empty: no semantic segmentation model .* folder of a finished run"),
        ("nobody/nothing", ["a.png"], {}, "nobody/nothing: no semantic segmentation model"),
    ],
)
def test_what_cannot_work_is_refused_at_once(folder, tmp_path, monkeypatch, model, paths, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    photograph().save("a.png")
    with pytest.raises(PredictError, match=message):
        predict(folder if model == "MODEL" else model, paths, **options)


def test_each_file_once(photographs):
    files = expand_paths([photographs / "a.jpg", photographs, photographs / "more"])
    assert [path.name for path in files] == ["a.jpg", "b.gif", "b.png", "d.jpg", "c.webp"]


def test_pipeline_takes_both_models_without_a_complaint(folder, photographs, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # it keeps its records to itself
    segment = pipeline("image-segmentation", model=str(folder), device="cpu")
    masks = segment(str(photographs / "a.jpg"))
    assert masks and all(mask["mask"].size == (90, 70) for mask in masks)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
