"""Palette masks of which each has a palette of its own: by colour, or refused, and never read as ids."""

import json

import numpy as np
import pytest
from datasets import Image as Column
from own_folders import COLORS, KINDS, as_palette, scene, write_folder, write_image
from PIL import Image

from hf_seg import cli
from hf_seg.data import check, load_spec, load_splits
from hf_seg.data.cache import prepare_splits
from hf_seg.data.check import find_other_palette
from hf_seg.data.classes import load_classes
from hf_seg.data.sources import folder
from hf_seg.data.transforms import build_transforms
from hf_seg.doctor.mask_values import guess_classes, survey_masks
from hf_seg.problem import DataError
from hf_seg.recipe.keys import DataRecipe

IDS = {"classes": [{"name": name, "id": value} for value, name in enumerate(("ground", "disc", "bar"))]}


def own_palette(ids, order):
    """The scene's colours, at the indices that `order` gives them."""
    mask = Image.fromarray(np.array(order, np.uint8)[ids])
    palette = [0] * 9
    for value, index in enumerate(order):
        palette[3 * index : 3 * index + 3] = COLORS[value]
    mask.putpalette(palette)
    return mask


@pytest.fixture
def own_palettes(tmp_path):
    """Six pairs; the last three masks have the indices of two colours exchanged, and one of these no bar."""
    root = write_folder(tmp_path / "own", "palette", 6)
    for number in range(3, 6):
        ids = scene(number)[1]
        write_image(root / "masks" / f"photo_{number:02}.png", own_palette(ids, (0, 2, 1)))
    return root


def look(root):
    return survey_masks(load_splits_of(root))


def load_splits_of(root):
    return {"pairs": folder.build_table(list(folder.find_pairs(root).splits["pairs"].values()), Column())}


def load(root, cache=False):
    data = DataRecipe(name="folder", root=str(root), cache=cache)
    spec, splits = load_spec(data), load_splits(data)
    return prepare_splits(splits, spec, build_transforms(data, spec), cache)


def assert_names_both(message):
    assert "index 1 of the mask's palette is #1e1ec8, but #c81e1e in " in message or "index 2 of" in message
    assert sum(f"photo_0{number}.png" in message for number in range(3)) == 1
    assert sum(f"photo_0{number}.png" in message for number in range(3, 6)) == 1
    assert "classes by their colours" in message


def test_without_classes_they_are_colours(own_palettes):
    survey, by_color = look(own_palettes)
    assert by_color and not survey.problems
    guessed = guess_classes("own", survey, by_color)
    assert {entry["color"] for entry in guessed["classes"]} == {"#000000", "#c81e1e", "#1e1ec8"}
    (own_palettes / "classes.json").write_text(json.dumps(guessed))
    assert load_classes(own_palettes).by_color
    splits = load(own_palettes)  # and training reads them so: the red disc is one class, whatever its index
    assert sum(len(split) for split in splits.values()) == 6


@pytest.mark.parametrize("cache", [False, True])
def test_with_ids_training_refuses_them_and_asks_once(own_palettes, cache, monkeypatch):
    (own_palettes / "classes.json").write_text(json.dumps(IDS))
    with pytest.raises(DataError) as caught:
        load(own_palettes, cache)
    assert_names_both(str(caught.value))
    for number in range(3, 6):
        write_image(own_palettes / "masks" / f"photo_{number:02}.png", as_palette(scene(number)[1]))
    load(own_palettes, cache)
    monkeypatch.setattr(check, "find_other_palette", None)  # what passed is remembered
    load(own_palettes, cache)


def test_with_ids_init_and_the_doctor_refuse_them(own_palettes, capsys):
    (own_palettes / "classes.json").write_text(json.dumps(IDS))
    assert cli.main(["init", str(own_palettes)]) == 2
    assert_names_both(capsys.readouterr().err)
    assert not (own_palettes / "recipe.json").exists()
    assert cli.main(["doctor", "--json", str(own_palettes)]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (error,) = [finding for finding in findings if finding["level"] == "error"]
    assert error["code"] == "mask-palettes"
    assert_names_both(f"{error['place']}: {error['what']}. {error['remedy']}")


def test_ids_beside_other_palettes_are_refused(own_palettes):
    write_image(own_palettes / "masks" / "photo_01.png", KINDS["ids"](scene(1)[1]))
    with pytest.raises(DataError) as caught:
        look(own_palettes)
    assert "photo_0" in str(caught.value) and "or save all masks with one palette" in str(caught.value)


def test_palettes_that_differ_where_no_pixel_is_are_one(tmp_path):
    root = write_folder(tmp_path, "palette", 4)
    short = as_palette(scene(1)[1])
    short.putpalette(short.getpalette()[:9])
    write_image(root / "masks" / "photo_01.png", short)
    other = as_palette(scene(2)[1])
    palette = other.getpalette()
    palette[9:12] = 1, 2, 3
    other.putpalette(palette)
    write_image(root / "masks" / "photo_02.png", other)
    write_image(root / "masks" / "photo_03.tif", as_palette(scene(3)[1]))  # the same, stored in another order
    (root / "masks" / "photo_03.png").unlink()
    assert find_other_palette(load_splits_of(root)) is None
    survey, by_color = look(root)
    assert not by_color and {0, 1, 2} == set(survey.pixels())


def test_one_palette_is_seen_in_the_headers(tmp_path, monkeypatch, capsys):
    splits = load_splits_of(write_folder(tmp_path, "palette", 4))
    monkeypatch.setattr("hf_seg.data.check.open_mask", None)  # nothing is decoded
    assert find_other_palette(splits) is None
    assert not capsys.readouterr().err  # a log gets no bar
