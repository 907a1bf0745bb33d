import json
import logging
import os
import time
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline

from hf_seg import cli
from hf_seg.data.geometry import _starts
from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.data.stored_image import DEEP
from hf_seg.data.transforms import SegTransform
from hf_seg.inference import predict as predict_module
from hf_seg.inference import write as write_module
from hf_seg.inference.predict import expand_paths, predict
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.inference.write import predict_to_folder
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.build import build_image_processor
from hf_seg.problem import Problem, Refusal

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
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(path)
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
    return {Path(result.place if isinstance(result, Problem) else result.path).name: result for result in results}


def test_masks_are_those_of_the_image_processor(folder, photographs):
    segmenter = load_segmenter(folder, device="cpu")
    results = by_name(predict(segmenter, [photographs], batch_size=2))
    assert list(results) == ["a.jpg", "b.gif", "b.png", "d.jpg", "c.webp"]  # the order of the paths
    assert isinstance(results["d.jpg"], Problem) and "truncated" in results["d.jpg"].what
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
    starts, _ = _starts(length, 64)
    covered = np.zeros(length, dtype=bool)
    for start in starts:
        assert 0 <= start and (start + 64 <= length or length < 64)
        covered[start : start + 64] = True
    assert covered.all()
    assert all(b - a <= 48 for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("tile", [None, 200])
@pytest.mark.parametrize("size", [(300, 1), (1, 300)])
def test_a_letterbox_leaves_a_line_of_a_long_and_thin_picture(folder, tmp_path, size, tile):
    segmenter = load_segmenter(folder, device="cpu")
    processor = build_image_processor(size=(64, 64), normalize="none", resize="letterbox")
    segmenter = Segmenter(model=segmenter.model, image_processor=processor)
    photograph(size).save(tmp_path / "thin.png")
    (result,) = predict(segmenter, [tmp_path / "thin.png"], tile=tile)
    assert result.mask.shape == size[::-1]
    # as training sees it
    table = build_label_table({0: 0, 1: 1, 2: 2})
    spec = DatasetSpec(
        name="a", class_names=tuple(NAMES.values()), palette=tuple(map(tuple, PALETTE)), label_table=table
    )
    transform = SegTransform(size=(64, 64), spec=spec, resize="letterbox")
    pair = {"image": [photograph(size)], "mask": [Image.new("L", size, 1)]}
    seen = transform.finish(transform.prepare(pair))
    assert (seen["labels"] == 1).sum() == 64 and (seen["labels"] == 255).sum() == 63 * 64
    difference = (segmenter.prepare(photograph(size)) - seen["pixel_values"][0]).abs()
    assert difference.max() < 0.02  # Pillow and torchvision round otherwise


@pytest.mark.parametrize("option", [{"size": "model"}, {"tile": 100}])
def test_a_model_that_sees_windows_takes_neither_a_size_nor_tiles(folder, tmp_path, option):
    windows = build_image_processor(size=(32, 64), normalize="none", resize="crop")
    segmenter = Segmenter(model=load_segmenter(folder, device="cpu").model, image_processor=windows)
    photograph().save(tmp_path / "a.png")
    with pytest.raises(Refusal, match=f"^{next(iter(option))}: .* own size, in windows of 64×32 pixels; leave"):
        predict_to_folder(segmenter, [tmp_path / "a.png"], tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_photographs_do_not_pile_up_while_small_masks_are_written(folder, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(4):
        photograph((200, 200), number).save(tmp_path / "in" / f"{number}.png")
    write, predict_files, written, waiting = write_module._write, write_module.predict_files, [], []

    def slowly(*arguments):
        time.sleep(0.05)
        write(*arguments)
        written.append(arguments)

    def counted(*arguments):
        for number, result in enumerate(predict_files(*arguments)):
            waiting.append(number - len(written))
            yield result

    monkeypatch.setattr(write_module, "_write", slowly)
    monkeypatch.setattr(write_module, "predict_files", counted)
    monkeypatch.setattr(write_module, "BATCH_PIXELS", 100 * 100)  # less than a photograph, more than a mask
    predict_to_folder(folder, [tmp_path / "in"], tmp_path / "out", device="cpu", size="model")
    assert waiting == [0] * 4


def test_an_overlay_has_no_comment_of_the_photograph(folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, comment in (("short.gif", b"secret"), ("long.gif", b"x" * 70_000)):  # too long for a JPEG
        Image.new("RGB", (40, 30)).save(photos / name, comment=comment)
    assert cli.main(["predict", str(folder), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    for name in ("short", "long"):
        overlay = (tmp_path / "out" / f"{name}_overlay.jpg").read_bytes()
        assert b"secret" not in overlay and b"xxxxxxxx" not in overlay


def test_command_writes_masks_overlays_and_lines(folder, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    pattern = str(photographs / "*.[jpg][pni]*")  # for shells that do not expand
    status = cli.main(["predict", str(folder), str(photographs), pattern, "--out", str(out), "--device", "cpu"])
    assert status == 1
    err = capsys.readouterr().err
    assert f"{photographs / 'd.jpg'}: left out: cannot be decoded (OSError: " in err and " images/s]" not in err
    assert ".webp are taken from a folder; left out: 1 .txt. Name pictures of other kinds" in err
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
    assert segmenter.palette == [tuple(colour) for colour in PALETTE]
    segmenter.model.config.palette = None
    assert len(set(segmenter.palette)) == 3


@pytest.mark.parametrize(
    ("model", "paths", "options", "message"),
    [
        ("MODEL", ["nowhere"], {}, "nowhere: there is no such file, folder or match"),
        ("MODEL", ["*.nothing"], {}, "no such file, folder or match; name image files"),
        ("MODEL", ["empty"], {}, "empty: holds no image"),
        ("MODEL", [], {}, "no path given"),
        ("MODEL", ["a.png"], {"size": "huge"}, 'neither "native" nor "model"'),
        ("MODEL", ["a.png"], {"tile": 8}, "at least 32"),
        ("MODEL", ["a.png"], {"batch_size": 0}, "batch_size: must be at least 1, not 0"),
        ("MODEL", ["x" * 5000], {}, "there is no such file"),
        ("empty", ["a.png"], {}, "empty: no semantic segmentation model .* folder of a finished run"),
        ("nobody/nothing", ["a.png"], {}, "nobody/nothing: is neither a folder nor in the cache of the Hub"),
    ],
)
def test_what_cannot_work_is_refused_at_once(folder, tmp_path, monkeypatch, model, paths, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    photograph().save("a.png")
    with pytest.raises(Refusal, match=message):
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


# -- what is written, and what is not overwritten ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A SegFormer in memory."""
    torch.manual_seed(0)
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32}
    model = SegformerForSemanticSegmentation(SegformerConfig(id2label=NAMES, **sizes)).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=1.0)
    return Segmenter(model=model, image_processor=build_image_processor(size=(64, 64), normalize="none"))


def contents(root):
    return {path: (path.is_symlink(), path.is_file() and path.read_bytes()) for path in root.rglob("*")}


def lines_of(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("paths", "out", "message"),
    [
        (["photos"], "photos", "photos: is or lies in photos; the output folder cannot be an input"),
        (["photos/a.png", "b.png"], "photos", "photos/a.png: is or lies in photos"),
        (["b.png"], ".", "b.png: is or lies in ."),
        (["photos"], ".", "photos: is or lies in ."),
        (["photos"], "link", "photos: is or lies in link"),
        (["link"], "photos", "link: is or lies in photos"),
        (["link-to-a.png"], "photos", "link-to-a.png: is or lies in photos"),
        (["photos/*"], "photos", "all 1 images lie in photos or are masks .* name another folder with --out"),
        (["photos"], "b.png", "b.png: is not a folder, so nothing can be written to b.png"),
        (["photos"], "b.png/out", "b.png: is not a folder, so nothing can be written to b.png/out"),
        (
            ["photos"],
            "others",
            "others: would overwrite .*: others/a.png; move them, or name another",
        ),
        (["photos"], "link-out", "would overwrite .*: link-out/a_overlay.jpg; move"),
        (["photos"], "their-lines", "would overwrite .*: their-lines/predictions.jsonl; move"),
        (["photos"], "folders", "would overwrite .*: folders/a.png; move"),
    ],
)
def test_no_file_of_the_user_is_overwritten(tmp_path, monkeypatch, capsys, paths, out, message):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.png", "b.png", "others/a.png", "link-out/x.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        photograph(seed=len(name)).save(name)
    Path("link").symlink_to("photos")
    Path("link-to-a.png").symlink_to("photos/a.png")
    Path("link-out/a_overlay.jpg").symlink_to(tmp_path / "photos" / "a.png")
    Path("their-lines").mkdir()
    Path("their-lines/predictions.jsonl").write_text('{"file": "of another program"}\n')
    Path("folders/a.png").mkdir(parents=True)
    before = contents(tmp_path)
    # a model that is not there: it is not even looked for
    with pytest.raises(Refusal, match=message):
        predict_to_folder("no/such/model", paths, out)
    assert contents(tmp_path) == before


def test_results_are_replaced_unless_they_were_changed(segmenter, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    photograph().save(root / "a.jpg")
    predict_to_folder(segmenter, [root], out)
    masks = np.asarray(Image.open(out / "a.png"))
    photograph((80, 60), 5).save(root / "a.jpg")
    for _ in range(2):
        predict_to_folder(segmenter, [root / "a.jpg"], out)
    assert Image.open(out / "a.png").size == (80, 60) == Image.open(out / "a_overlay.jpg").size != masks.shape[::-1]

    Image.open(out / "a.png").rotate(180).save(out / "a.png")  # a mask corrected by hand
    before = contents(out)
    with pytest.raises(Refusal, match=r"a\.png; move them"):
        predict_to_folder(segmenter, [root], out)
    assert contents(out) == before


def test_names_are_unique_in_the_whole_call(segmenter, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    names = ["a.jpg", "a.png", "a_jpg.bmp", "A.webp", "x.png", "x_overlay.jpg", "b.png/c.png", "b.gif"]
    names += ["e\u0301.png", "\u00e9.jpg"]  # one letter in two forms
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photograph((40 + number, 30)).save(root / name)
    predict_to_folder(segmenter, [root, root / ".." / "in" / "x.png"], out)
    lines = lines_of(out)
    assert sorted(line["file"] for line in lines) == sorted(str(root / name) for name in names)
    written = Counter(line[kind].casefold() for line in lines for kind in ("mask", "overlay"))
    assert len(written) == 2 * len(names)  # also where letter case does not count
    assert len([path for path in out.rglob("*") if path.is_file()]) == 2 * len(names) + 1
    for line in lines:
        sizes = {Image.open(path).size for path in (line["file"], out / line["mask"], out / line["overlay"])}
        assert len(sizes) == 1


@pytest.mark.parametrize("name", ["n" * 247 + ".jpg", "\u00e4" * 124 + ".png", "x." + "y" * 253])
def test_names_that_are_as_long_as_a_name_may_be(segmenter, tmp_path, name):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    photograph().save(path, "PNG")
    path.with_name("x").write_bytes(path.read_bytes())  # of the same stem as one of them
    assert predict_to_folder(segmenter, [path, path.with_name("x")], tmp_path / "out") == []
    assert all(
        (tmp_path / "out" / line[kind]).is_file()
        for line in lines_of(tmp_path / "out")
        for kind in ("mask", "overlay")
    )


def test_results_are_no_photographs(segmenter, tmp_path, capsys):
    photograph().save(tmp_path / "a.jpg")
    for left_out in (0, 2):
        predict_to_folder(segmenter, [tmp_path], tmp_path / "masks")
        assert [line["file"] for line in lines_of(tmp_path / "masks")] == [str(tmp_path / "a.jpg")]
        said = f"{left_out} images are left out: they lie in {tmp_path / 'masks'} or are masks"
        assert (said in capsys.readouterr().err) == bool(left_out)
    predict_to_folder(segmenter, [tmp_path, tmp_path / "masks" / "a.png"], tmp_path / "others")  # a mask may be named
    assert [line["file"] for line in lines_of(tmp_path / "others")] == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "masks" / "a.png"),
    ]
    assert "1 images are left out: " in capsys.readouterr().err


def test_links_to_folders_are_followed_and_loops_named(tmp_path):
    for folder in ("in", "elsewhere"):
        (tmp_path / folder).mkdir()
        photograph().save(tmp_path / folder / f"{folder}.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in expand_paths([tmp_path / "in"])] == ["in.png", "elsewhere.png"]
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    with pytest.raises(Refusal, match="in/link/back: is a link to a folder that contains it"):
        expand_paths([tmp_path / "in"])


def test_a_link_to_nothing_gets_a_line_and_no_mask(segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    photograph().save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nothing")
    (problem,) = predict_to_folder(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert problem.place == str(tmp_path / "in" / "gone.png") and "FileNotFoundError" in problem.what
    assert [list(line)[1] for line in lines_of(tmp_path / "out")] == ["mask", "error"]


@pytest.mark.parametrize(
    "stop",
    [
        KeyboardInterrupt(),
        OSError("disk full"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 TiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_call_that_is_interrupted_leaves_the_lines_of_the_one_before(segmenter, tmp_path, monkeypatch, stop):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for number in range(3):
        photograph(seed=number).save(root / f"{number}.png")
    predict_to_folder(segmenter, [root / "2.png"], out)
    before = (out / "predictions.jsonl").read_bytes()
    scores = Segmenter.scores
    calls = iter([False, True])

    def fail(*arguments):
        if next(calls):
            raise stop
        return scores(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "scores", fail)
        expected = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else Refusal
        with pytest.raises(expected, match=None if expected is KeyboardInterrupt else "disk full|lower batch_size"):
            predict_to_folder(segmenter, [root], out, batch_size=1)
    assert (out / "predictions.jsonl").read_bytes() == before
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    predict_to_folder(segmenter, [root], out)  # what was written before the interruption is known as such
    assert len(lines_of(out)) == 3


@pytest.mark.parametrize("batch_size", ["0", "-1"])
def test_a_batch_of_nothing_is_refused_before_anything_is_written(tmp_path, capsys, batch_size):
    photograph().save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text('{"file": "a.png", "error": "an older one"}\n')
    before = contents(tmp_path)
    arguments = ["predict", str(tmp_path), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--batch-size", batch_size]) == 2
    assert capsys.readouterr().err == f"error: batch_size: must be at least 1, not {batch_size}\n"
    assert contents(tmp_path) == before


def grey(dtype):
    return Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 4).astype(dtype))


def png_with_text(path):
    """A PNG with 2 MB of text behind its pixels."""
    photograph().save(path)
    chunk = b"zTXtComment\0\0" + zlib.compress(bytes(2_000_000))
    whole = path.read_bytes()
    text = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(whole[:-12] + text + whole[-12:])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("deep.png", lambda path: grey(np.uint16).save(path), DEEP),
        ("deep.tif", lambda path: grey(np.int32).save(path), DEEP),
        ("float.tif", lambda path: grey(np.float32).save(path), DEEP),
        ("text.png", png_with_text, "cannot be decoded (ValueError: Decompressed data too large"),
        ("phone.heic", lambda path: path.write_bytes(bytes(99)), "convert other formats, such as HEIC, to JPEG"),
    ],
)
def test_what_training_refuses_gets_no_mask(segmenter, tmp_path, name, write, reason):
    write(tmp_path / name)
    (result,) = predict_to_folder(segmenter, [tmp_path / name], tmp_path / "out")
    error = f"{result.what}. {result.remedy}"
    assert reason in error and result.place == str(tmp_path / name)
    assert lines_of(tmp_path / "out") == [{"file": result.place, "error": error}]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_a_pipe_in_a_folder_is_not_waited_for(segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    photograph().save(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (problem,) = predict_to_folder(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert problem.place.endswith("pipe.png") and "neither a file nor a link to one" in problem.what


def test_an_overlay_that_a_jpeg_cannot_hold_is_a_png(segmenter, tmp_path):
    Image.new("RGB", (65_536, 1)).save(tmp_path / "wide.png")
    assert predict_to_folder(segmenter, [tmp_path / "wide.png"], tmp_path / "out") == []
    (line,) = lines_of(tmp_path / "out")
    assert line["overlay"] == "wide_overlay.png"
    assert Image.open(tmp_path / "out" / "wide_overlay.png").size == (65_536, 1)


def test_large_photographs_are_not_piled_up(segmenter, tmp_path, monkeypatch):
    for number in range(12):
        Image.new("1", (100, 100)).save(tmp_path / f"{number:02}.png")
    read = []
    monkeypatch.setattr(predict_module, "BATCH_PIXELS", 25_000)
    monkeypatch.setattr(predict_module, "read_image", lambda path, _: read.append(path) or photograph((100, 100)))
    results = predict(segmenter, [tmp_path])
    next(results)
    assert len(read) <= 4  # two batches of two, though a batch may have 32
    assert len(list(results)) == 11


def test_classes_of_one_name_share_their_pixels(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenter.model.config, "id2label", {0: "other", 1: "other", 2: "other"})
    photograph().save(tmp_path / "a.png")
    (result,) = predict(segmenter, [tmp_path / "a.png"])
    assert len(np.unique(result.mask)) > 1 and result.class_shares == {"other": pytest.approx(1)}


def test_the_highest_score_wins_however_near_the_next_one_is(segmenter, tmp_path, monkeypatch):
    near = torch.tensor([0.0, 1e-8, -1.0])
    assert near.softmax(dim=0)[0] == near.softmax(dim=0)[1]  # where the first of two equal ones would win
    monkeypatch.setattr(Segmenter, "_scores", lambda self, x: near[None, :, None, None].expand(len(x), 3, 16, 16))
    photograph().save(tmp_path / "a.png")
    (result,) = predict(segmenter, [tmp_path / "a.png"])
    assert (result.mask == 1).all()


def test_scores_that_are_no_numbers_are_no_mask(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "_scores", lambda self, x: torch.full((len(x), 3, 16, 16), torch.nan))
    photograph().save(tmp_path / "a.png")
    (result,) = predict_to_folder(segmenter, [tmp_path / "a.png"], tmp_path / "out")
    assert "not numbers (NaN)" in result.what


@pytest.mark.parametrize("palette", [PALETTE[:2], [[1, 2]] * 3, [[0, 0, 256]] * 3, [["a", "b", "c"]] * 3, 7, {"a": 1}])
def test_a_palette_that_is_none_is_refused(palette):
    config = SimpleNamespace(palette=palette, id2label=NAMES)
    with pytest.raises(Refusal, match="palette that does not give each of 3 classes a colour"):
        _ = Segmenter(model=SimpleNamespace(config=config), image_processor=None).palette
