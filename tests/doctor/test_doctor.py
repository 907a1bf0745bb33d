"""`hf-seg doctor`: each planted fault is found by file and code, clean data is silent, and training agrees."""

import io
import json
import os
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features
from datasets import Image as Image_column
from own_folders import ORIENTATION, as_rgb, scene, write_folder, write_image
from PIL import Image, ImageEnhance

from hf_seg import cli, train
from hf_seg.data.prepared import default_workers
from hf_seg.doctor import doctor
from hf_seg.problem import Refusal
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run

CLASSES = {"classes": [{"name": name, "id": index} for index, name in enumerate(("ground", "disc", "bar"))]}
CLASSES["ignore"] = [255]
SIZE = (96, 80)
COUNT = 10
# the split is drawn with a fixed seed: photo_03 is one of train


@pytest.fixture(autouse=True)
def sound_machine(monkeypatch):
    """What is installed here does not count: tests/doctor/test_environment.py is about that."""
    monkeypatch.setattr(doctor, "check_packages", list)
    monkeypatch.setattr(doctor, "check_gpu", list)


@pytest.fixture
def root(tmp_path):
    """Ten pairs that are in order."""
    folder = write_folder(tmp_path / "own", "ids", COUNT, SIZE)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


@pytest.fixture
def ask(capsys):
    """`ask(...)` runs the command with --json; gives exit status and report."""

    def run(*arguments):
        status = cli.main(["doctor", "--json", *map(str, arguments)])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def is_refused(tmp_path):
    """Whether training would refuse a recipe."""

    def check(path):
        try:
            train.check([Run(recipe, tmp_path / "runs" / recipe.name) for recipe in load_recipes([path])])
        except Refusal:
            return True
        return False

    return check


def photo(root, number=3):
    return root / "images" / f"photo_{number:02}.jpg"


def mask(root, number=3):
    return root / "masks" / f"photo_{number:02}.png"


def with_suffix(root, suffix, pixels, **options):
    """Put another file in the photograph's place."""
    photo(root).unlink()
    write_image(photo(root).with_suffix(suffix), pixels, **options)


def turned(root, number, mask_turned):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image, ids = scene(number, SIZE)
    lying = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
    write_image(photo(root), lying, exif=exif)
    write_image(mask(root), np.rot90(ids).copy() if mask_turned else ids)


def truncate(root):
    photo(root).write_bytes(photo(root).read_bytes()[:1500])


def no_picture(root):
    mask(root).write_text("no picture")


def paint(root, value, number=3, size=SIZE):
    write_image(mask(root, number), Image.new("L", size, value))


def stray_value(root):
    ids = scene(3, SIZE)[1]
    ids[0, :7] = 77
    write_image(mask(root), ids)


def jpeg_mask(root):
    mask(root).unlink()
    write_image(mask(root).with_suffix(".jpg"), scene(3, SIZE)[1])


def rgba(root):
    with_suffix(root, ".png", Image.fromarray(scene(3, SIZE)[0]).convert("RGBA"))


def split(root, **lists):
    """The given names in validation and test, all others in train."""
    names = {path.stem for path in (root / "images").iterdir()}
    held_out = {"validation": ["photo_00"], "test": ["photo_01"]} | lists
    rest = sorted(names - set(held_out["validation"]) - set(held_out["test"]))
    (root / "split.json").write_text(json.dumps({"train": rest} | held_out))


def without_disc(root):
    ids = scene(1, SIZE)[1]
    write_image(mask(root, 1), np.where(ids == 1, 0, ids).astype(np.uint8))
    split(root)


def rare(root):
    for number in range(COUNT):
        ids = np.where(scene(number, SIZE)[1] == 1, 0, 2).astype(np.uint8)
        ids[0, :2] = 1
        write_image(mask(root, number), ids)


def all_masks(root, value):
    for number in range(COUNT):
        paint(root, value, number)


def points(root):
    for number in range(COUNT):
        ids = np.full((200, 200), 255, np.uint8)
        ids[3, 3] = 1
        write_image(photo(root, number), scene(number, (200, 200))[0])
        write_image(mask(root, number), ids)


def half_ignored(root):
    ids = scene(1, SIZE)[1]
    ids[: SIZE[1] * 6 // 10] = 255
    write_image(mask(root, 1), ids)
    split(root)


def long_picture(root):
    image, ids = scene(3, (400, 80))
    write_image(photo(root), image)
    write_image(mask(root), ids)


def copy(root):
    """photo_03 once more as photo_00, which is in validation: smaller, brighter, and compressed harder."""
    image = Image.fromarray(scene(3, SIZE)[0]).resize((72, 60))
    write_image(photo(root, 0), ImageEnhance.Brightness(image).enhance(1.1), quality=60)
    write_image(mask(root, 0), scene(3, (72, 60))[1])
    split(root)


def copy_in_train(root):
    write_image(photo(root, 5), scene(3, SIZE)[0], quality=50)
    split(root)


def split_folders(root, names=("train", "validation", "test")):
    for number, name in enumerate(("train", "validation", "test")):
        (root / name / "images").mkdir(parents=True)
        (root / name / "masks").mkdir()
        for own in range(COUNT)[number::3] if name in names else ():
            photo(root, own).rename(root / name / "images" / photo(root, own).name)
            mask(root, own).rename(root / name / "masks" / mask(root, own).name)
    for part in ("images", "masks"):
        for rest in (root / part).iterdir():
            rest.unlink()
        (root / part).rmdir()


def too_few(root):
    for number in range(2, COUNT):
        photo(root, number).unlink()
        mask(root, number).unlink()


def gone(root):
    split(root)
    photo(root).unlink()
    mask(root).unlink()


def unsafe_zip(root):
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        archive.writestr("../escape.jpg", "x")


def unsafe_tar(root):
    with tarfile.open(root / "photos.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("images/link.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)


def half_an_archive(root):
    with tarfile.open(root / "photos.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("images/a.jpg")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    (root / "photos.tar.gz").write_bytes((root / "photos.tar.gz").read_bytes()[:50_000])


def damaged_xz(root):
    with tarfile.open(root / "photos.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("images/a.jpg")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    content = bytearray((root / "photos.tar.xz").read_bytes())
    content[2000:2100] = b"\xff" * 100
    (root / "photos.tar.xz").write_bytes(content)


def pax_header(root):
    """A map of the holes in a file that is none."""
    with tarfile.open(root / "photos.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("images/a.jpg")
        member.pax_headers = {"GNU.sparse.map": "many"}
        archive.addfile(member)


def exotic_zip(root):
    """One that asks for a later version of the format than zipfile has."""
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "x")
    content = bytearray((root / "photos.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    (root / "photos.zip").write_bytes(content)


def png_as_jpg(root):
    write_image(photo(root), Image.fromarray(scene(3, SIZE)[0]), format="PNG")


FAULTS = {
    # name: (what is done, level, code, end of the file's name)
    "a photograph cut short": (truncate, "error", "undecodable", "images/photo_03.jpg"),
    "a mask that is none": (no_picture, "error", "undecodable", "masks/photo_03.png"),
    "sizes": (lambda root: paint(root, 1, size=(96, 79)), "error", "size-mismatch", "images/photo_03.jpg"),
    "a mask lying down": (lambda root: turned(root, 3, True), "error", "size-mismatch", "images/photo_03.jpg"),
    "no mask": (lambda root: mask(root).unlink(), "error", "unpaired", "images/photo_03.jpg"),
    "no image": (lambda root: photo(root).unlink(), "error", "unpaired", "masks/photo_03.png"),
    "twice": (
        lambda root: write_image(photo(root).with_suffix(".png"), scene(3)[0]),
        "error",
        "unpaired",
        "images/photo_03.png",
    ),
    "a JPEG mask": (jpeg_mask, "error", "mask-kind", "masks/photo_03.jpg"),
    "a value": (stray_value, "error", "mask-values", "masks/photo_03.png"),
    "0 and 255": (lambda root: paint(root, 254), "error", "mask-values", "masks/photo_03.png"),
    "colours": (
        lambda root: write_image(mask(root), as_rgb(scene(3, SIZE)[1])),
        "error",
        "mask-kind",
        "masks/photo_03.png",
    ),
    "16 bits": (
        lambda root: with_suffix(root, ".png", np.full(SIZE[::-1], 1000, np.uint16)),
        "error",
        "deep-image",
        "images/photo_03.png",
    ),
    "no classes.json": (lambda root: (root / "classes.json").unlink(), "error", "classes-json", "classes.json"),
    "wrong classes.json": (
        lambda root: (root / "classes.json").write_text('{"classes": [{"name": "a", "id": 0}, {"id": 1}]}'),
        "error",
        "classes-json",
        "classes.json",
    ),
    "split.json that is none": (lambda root: (root / "split.json").write_text("{}"), "error", "split", "split.json"),
    "split.json with files that are gone": (gone, "error", "split", "split.json"),
    "two pairs": (too_few, "error", "split", "own"),
    "an empty split": (
        lambda root: split_folders(root, ("train", "test")),
        "error",
        "empty-split",
        "own",
    ),
    "no masks at all": (lambda root: (root / "masks").rename(root / "m"), "error", "data-set", "own"),
    "a name that is not UTF-8": (
        lambda root: (root / "images" / os.fsdecode(b"caf\xe9.jpg")).touch(),
        "error",
        "file-name",
        "images/caf\\udce9.jpg",
    ),
    "a loop of links": (
        lambda root: (root / "images" / "again").symlink_to(root / "images"),
        "error",
        "unreachable",
        "images/again",
    ),
    "PNG as .jpg": (png_as_jpg, "warning", "wrong-suffix", "images/photo_03.jpg"),
    "transparency": (rgba, "note", "transparency", "images/photo_03.png"),
    "a palette": (
        lambda root: with_suffix(root, ".gif", Image.fromarray(scene(3, SIZE)[0]).quantize(64)),
        "note",
        "palette-image",
        "images/photo_03.gif",
    ),
    "CMYK": (
        lambda root: write_image(photo(root), Image.fromarray(scene(3, SIZE)[0]).convert("CMYK")),
        "warning",
        "cmyk-image",
        "images/photo_03.jpg",
    ),
    "EXIF": (lambda root: turned(root, 3, False), "note", "exif-orientation", "images/photo_03.jpg"),
    "nothing but void": (lambda root: paint(root, 255), "warning", "all-ignored", "masks/photo_03.png"),
    "all void": (lambda root: all_masks(root, 255), "error", "empty-split", "own"),
    "points that resizing removes": (points, "error", "empty-split", "own"),
    "mostly void": (half_ignored, "warning", "mostly-ignored", "own"),
    "one class only": (lambda root: all_masks(root, 1), "warning", "constant-masks", "own"),
    "a class that test lacks": (without_disc, "warning", "absent-class", "own"),
    "a rare class": (rare, "note", "rare-class", "own"),
    "grey": (
        lambda root: write_image(photo(root), Image.fromarray(scene(3, SIZE)[0]).convert("L")),
        "note",
        "one-channel",
        "own",
    ),
    "a small picture": (
        lambda root: (write_image(photo(root), scene(3)[0]), write_image(mask(root), scene(3)[1])),
        "note",
        "small-image",
        "own",
    ),
    "a long picture": (long_picture, "note", "long-image", "images/photo_03.jpg"),
    "a lens cap": (
        lambda root: write_image(photo(root), Image.new("RGB", SIZE, (9, 9, 9))),
        "warning",
        "blank-image",
        "images/photo_03.jpg",
    ),
    "a copy in another split": (copy, "warning", "duplicate-across-splits", "images/photo_00.jpg"),
    "a copy in the same split": (copy_in_train, "note", "duplicate-within-split", "images/photo_05.jpg"),
    "a zip file that escapes": (unsafe_zip, "warning", "unsafe-archive", "own/photos.zip"),
    "a tar file that escapes": (unsafe_tar, "warning", "unsafe-archive", "own/photos.tar.gz"),
    "a damaged .tar.xz": (damaged_xz, "warning", "damaged-archive", "own/photos.tar.xz"),
    "a pax header": (pax_header, "warning", "damaged-archive", "own/photos.tar"),
    "an exotic zip file": (exotic_zip, "warning", "damaged-archive", "own/photos.zip"),
    "half a tar file": (half_an_archive, "warning", "damaged-archive", "own/photos.tar.gz"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_training_agrees(fault, root, ask, write_recipe, is_refused):
    plant, level, code, file = FAULTS[fault]
    plant(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    recipe = write_recipe("own", data={"name": "folder", "root": str(root), "image_size": 64})
    status, report = ask(recipe)
    (finding, *more) = [finding for finding in report["findings"] if finding["code"] == code]
    assert not more and finding["level"] == level
    assert finding["place"].endswith(file)
    assert finding["what"] and finding["remedy"]
    others = [other for other in report["findings"] if other["level"] == "error" and other["code"] != code]
    assert not others  # one fault, one error
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before  # nothing is written
    assert report["summary"]["would_start"] == (level != "error")
    assert status == (1 if level == "error" else 0) == is_refused(recipe)


def test_clean_data_is_silent(root, ask, write_recipe, is_refused):
    recipe = write_recipe("own", data={"name": "folder", "root": str(root)})
    status, report = ask(recipe)
    assert (status, report["findings"]) == (0, []) and not is_refused(recipe)
    assert report["summary"]["levels"] == {"error": 0, "warning": 0, "note": 0}
    (data,) = report["summary"]["data"]
    assert data["name"] == "folder" and data["place"] == str(root)
    assert {name: part["pairs"] for name, part in data["splits"].items()} == {"train": 8, "validation": 1, "test": 1}
    train_part = data["splits"]["train"]
    assert train_part["usable"] == 8 and train_part["ignored_share"] == pytest.approx(2 / 80)
    assert set(train_part["class_shares"]) == {"ground", "disc", "bar"}
    assert sum(train_part["class_shares"].values()) == pytest.approx(1)


def test_the_split_is_the_one_that_training_draws(root, ask, write_recipe, is_refused):
    copy_in_train(root)
    (root / "split.json").unlink()
    first = ask(root)[1]["summary"]["data"]
    is_refused(write_recipe("own", data={"name": "folder", "root": str(root)}))  # draws it
    assert (root / "split.json").exists()
    assert ask(root)[1]["summary"]["data"] == first


def test_new_pairs_count_as_train_and_are_not_written(root, ask):
    split(root)
    for number in (COUNT, COUNT + 1):
        image, ids = scene(number, SIZE)
        write_image(photo(root, number), image)
        write_image(mask(root, number), ids)
    mask(root, 4).unlink()  # a name in split.json without a pair is no reason to write, either
    before = (root / "split.json").read_text()
    status, report = ask(root)
    found = [(finding["level"], finding["code"]) for finding in report["findings"]]
    assert status == 1 and found == [("note", "split"), ("error", "unpaired")]
    assert report["summary"]["data"][0]["splits"]["train"]["pairs"] == COUNT - 1
    assert (root / "split.json").read_text() == before


def test_all_problems_come_at_once(root, ask):
    truncate(root)
    mask(root, 4).unlink()
    paint(root, 9, 5)
    paint(root, 0, 6, (5, 5))
    (root / "classes.json").write_text(json.dumps(CLASSES | {"colours": []}))
    status, report = ask(root)
    codes = {finding["code"] for finding in report["findings"] if finding["level"] == "error"}
    assert status == 1 and codes == {"classes-json", "undecodable", "unpaired", "size-mismatch"}
    (root / "classes.json").write_text(json.dumps(CLASSES))
    codes = {finding["code"] for finding in ask(root)[1]["findings"] if finding["level"] == "error"}
    assert codes == {"undecodable", "unpaired", "size-mismatch", "mask-values"}


def test_pairs_that_are_dropped_are_warnings(root, ask, write_recipe, is_refused):
    truncate(root)
    mask(root, 4).unlink()
    recipe = write_recipe("own", data={"name": "folder", "root": str(root), "on_bad_pair": "drop"})
    status, report = ask(recipe)
    assert status == 0 and not is_refused(recipe)
    assert {(f["level"], f["code"]) for f in report["findings"]} == {
        ("warning", "undecodable"),
        ("warning", "unpaired"),
    }
    split(root, test=["photo_03"])
    status, report = ask(recipe)
    assert status == 1 and is_refused(recipe)
    (error,) = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert error["code"] == "empty-split" and "test" in error["what"]


def test_the_limits_of_a_recipe_hold(root, ask, write_recipe, is_refused):
    split(root)
    truncate(root)
    recipe = write_recipe("own", data={"name": "folder", "root": str(root), "max_train_samples": 1})
    assert ask(recipe)[0] == 0 and not is_refused(recipe)
    assert ask(recipe, "--data.max_train_samples", "2")[1]["summary"]["data"][0]["splits"]["train"]["pairs"] == 2
    assert ask(recipe, "--data.max_train_samples", "null")[0] == 1


def test_pictures_that_pillow_refuses(root, ask, monkeypatch):
    long_picture(root)  # 32,000 pixels, and the others 7,680
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20_000)
    status, report = ask(root)
    (finding,) = [finding for finding in report["findings"] if finding["code"] == "huge-image"]
    assert status == 0 and finding["level"] == "warning" and finding["place"] == str(photo(root))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10_000)
    status, report = ask(root)
    (finding,) = [finding for finding in report["findings"] if finding["code"] == "huge-image"]
    assert status == 1 and finding["level"] == "error"


def test_recipes_that_are_not_in_order(root, ask, write_recipe, tmp_path):
    paint(root, 9)
    good = write_recipe("good", data={"name": "folder", "root": str(root)})
    bad = write_recipe("bad", training={"learning_rat": 1})
    status, report = ask(bad, good, tmp_path / "nowhere.json")
    assert status == 1
    recipes = [finding for finding in report["findings"] if finding["code"] == "recipe"]
    assert {finding["place"] for finding in recipes} == {str(bad), str(tmp_path / "nowhere.json")}
    assert "learning_rat" in recipes[0]["what"] and recipes[0]["remedy"]
    assert "mask-values" in report["summary"]["codes"]  # the good one is examined all the same


def test_recipes_on_the_same_data_are_one_examination(root, ask, write_recipe):
    paint(root, 9)
    section = {"name": "folder", "root": str(root)}
    paths = [write_recipe("a", data=section), write_recipe("b", data=section | {"image_size": 96}, arch="fcn")]
    report = ask(*paths)[1]
    assert report["summary"]["codes"] == {"mask-values": 1, "small-image": 1} and len(report["summary"]["data"]) == 1


def test_a_folder_with_its_recipe(root, ask, write_recipe):
    path = write_recipe("own", data={"name": "folder", "root": str(root), "max_test_samples": 1})
    (root / "recipe.json").write_text(path.read_text())
    assert ask(root)[1]["summary"]["data"][0]["splits"]["test"]["pairs"] == 1


@pytest.mark.parametrize("on_bad_pair", ["stop", "drop"])
def test_deep_compares_the_cache_with_the_files(root, ask, write_recipe, is_refused, tmp_path, on_bad_pair):
    split(root)
    if on_bad_pair == "drop":
        truncate(root)
    section = {"name": "folder", "root": str(root), "cache": str(tmp_path / "cache"), "on_bad_pair": on_bad_pair}
    recipe = write_recipe("own", data=section)
    assert not is_refused(recipe)  # makes the cache
    assert "stale-cache" not in ask(recipe, "--deep")[1]["summary"]["codes"]
    (train,) = (tmp_path / "cache").glob("folder-train-*[0-9a-f]")
    labels = np.load(train / "labels.npy", mmap_mode="r+")
    labels[-1, 0, 0] ^= 1
    labels.flush()
    assert "stale-cache" not in ask(recipe)[1]["summary"]["codes"]
    status, report = ask(recipe, "--deep")
    (finding,) = [finding for finding in report["findings"] if finding["code"] == "stale-cache"]
    assert status == 0 and finding["level"] == "warning" and finding["place"] == str(photo(root, COUNT - 1))
    assert str(train) in finding["what"] and "Delete that folder" in finding["remedy"]


def test_text_for_people(root, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "FILES_SHOWN", 4)
    for number in range(COUNT):
        paint(root, 100 + number % 2, number)
    assert cli.main(["doctor", str(root)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == f"{root}: 8 train, 1 validation, 1 test; layout images+masks"
    assert lines[2] == "error: mask-values (10)"
    assert sum(f"{root}/masks/photo_" in line for line in lines) == 4 and "  … and 6 more (--all)" in lines
    assert sum(line.startswith("  → Each id in a mask must be in classes.json") for line in lines) == 1
    assert lines[-1] == "10 errors, 0 warnings, 0 notes: training would be refused."
    assert not captured.err  # a log gets no bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.main(["doctor", str(root), "--all"])
    captured = capsys.readouterr()
    assert captured.out.count(f"{root}/masks/photo_") == COUNT and "Examining: " in captured.err


def test_time_and_memory_are_estimated(root, ask, write_recipe, capsys, monkeypatch):
    recipe = write_recipe("own", data={"name": "folder", "root": str(root)}, training={"num_train_epochs": 30})
    with monkeypatch.context() as patch:
        patch.setattr("hf_seg.launch.estimate", lambda *_: (90.0, 1234.0))
        cli.main(["doctor", str(recipe)])
    assert (
        "own: about 90 s per epoch and 45 min in total on this machine, without validation; 1.2 GB of memory\n"
    ) in capsys.readouterr().out
    (estimate,) = ask(recipe)[1]["summary"]["estimates"]
    assert estimate["name"] == "own" and estimate["epochs"] == 30 and estimate["seconds"] > 0

    def refuse(*_):
        raise Refusal("", "cpu is out of memory in training", "lower data.image_size", code="out-of-memory")

    monkeypatch.setattr("hf_seg.launch.estimate", refuse)
    status, report = ask(recipe)
    (problem,) = report["findings"]
    assert status == 0 and (problem["level"], problem["code"]) == ("warning", "out-of-memory")
    assert problem["place"] == str(recipe) and report["summary"]["estimates"] == []


def test_generated_data(ask, write_recipe):
    status, report = ask(write_recipe("generated"))
    assert status == 0 and report["findings"] == []


@pytest.mark.parametrize("overrides", [[], ["--training.seed", "3"]])
def test_a_command_without_paths(capsys, overrides):
    assert cli.main(["doctor", *overrides]) == 2
    assert ("name a recipe or a folder" if overrides else "Missing argument") in capsys.readouterr().err


def test_overrides_belong_to_a_recipe(root, capsys):
    assert cli.main(["doctor", str(root), "--data.layout", "x"]) == 2
    said = capsys.readouterr().err
    assert "has no recipe that --data.layout could change; name a recipe, or a folder with a recipe.json" in said


@pytest.mark.parametrize("cache", ["auto", True, "file"])
@pytest.mark.parametrize("fault", ["unwritable-folder", "full-disk"])
def test_a_cache_that_cannot_be_kept(root, ask, write_recipe, is_refused, tmp_path, monkeypatch, cache, fault):
    """Where a cache is asked for, training is refused; else it goes on without."""
    if fault == "full-disk":
        monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=0, used=0, free=10))
    (tmp_path / "file").touch(exist_ok=fault == "full-disk")
    monkeypatch.setattr(
        "hf_seg.data.cache.cache_folder", lambda: tmp_path / ("new" if fault == "full-disk" else "file")
    )
    if cache == "file":
        cache = str(tmp_path / ("named" if fault == "full-disk" else "file"))
    recipe = write_recipe("own", data={"name": "folder", "root": str(root), "cache": cache})
    status, report = ask(recipe)
    found = [finding for finding in report["findings"] if finding["code"] == fault]
    assert [finding["level"] for finding in found] == ["warning" if cache == "auto" else "error"]
    assert status == is_refused(recipe) == (cache != "auto")


def test_the_default_workers_need_shared_memory(root, ask, write_recipe, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert (default_workers(on_gpu=True), default_workers(on_gpu=False)) == (4, 0)
    monkeypatch.setattr("hf_seg.data.prepared.default_workers", lambda: 3)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=0, used=0, free=10))
    for cache, expected in ((False, 1), ("auto", 0)):
        data = {"name": "folder", "root": str(root), "cache": cache}
        _, report = ask(write_recipe("own", data=data))
        found = [finding["what"] for finding in report["findings"] if finding["code"] == "small-shared-memory"]
        assert len(found) == expected and all("3 data loader workers" in what for what in found)


def test_what_a_letterbox_does_to_pictures(root, ask, write_recipe):
    long_picture(root)
    write_image(photo(root, 4), scene(4)[0])
    write_image(mask(root, 4), scene(4)[1])
    data = {"name": "folder", "root": str(root), "resize": "letterbox", "image_size": [64, 96]}
    _, report = ask(write_recipe("own", data=data))
    found = {finding["code"]: finding["what"] for finding in report["findings"]}
    assert "square" not in found["long-image"]
    assert found["small-image"] == "1 of 10 images are enlarged to image_size 96×64 (the smallest is 48×32 pixels)"


def test_a_folder_of_tables_with_its_classes(tmp_path, root, capsys):
    files = {"image": sorted((root / "images").iterdir()), "mask": sorted((root / "masks").iterdir())}
    columns = {name: [{"bytes": path.read_bytes(), "path": None} for path in paths] for name, paths in files.items()}
    table = Dataset.from_dict(columns, features=Features({"image": Image_column(), "mask": Image_column()}))
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "train.parquet")
    (tmp_path / "table" / "classes.json").write_text(json.dumps(CLASSES))
    report = doctor.diagnose([tmp_path / "table"])
    assert report.would_start and [each["name"] for each in report.data] == ["hub"]


def test_official_data_is_recognised(pet_folder, cityscapes_folder):
    for folder, name in ((pet_folder, "oxford_pet"), (cityscapes_folder, "cityscapes")):
        assert [each["name"] for each in doctor.diagnose([folder]).data] == [name]
