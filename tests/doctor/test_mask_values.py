"""What is found in a folder, and what its masks are taken to mean."""

import json

import numpy as np
import pytest
from datasets import Image as Column
from own_folders import COLORS, KINDS, as_palette, scene, write_folder, write_image
from PIL import Image

from hf_seg.data.classes import load_classes, read_classes
from hf_seg.data.sources import folder
from hf_seg.doctor.init import class_shares
from hf_seg.doctor.mask_values import guess_classes, survey_classes, survey_masks
from hf_seg.problem import DataError


def look(root, classes=None):
    found = folder.find_pairs(root)
    assert found.problems == []
    splits = {"pairs": folder.build_table(list(found.splits["pairs"].values()), Column())}
    if classes is None:
        return survey_masks(splits)
    (root / "classes.json").write_text(json.dumps(classes))
    return survey_classes(splits, root)


def guess(root, names=None):
    return guess_classes("own", *look(root), names)


def named(*values):
    return [(f"class_{index}", value) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("kind", "classes", "ignore"),
    [
        ("ids", named(0, 1, 2), [255]),
        ("palette", named(0, 1, 2), None),
        ("rgb", named("#000000", "#1e1ec8", "#c81e1e", "#ffffff"), None),
        ("rgba", named("#000000", "#1e1ec8", "#c81e1e"), None),
        ("grey_rgb", named(0, 1, 2), None),
        ("grey_alpha", named(0, 1, 2), None),
        ("sixteen_bits", named(0, 1000, 2000), None),
        ("binary", [("background", 0), ("foreground", 255)], None),
        ("one_bit", [("background", 0), ("foreground", 1)], None),
    ],
)
def test_every_kind_of_mask_is_seen_through(tmp_path, kind, classes, ignore):
    survey, found = look(write_folder(tmp_path, kind, 4))
    guessed = guess_classes("own", survey, found)
    by_color = kind in ("rgb", "rgba")
    assert found is by_color
    assert [(entry["name"], entry["color" if by_color else "id"]) for entry in guessed["classes"]] == classes
    assert guessed.get("ignore") == ignore
    # with these classes the same folder has nothing unknown in it, and the shares are those of the scenes
    survey, found = look(tmp_path, guessed)
    assert found is by_color and not survey.problems
    shares = class_shares(survey, load_classes(tmp_path))
    assert sum(share for *_, share, _ in shares) == pytest.approx(1) and all(seen == 4 for *_, seen in shares)
    masks = [np.asarray(KINDS[kind](scene(number)[1]).convert("RGB" if by_color else None)) for number in range(4)]
    ground = [
        (mask == 0).all(axis=-1) if by_color else (mask[..., 0] if mask.ndim == 3 else mask) == 0 for mask in masks
    ]
    assert shares[0][2] == pytest.approx(np.mean(ground))


def test_the_masks_own_palette_is_taken_over(tmp_path):
    guessed = guess(write_folder(tmp_path, "palette", 3))
    assert [entry["color"] for entry in guessed["classes"]] == [
        "#{:02x}{:02x}{:02x}".format(*COLORS[i]) for i in range(3)
    ]
    write_folder(tmp_path, "ids", 3)
    colors = [entry["color"] for entry in guess(tmp_path)["classes"]]
    assert len(set(colors)) == 3


@pytest.mark.parametrize(
    ("values", "classes", "ignore"),
    [
        ([0, 1, 255], [0, 1], [255]),
        ([*range(150), 255], [*range(150)], [255]),
        ([*range(1, 254), 255], [*range(1, 254)], [255]),
        ([0, 9, 15, 255], [0, 9, 15], [255]),  # some of many classes, in a small data set
        ([0, 64, 255], [0, 64, 255], None),  # may be shades of grey
        ([0, 50, 100, 255], [0, 50, 100, 255], None),
        ([0, 85, 170, 255], [0, 85, 170, 255], None),
        ([7, 255], [7, 255], None),
        ([0, 1, 65535], [0, 1], [65535]),
    ],
)
def test_void_is_guessed_only_where_it_is_certain(tmp_path, values, classes, ignore):
    mask = np.resize(np.array(values, np.uint8 if max(values) < 256 else np.uint16), (16, 16))
    write_image(tmp_path / "images" / "a.png", np.zeros((16, 16, 3), np.uint8))
    write_image(tmp_path / "masks" / "a.png", mask)
    guessed = guess(tmp_path)
    assert [entry["id"] for entry in guessed["classes"]] == classes and guessed.get("ignore") == ignore


def test_names_from_elsewhere_can_stand_in_classes_json(tmp_path):
    names = {0: "sky", 1: "tree\nhouse", 2: "caf\u00e9 \ud800"}
    guessed = guess(write_folder(tmp_path, "palette", 3), names)
    assert [entry["name"] for entry in guessed["classes"]] == ["sky", "tree\\nhouse", "caf\u00e9 \\ud800"]
    read_classes(guessed)  # refuses nothing


def test_one_bit_masks_beside_0_and_255(tmp_path):
    write_folder(tmp_path, "binary", 3)
    write_image(tmp_path / "masks" / "photo_01.png", KINDS["one_bit"](scene(1)[1]))
    survey, by_color = look(tmp_path)
    assert set(survey.pixels()) == {0, 255}
    survey, _ = look(tmp_path, guess_classes("own", survey, by_color))
    assert set(survey.pixels()) == {0, 1} and not survey.problems  # background and foreground


def test_one_bit_masks_whose_white_is_not_known(tmp_path):
    write_folder(tmp_path, "ids", 3)
    write_image(tmp_path / "masks" / "photo_01.png", KINDS["one_bit"](scene(1)[1]))
    with pytest.raises(DataError, match="photo_01.jpg: the mask has 1 bit per pixel, and its white could be 1 or 255"):
        look(tmp_path)


def test_names_of_void_and_names_that_no_mask_can_hold(tmp_path):
    names = {-1: "license plate", 0: "sky", 1: "tree", 2: "", 70_000: "far", 255: "Void"}
    guessed = guess(write_folder(tmp_path, "ids", 3), names)
    assert [entry["name"] for entry in guessed["classes"]] == ["sky", "tree", "class_2"]
    assert guessed["ignore"] == [255]
    read_classes(guessed)
    guessed = guess(write_folder(tmp_path / "without", "palette", 3), {0: "sky", 1: "tree", 2: "house", 255: "ignore"})
    assert len(guessed["classes"]) == 3 and "ignore" not in guessed


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 40), np.uint8), "the masks hold 0 only, but training needs two classes."),
        (
            np.arange(1600, dtype=np.uint16).reshape(40, 40),
            "the masks hold 1,600 different ids .* only 255 classes are",
        ),
        (
            np.arange(4800).reshape(40, 40, 3).astype(np.uint8),
            "different colours .* save them as PNG, and resize them by nearest",
        ),
    ],
)
def test_what_cannot_be_classes(tmp_path, mask, message):
    write_image(tmp_path / "images" / "a.png", np.zeros((40, 40, 3), np.uint8))
    write_image(tmp_path / "masks" / "a.png", mask)
    with pytest.raises(DataError, match=message):
        guess(tmp_path)


def test_bad_pairs_are_named_and_the_others_looked_at(tmp_path):
    write_folder(tmp_path, "rgb", 6)
    (tmp_path / "images" / "photo_00.jpg").write_bytes(b"no picture")
    (tmp_path / "masks" / "photo_01.png").write_bytes(b"no picture")
    write_image(tmp_path / "masks" / "photo_02.png", Image.new("RGB", (4, 4)))
    noise = np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8)
    write_image(tmp_path / "images" / "photo_03.jpg", noise)
    write_image(tmp_path / "masks" / "photo_03.png", noise)
    survey, _ = look(tmp_path)
    assert list(survey.usable["pairs"]) == [4, 5]
    reasons = [problem.what for problem in survey.problems]
    assert reasons[0].startswith("cannot be decoded (Unid") and reasons[1].startswith("cannot be decoded (Unid")
    assert reasons[2].startswith("the image is 48x32 but the mask is 4x4")
    assert reasons[3] == "the mask holds more than 4,096 colours"


def test_with_classes_the_unknown_is_an_error(tmp_path):
    write_folder(tmp_path, "ids", 3)
    classes = {"classes": [{"name": "a", "id": 0}, {"name": "b", "id": 1}], "ignore": [255]}
    write_image(tmp_path / "masks" / "photo_01.png", as_palette((scene(1)[1] == 1).astype(np.uint8)))
    survey, _ = look(tmp_path, classes)
    assert list(survey.usable["pairs"]) == [1]
    assert len(survey.problems) == 2
    assert all(problem.what.startswith("the mask holds 2 (") for problem in survey.problems)
