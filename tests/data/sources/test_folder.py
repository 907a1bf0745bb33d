"""A person's own folder: pairs, splits, every kind of mask up to the labels, EXIF, bad pairs stopped at or dropped."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import load_from_disk
from helpers import describe_dropped
from own_folders import COLORS, KINDS, ORIENTATION, as_palette, scene, with_void, write_folder, write_image
from PIL import Image

from hf_seg.data import check_splits, fingerprint, load_data, load_spec, load_splits
from hf_seg.data.sources.folder import find_ending
from hf_seg.data.sources.split import SPLITS
from hf_seg.data.transforms import SegTransform
from hf_seg.problem import DataError

IDS = {"classes": [{"name": name, "id": index} for index, name in enumerate(("ground", "disc", "bar"))]}
RGB = {
    "classes": [{"name": name, "color": list(COLORS[index])} for index, name in enumerate(("ground", "disc", "bar"))]
}
THOUSANDS = {"classes": [entry | {"id": 1000 * entry["id"]} for entry in IDS["classes"]]}
BINARY = {"classes": [{"name": "background", "id": 0}, {"name": "foreground", "id": 255}]}
ONE_BIT = {"classes": [{"name": "background", "id": 0}, {"name": "foreground", "id": 1}]}
CLASSES = {
    "ids": IDS | {"ignore": [255]},
    "palette": IDS,
    "rgb": RGB | {"ignore": ["#ffffff"]},
    "rgba": RGB,
    "grey_rgb": IDS,
    "grey_alpha": IDS,
    "sixteen_bits": THOUSANDS,
    "binary": BINARY,
    "one_bit": ONE_BIT,
}
# what the labels of the scene's ids must be
LABELS = {kind: (lambda ids: ids) for kind in KINDS} | {
    "ids": with_void,
    "rgb": with_void,
    "binary": lambda ids: (ids == 1).astype(np.uint8),
    "one_bit": lambda ids: (ids == 1).astype(np.uint8),
}


def describe(root, content):
    (root / "classes.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def own(tmp_path):
    """`own(kind)` writes a folder of ten pairs with its classes.json."""

    def write(kind="ids", **options):
        return describe(write_folder(tmp_path / "own", kind, **options), CLASSES[kind])

    return write


@pytest.fixture
def refused(recipe):
    """The message with which a folder is refused, by loading or by the check."""

    def refuse(root, **options):
        data = recipe("folder", root, **options)
        with pytest.raises(DataError) as caught:
            check_splits(load_splits(data), load_spec(data))
        return str(caught.value)

    return refuse


def pairs_of(splits):
    return {
        (split, os.path.basename(sample["path"])): sample
        for split, dataset in splits.items()
        for sample in dataset.cast_column("image", type(dataset.features["image"])(decode=False))["image"]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_becomes_the_right_labels(own, recipe, kind):
    data = recipe("folder", own(kind))
    spec, splits = load_spec(data), load_splits(data)
    check_splits(splits, spec)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 8, "validation": 1, "test": 1}
    assert spec.class_names == tuple(entry["name"] for entry in CLASSES[kind]["classes"])
    stored = splits["train"].cast_column("image", type(splits["train"].features["image"])(decode=False))
    numbers = [int(image["path"][-6:-4]) for image in stored["image"]]
    transformed = splits["train"].with_transform(SegTransform(size=(64, 64), spec=spec))
    for position, number in enumerate(numbers):
        expected = LABELS[kind](scene(number)[1])
        assert (np.asarray(splits["train"][position]["mask"]) == expected).all()
        labels = transformed[position]["labels"].numpy()
        assert set(np.unique(labels)) == set(np.unique(expected)) <= {*range(len(spec.class_names)), 255}
        rows, columns = ((np.arange(64) + 0.5) * side // 64 for side in expected.shape)
        assert (labels == expected[np.ix_(rows.astype(int), columns.astype(int))]).all()


def test_palette_masks_by_their_colours(own, recipe):
    root = describe(own("palette"), RGB)
    mask = load_splits(recipe("folder", root))["test"][0]["mask"]
    assert set(np.unique(np.asarray(mask))) == {0, 1, 2}


def test_a_gif_is_read_by_its_colours(tmp_path, recipe, refused):
    # Pillow renumbers a palette when it writes a GIF, as other programs do: the same class gets another index a file
    root = tmp_path / "own"
    for number in range(3):
        image, ids = scene(number)
        write_image(root / "images" / f"{number}.png", image)
        write_image(root / "masks" / f"{number}.gif", as_palette(ids + 0))
    describe(root, RGB)
    mask = load_splits(recipe("folder", root))["train"][0]["mask"]
    assert set(np.unique(np.asarray(mask))) == {0, 1, 2}
    describe(root, IDS)
    assert "the mask holds colours" in refused(root) and "A GIF is read by its colours" in refused(root)


def test_one_bit_masks_beside_0_and_255(own, recipe):
    root = own("binary")
    write_image(root / "masks" / "photo_03.png", KINDS["one_bit"](scene(3)[1]))
    data = recipe("folder", root)
    check_splits(load_splits(data), load_spec(data))


def test_one_bit_masks_whose_white_is_not_known(own, recipe, refused):
    root = own("ids")  # 1 is a class, and 255 is void
    write_image(root / "masks" / "photo_03.png", KINDS["one_bit"](scene(3)[1]))
    message = refused(root)
    assert "photo_03.png: the mask has 1 bit per pixel, and its white could be 1 or 255, which both have" in message
    write_image(root / "masks" / "photo_03.png", Image.new("1", (48, 32)))  # black is 0 anyway
    data = recipe("folder", root)
    check_splits(load_splits(data), load_spec(data))


def test_ids_that_fold_into_one_class(own, recipe):
    content = {"classes": IDS["classes"][:2], "label_map": {"2": "disc"}, "ignore": [255]}
    data = recipe("folder", describe(own("ids"), content))
    check_splits(load_splits(data), load_spec(data))
    assert set(np.unique(np.asarray(load_splits(data)["test"][0]["mask"]))) == {0, 1, 255}


def test_columns_survive_being_saved(own, recipe, tmp_path):
    splits = load_splits(recipe("folder", own("rgb")))
    splits["test"].save_to_disk(tmp_path / "saved")
    loaded = load_from_disk(tmp_path / "saved")
    assert loaded.features == splits["test"].features
    assert (np.asarray(loaded[0]["mask"]) == np.asarray(splits["test"][0]["mask"])).all()


class TestRefused:
    def test_ids_without_a_class(self, own, refused):
        root = describe(own("ids"), IDS)
        message = refused(root)
        assert message.startswith("folder: 10 of 10 image and mask pairs cannot be used:\n")
        assert f"{root / 'masks' / 'photo_04.png'}: the mask holds 255 (96 pixels)\n" in message
        assert message.endswith(
            "Each id in a mask must be in classes.json, for a class, under label_map or under ignore: add what is "
            "missing, or correct the masks."
        )

    def test_colours_without_a_class(self, own, refused):
        message = refused(describe(own("rgb"), RGB))
        assert (
            "photo_04.png: the mask holds #ffffff (96 pixels)\n" in message and "Each colour in a mask must" in message
        )

    def test_ids_that_do_not_fit_8_bits(self, own, refused):
        root = own("sixteen_bits")
        ids = np.zeros((32, 48), np.int32)
        ids[0, 0], ids[0, 1], ids[0, 2] = 65_537, -3, 256
        write_image(root / "masks" / "photo_00.png", Image.fromarray(ids.clip(0, 65_535).astype(np.uint16)))
        assert "photo_00.png: the mask holds 256 (1 pixels), 65535 (1 pixels)\n" in refused(root)
        (root / "masks" / "photo_00.png").unlink()
        write_image(root / "masks" / "photo_00.tif", Image.fromarray(ids))
        assert "photo_00.tif: the mask holds -3 (1 pixels), 256 (1 pixels), 65537 (1 pixels)\n" in refused(root)

    def test_smoothed_masks(self, own, refused):
        root = own("rgb")
        mask = Image.open(root / "masks" / "photo_00.png")
        mask.resize((480, 320), Image.Resampling.BICUBIC).resize(mask.size).save(root / "masks" / "photo_00.png")
        assert "So many come from JPEG compression or smoothing" in refused(root)

    def test_colours_where_ids_are_said(self, own, refused):
        message = refused(describe(own("rgba"), IDS))
        assert "photo_00.png: the mask holds colours\n" in message and "give the classes as colours" in message

    def test_wide_ids_where_colours_are_said(self, own, refused):
        assert "photo_00.png: the mask has the mode I;16\n" in refused(describe(own("sixteen_bits"), RGB))

    def test_floating_point_masks(self, own, refused):
        root = own("ids", mask_suffix=".tif")
        write_image(root / "masks" / "photo_00.tif", Image.fromarray(np.zeros((32, 48), np.float32)))
        message = refused(root)
        assert (
            "photo_00.tif: the mask has the mode F\n" in message and "Save it as a PNG that holds class ids" in message
        )

    def test_deep_photographs(self, own, refused):
        root = own()
        (root / "images" / "photo_00.jpg").unlink()
        write_image(root / "images" / "photo_00.png", Image.fromarray(np.zeros((32, 48), np.uint16)))
        message = refused(root)
        assert "photo_00.png: the image has more than 8 bits per channel (16)" in message
        assert "most values are from 0 to 1" in message and "as data.value_range, [low, high]" in message

    def test_truncated_files_and_sizes(self, own, refused):
        root = own()
        whole = (root / "images" / "photo_01.jpg").read_bytes()
        (root / "images" / "photo_01.jpg").write_bytes(whole[: len(whole) // 2])
        write_image(root / "masks" / "photo_02.png", Image.new("L", (48, 31)))
        message = refused(root)
        assert message.startswith("folder: 2 of 10 ")
        assert "photo_01.jpg: cannot be decoded (OSError: image file is truncated" in message
        assert "photo_02.jpg: the image is 48x32 but the mask is 48x31" in message
        assert "must have the same width and height.\n" in message + "\n"

    def test_no_such_folder(self, tmp_path, refused):
        assert refused(tmp_path / "nowhere") == (
            f"data.root: there is no folder {tmp_path / 'nowhere'}. Correct the path."
        )

    @pytest.mark.parametrize(
        ("folders", "message"),
        [
            ([], "has no images, no masks; it holds no folder. A folder of pictures holds images/ and masks/, which"),
            (["photos", "labels"], "has no images, no masks; its folders are labels, photos."),
            (["images"], "has no masks; its folders are images."),
            (["train/images", "val/masks"], "has no train/masks, no val/images; its folders are train, val."),
            (["val/images", "val/masks"], "has no split named train, only val. Name the training split train"),
            (["train/images", "train/masks", "val/images", "val/masks", "dev"], "which is the validation split, dev"),
            (["images/test", "masks/test"], "/images: has no split named train, only test."),
            (["images", "masks", "test"], "matches 2 layouts: images+masks, SPLIT/images+SPLIT/masks. Choose with"),
            (["images", "masks", "Val"], "matches 2 layouts: images+masks, SPLIT/images+SPLIT/masks. Choose with"),
        ],
    )
    def test_other_layouts(self, tmp_path, refused, folders, message):
        root = describe(tmp_path, IDS)
        for name in folders:
            (root / name).mkdir(parents=True)
        assert refused(root).startswith(f"{root}{message}" if message[0] == "/" else f"{root}: {message}")

    def test_files_that_are_no_pair(self, own, refused):
        root = own()
        (root / "masks" / "photo_00.png").unlink()
        (root / "images" / "photo_01.jpg").unlink()
        write_image(root / "images" / "photo_02.png", scene(2)[0])
        write_image(root / "masks" / "photo_03.jpeg", scene(3)[1])
        (root / "images" / "Thumbs.db").touch()
        (root / "images" / "._photo_04.jpg").touch()
        message = refused(root)
        assert message.startswith(f"{root}: 4 of 10 image and mask pairs cannot be used:\n")
        assert f"{root / 'images' / 'photo_00.jpg'}: the image has no mask\n" in message
        assert f"{root / 'masks' / 'photo_01.png'}: the mask has no image\n" in message
        assert f"{root / 'images' / 'photo_02.png'}: there is also photo_02.jpg\n" in message
        assert f"{root / 'masks' / 'photo_03.jpeg'}: the mask is a .jpeg file, whose compression alters" in message
        assert "with the same name without the suffix. Images may be .bmp, .gif, .jpeg" in message
        assert not (root / "split.json").exists()  # no split of what is only a part

    def test_ten_are_named_and_all_counted(self, own, refused):
        root = own(count=12)
        shutil.rmtree(root / "masks")
        (root / "masks").mkdir()
        message = refused(root)
        assert message.startswith(f"{root}: 12 of 12 ") and message.count("has no mask") == 10
        assert "and 2 more" in message

    def test_two_pairs(self, own, refused):
        message = refused(own(count=2))
        assert message.endswith(
            "2 pairs cannot be split into train, validation and test: at least 3 are needed. Add pairs."
        )

    def test_an_empty_split_folder(self, tmp_path, refused):
        root = describe(tmp_path, IDS)
        write_folder(root / "train", "palette", 2)
        write_folder(root / "validation", "palette", 1)
        for part in ("images", "masks"):
            (root / "test" / part).mkdir(parents=True)
        assert "the test split has no usable pair" in refused(root)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_of_which_nothing_counts(tmp_path, recipe, split):
    root = describe(tmp_path, CLASSES["ids"])
    for name in ("train", "validation", "test"):
        write_folder(root / name, "ids", 2)
    for mask in (root / split / "masks").iterdir():
        write_image(mask, np.full((32, 48), 255, np.uint8))
    with pytest.raises(DataError, match=f"^{root}: no pixel of {split} has a class. Correct its masks"):
        load_data(recipe("folder", root))


def test_names_match_without_suffix_and_in_sub_folders(tmp_path, recipe):
    root = describe(tmp_path, IDS)
    for number, suffix in enumerate((".jpg", ".JPEG", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")):
        image, ids = scene(number)
        write_image(root / "images" / f"day.{number % 2}" / f"a.{number}{suffix}", image)
        write_image(root / "masks" / f"day.{number % 2}" / f"a.{number}.{('png', 'tif', 'bmp')[number % 3]}", ids)
    splits = load_splits(recipe("folder", root))
    check_splits(splits, load_spec(recipe("folder", root)))
    assert sum(map(len, splits.values())) == 8
    assert set(json.loads((root / "split.json").read_text())["test"]) <= {f"day.{n % 2}/a.{n}" for n in range(8)}


class TestSplit:
    def test_is_drawn_once_and_kept(self, own, recipe, tmp_path):
        root = own(count=20)
        first = pairs_of(load_splits(recipe("folder", root)))
        saved = json.loads((root / "split.json").read_text())
        assert [len(saved[split]) for split in SPLITS] == [16, 2, 2] and saved["seed"] == 0
        assert sorted(sum((saved[split] for split in SPLITS), [])) == [f"photo_{n:02}" for n in range(20)]
        write_folder(root, "ids", count=24)  # four more
        second = pairs_of(load_splits(recipe("folder", root)))
        assert first.keys() <= second.keys() and len(second) == 24
        assert all(split == "train" for split, _ in second.keys() - first.keys())
        assert pairs_of(load_splits(recipe("folder", root))).keys() == second.keys()
        # the same names are split the same anywhere
        elsewhere = describe(write_folder(tmp_path / "elsewhere", "ids", count=20), CLASSES["ids"])
        assert pairs_of(load_splits(recipe("folder", elsewhere))).keys() == first.keys()

    def test_new_pairs_are_announced(self, own, recipe, caplog):
        root = own()
        load_splits(recipe("folder", root))
        assert not caplog.text
        write_folder(root, "ids", count=12)
        load_splits(recipe("folder", root))
        assert "2 new pairs count as train, since split.json does not name them" in caplog.text

    def test_names_without_files(self, own, recipe, refused):
        root = own()
        load_splits(recipe("folder", root))
        for path in (root / "images" / "photo_05.jpg", root / "masks" / "photo_05.png"):
            path.unlink()
        message = refused(root)
        assert message.startswith(
            f"{root / 'split.json'}: 1 names in it no longer have files:\n  photo_05 has no files\n"
        )
        assert "Put the files back, or delete these lines." in message
        content = json.loads((root / "split.json").read_text())
        content["train"] = [f"{name}.jpg" for name in content["train"] if name != "photo_05"]
        (root / "split.json").write_text(json.dumps(content))
        assert refused(root).endswith("photo_09.jpg has no files\nWrite them without the suffix.")

    def test_by_folders(self, tmp_path, recipe):
        root = describe(tmp_path, CLASSES["ids"])
        for count, split in enumerate(SPLITS, start=2):
            write_folder(root / split, "ids", count)
        data = recipe("folder", root, max_test_samples=3)
        assert {name: len(split) for name, split in load_splits(data).items()} == {
            "train": 2,
            "validation": 3,
            "test": 3,
        }
        assert not (root / "split.json").exists()
        assert load_spec(data).split_rule == "the folders train, validation and test."

    def test_a_folder_that_cannot_be_written(self, own, refused, monkeypatch):
        root = own()

        def refuse(*args):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "replace", refuse)
        message = refused(root)
        assert message.startswith(f"{root / 'split.json'}: the split cannot be saved (Permission denied)")
        assert "Make the folder writable, or sort the pairs into train/" in message

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "split.json: cannot be read: is not JSON"),
            ("[]", "split.json: must hold train, validation and test, and optionally seed"),
            ({"train": ["photo_00"], "validation": ["photo_01"]}, "must hold train, validation and test"),
            (
                {"train": [], "validation": ["photo_01"], "test": ["photo_02"]},
                "train must be a non-empty list of names",
            ),
            (
                {"train": [1], "validation": ["photo_01"], "test": ["photo_02"]},
                "train must be a non-empty list of names",
            ),
            ({"train": ["a"], "validation": ["b"], "test": ["a"]}, '"a" is given twice; a pair belongs to one'),
        ],
    )
    def test_a_file_that_is_wrong(self, own, refused, content, message):
        root = own()
        (root / "split.json").write_text(content if isinstance(content, str) else json.dumps(content))
        assert message in refused(root) and "Correct it, or delete it; then a new split is drawn." in refused(root)


def write_pairs(images, masks, names, ending=""):
    """Pairs of the given names, the number of each scene being its place; gives the folder of the images."""
    for number, name in enumerate(names):
        image, ids = scene(number)
        write_image(images / f"{name}.png", image)
        write_image(masks / f"{name}{ending}.png", ids)
    return images


class TestOwnSplits:
    @pytest.mark.parametrize("inner", [True, False])
    @pytest.mark.parametrize(
        "names",
        [
            ("train", "val", "test"),
            ("Training", "DEV", "testing"),
            ("TRAIN", "valid", "Test"),
            ("train", "eval", "test"),
        ],
    )
    def test_are_used_under_any_usual_name(self, tmp_path, recipe, names, inner):
        root = describe(tmp_path, IDS)
        for count, name in enumerate(names, start=1):
            places = [root / part / name if inner else root / name / part for part in ("images", "masks")]
            write_pairs(*places, [f"{name}_{number}" for number in range(count)])
        splits = load_splits(recipe("folder", root))
        found = {split: {path for own, path in pairs_of(splits) if own == split} for split in splits}
        assert found == {
            split: {f"{name}_{number}.png" for number in range(count)}
            for count, (split, name) in enumerate(zip(SPLITS, names, strict=True), start=1)
        }
        assert not (root / "split.json").exists()
        assert load_spec(recipe("folder", root)).split_rule == "the folders train, validation and test."

    @pytest.mark.parametrize("inner", [True, False])
    def test_what_lacks_is_drawn_from_train_and_kept(self, tmp_path, recipe, caplog, inner):
        root = describe(tmp_path, IDS)
        places = {
            name: [root / part / name if inner else root / name / part for part in ("images", "masks")]
            for name in ("train", "val")
        }
        write_pairs(*places["train"], range(20)), write_pairs(*places["val"], range(100, 103))
        first = load_splits(recipe("folder", root))
        assert first.num_rows == {"train": 18, "validation": 3, "test": 2}
        assert {name for split, name in pairs_of(first) if split == "validation"} == {"100.png", "101.png", "102.png"}
        saved = json.loads((root / "split.json").read_text())
        assert saved.keys() == {"seed", "test"}
        assert {f"{name}.png" for name in saved["test"]} == {
            name for split, name in pairs_of(first) if split == "test"
        }
        rule = (
            "the folders train and validation; for test, 10 % of train, drawn at random once and kept in split.json."
        )
        assert load_spec(recipe("folder", root)).split_rule == rule
        write_pairs(*places["train"], range(20, 25))
        assert load_splits(recipe("folder", root)).num_rows == {"train": 23, "validation": 3, "test": 2}
        (root / "split.json").write_text('{"validation": ["1"]}')
        with pytest.raises(DataError, match="must hold test, and optionally seed"):
            load_splits(recipe("folder", root))

    def test_too_few_to_draw_from(self, tmp_path, refused):
        root = describe(tmp_path, IDS)
        for name in ("train", "val"):
            write_pairs(root / name / "images", root / name / "masks", "a")
        assert (
            refused(root) == f"{root}: 1 pairs cannot be split into train and test: at least 2 are needed. Add pairs."
        )

    @pytest.mark.parametrize("inner", [True, False])
    def test_a_test_split_without_masks(self, tmp_path, recipe, refused, inner):
        root = describe(tmp_path, IDS)
        for name in ("train", "val", "test"):
            places = [root / part / name if inner else root / name / part for part in ("images", "masks")]
            write_pairs(*places, range(5))
            if name == "test":
                shutil.rmtree(places[1])
                images = places[0]
        message = refused(root)
        assert (
            f"{images}: none of its 5 images has a mask\n" in message and "is replaced by a part of train" in message
        )
        assert not (root / "split.json").exists()
        splits = load_splits(recipe("folder", root, on_bad_pair="drop"))
        assert splits.num_rows == {"train": 4, "validation": 5, "test": 1}

    def test_pictures_beside_the_splits_are_refused(self, tmp_path, refused):
        root = describe(tmp_path, IDS)
        for name in ("train", "val", "day1"):
            write_pairs(root / "images" / name, root / "masks" / name, "ab")
        message = refused(root)
        assert message.startswith(f"{root / 'images'}: holds train, val and also day1: which split is that?")
        shutil.rmtree(root / "images" / "day1")
        write_pairs(root / "images", root / "masks", "c")
        assert "and also c.png: which split is that?" in refused(root)

    def test_a_split_file_of_all_pairs_keeps_its_meaning(self, tmp_path, recipe, caplog):
        root = describe(tmp_path, IDS)
        for name in ("train", "val"):
            write_pairs(root / "images" / name, root / "masks" / name, "ab")
        lists = {"train": ["train/a", "val/a"], "validation": ["val/b"], "test": ["train/b"]}
        (root / "split.json").write_text(json.dumps(lists))
        assert load_splits(recipe("folder", root)).num_rows == {"train": 2, "validation": 1, "test": 1}
        assert "2 pairs are in a different split than their folder says, such as val/a (train)" in caplog.text

    def test_folders_of_things_called_train_are_no_splits(self, tmp_path, recipe):
        root = describe(tmp_path, IDS)
        for name in ("train", "bus"):
            write_pairs(root / "images" / name, root / "masks" / name, "ab")
        assert load_splits(recipe("folder", root)).num_rows == {"train": 2, "validation": 1, "test": 1}

    def test_split_json_is_not_written_again(self, own, recipe):
        root = own()
        written = json.dumps({"train": ["photo_02"], "validation": ["photo_00"], "test": ["photo_01"]})
        (root / "split.json").write_text(written)  # as a person writes it
        assert load_splits(recipe("folder", root)).num_rows == {"train": 8, "validation": 1, "test": 1}
        assert (root / "split.json").read_text() == written


class TestNames:
    def test_are_compared_in_one_form_of_unicode(self, tmp_path, recipe):
        root = describe(tmp_path, IDS)
        write_pairs(root / "images", tmp_path / "rest", [f"caf\u00e9_{number}" for number in range(4)])
        write_pairs(tmp_path / "more", root / "masks", [f"cafe\u0301_{number}" for number in range(4)])
        lists = {"train": ["cafe\u0301_0", "caf\u00e9_1"], "validation": ["caf\u00e9_2"], "test": ["cafe\u0301_3"]}
        (root / "split.json").write_text(json.dumps(lists))
        assert load_splits(recipe("folder", root)).num_rows == {"train": 2, "validation": 1, "test": 1}

    def test_that_are_not_utf8_are_named(self, own, refused, recipe):
        root = own()
        for part, suffix in (("images", ".jpg"), ("masks", ".png")):
            (root / part / f"photo_03{suffix}").rename(root / part / os.fsdecode(b"caf\xe9" + suffix.encode()))
        (root / "images" / os.fsdecode(b"\xff")).mkdir()
        message = refused(root)
        assert f"{root}/images/caf\\udce9.jpg: the name is not UTF-8\n" in message and "Rename such files" in message
        assert f"{root}/masks/caf\\udce9.png: the name" in message and f"{root}/images/\\udcff: the name" in message
        assert message.isprintable() or message.replace("\n", "").isprintable()
        data = recipe("folder", root, on_bad_pair="drop")
        assert sum(load_splits(data).num_rows.values()) == 9
        assert json.dumps(describe_dropped(data), ensure_ascii=False).encode()
        strange = root.rename(root.with_name(os.fsdecode(b"caf\xe9")))
        assert "caf\\udce9: the name is not UTF-8. Rename" in refused(strange)

    def test_masks_with_one_ending_more(self, tmp_path, recipe, refused):
        root = describe(tmp_path, IDS)
        write_pairs(root / "images", root / "masks", ["img1", "img10", "img2", "sub/a"], ending="_mask")
        splits = load_splits(recipe("folder", root))
        check_splits(splits, load_spec(recipe("folder", root)))
        assert sum(splits.num_rows.values()) == 4
        (root / "masks" / "img2_mask.png").unlink()
        message = refused(root)
        assert message.startswith(f"{root}: 1 of 4 image") and "img2.png: the image has no mask\n" in message
        write_image(root / "masks" / "img2_other.png", scene(2)[1])
        message = refused(root)
        assert message.startswith(f"{root}: 8 of 8 image") and "All masks may have one more ending" in message
        assert f'{root / "masks" / "img1_mask.png"}: the mask has no image (there is one without "_mask")\n' in message

    @pytest.mark.parametrize(
        ("masks", "ending"),
        [
            (("a_mask", "b_mask"), "_mask"),
            (("a (copy)", "b (copy)"), " (copy)"),
            (("a0", "b0"), ""),  # a number, perhaps
            (("a", "b_mask"), ""),
            (("a_mask", "c"), ""),
        ],
    )
    def test_an_ending(self, masks, ending):
        assert find_ending({"a", "b"}, masks) == ending

    def test_masks_beside_their_images(self, tmp_path, recipe, refused):
        root = describe(tmp_path, IDS)
        for split in ("train", "valid"):
            write_pairs(root / split, root / split, "ab", ending="_mask")
        assert load_splits(recipe("folder", root)).num_rows == {"train": 1, "validation": 2, "test": 1}
        (root / "train" / "a.png").unlink()
        write_image(root / "train" / "c.png", scene(2)[0])
        message = refused(root)
        assert f"{root / 'train' / 'a_mask.png'}: the mask has no image\n" in message
        assert f"{root / 'train' / 'c.png'}: the image has no mask\n" in message

    def test_with_a_backslash(self, tmp_path, refused):
        root = describe(tmp_path, IDS)
        for name in ("images\\0.png", "masks\\0.png"):
            write_image(root / name, scene(0)[0])
        message = refused(root)
        assert "There are 2 names with a backslash, such as images\\0.png: they come from an archive" in message
        assert "Unpack it again with `unzip`" in message


class TestLinks:
    def test_are_followed(self, own, recipe, tmp_path):
        root = own(count=8)
        for part in ("images", "masks"):
            (tmp_path / "elsewhere" / part).mkdir(parents=True)
            for path in sorted((root / part).iterdir())[4:]:
                path.rename(tmp_path / "elsewhere" / part / path.name)
            (root / part / "more").symlink_to(tmp_path / "elsewhere" / part)
        assert sum(load_splits(recipe("folder", root)).num_rows.values()) == 8
        for part in ("images", "masks"):
            (root / part).rename(tmp_path / part)
            (root / part).symlink_to(tmp_path / part)
        assert sum(load_splits(recipe("folder", root)).num_rows.values()) == 8

    def test_what_is_in_the_way_is_named(self, own, refused):
        root = own()
        (root / "images" / "again").symlink_to(root / "images")
        (root / "images" / "up").symlink_to(root)
        (root / "images" / "gone").symlink_to(root / "nowhere")
        (root / "masks" / "photo_03.png").unlink()
        (root / "masks" / "photo_03.png").symlink_to("photo_99.png")
        os.mkfifo(root / "images" / "pipe.jpg")
        (root / "images" / "itself.jpg").symlink_to("itself.jpg")
        (root / "images" / "through.jpg").symlink_to("photo_01.jpg/photo.jpg")
        message = refused(root)
        for place, reason in {
            "images/again": "is a link to a folder that contains it",
            "images/up/images": "is a link to a folder that contains it",
            "images/gone": "is a broken link",
            "images/itself.jpg": "is a broken link",
            "images/through.jpg": "is a broken link",
            "masks/photo_03.png": "is a broken link",
            "images/pipe.jpg": "is neither a file nor a folder",
        }.items():
            assert f"{root / place}: {reason}\n" in message
        assert "Each link must lead to a file, or to a folder that does not contain the link" in message

    def test_a_folder_that_cannot_be_read(self, own, refused, monkeypatch):
        root = own()
        (root / "images" / "day2").mkdir()
        scandir = os.scandir

        def refuse(place):
            if str(place).endswith("day2"):
                raise PermissionError(13, "Permission denied")
            return scandir(place)

        monkeypatch.setattr(os, "scandir", refuse)
        message = refused(root)
        assert f"{root / 'images' / 'day2'}: cannot be read: Permission denied\n" in message and "readable" in message


class TestExif:
    @staticmethod
    def turn(root, orientation, mask_of):
        """Store photo_00 turned, with a note that turns it back; `mask_of` gives the mask from the upright ids."""
        image, ids = scene(0)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
        stored = Image.fromarray(image).transpose(undo)
        stored.save(root / "images" / "photo_00.jpg", exif=exif, quality=95, subsampling=0)
        write_image(root / "masks" / "photo_00.png", mask_of(Image.fromarray(ids), undo))
        return image, ids

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_photographs_are_upright_like_their_masks(self, own, recipe, orientation):
        root = own("palette")
        image, ids = self.turn(root, orientation, lambda mask, undo: mask)
        (root / "split.json").write_text(
            json.dumps({"train": ["photo_00"], "validation": ["photo_01"], "test": ["photo_02"]})
        )
        data = recipe("folder", root)
        splits = load_splits(data)
        check_splits(splits, load_spec(data))
        sample = splits["train"][0]
        assert np.abs(np.asarray(sample["image"], float) - image).mean() < 8
        assert (np.asarray(sample["mask"]) == ids).all()

    def test_a_mask_of_the_stored_photograph_is_refused(self, own, refused):
        root = own("palette")
        self.turn(root, 6, lambda mask, undo: mask.transpose(undo))
        message = refused(root)
        assert "photo_00.jpg: the image is 48x32 but the mask is 32x48" in message
        assert "the mask fits the photograph as stored, lying on its side\n" in message
        assert "A mask must have the size of its photograph when upright" in message

    def test_a_mask_of_another_shape_is_not_taken_for_one(self, own, refused):
        root = own("palette")
        write_image(root / "masks" / "photo_00.png", Image.new("L", (32, 48)))
        assert "as stored" not in refused(root)


class TestDrop:
    @pytest.fixture
    def bad(self, own):
        root = own(count=20)
        (root / "masks" / "photo_00.png").unlink()
        (root / "images" / "photo_01.jpg").write_bytes(b"no picture")
        write_image(root / "masks" / "photo_02.png", Image.new("L", (4, 4)))
        write_image(root / "masks" / "photo_03.png", Image.new("L", (48, 32), 77))
        return root

    def test_bad_pairs_are_left_out_and_recorded(self, bad, recipe, caplog):
        data = recipe("folder", bad, on_bad_pair="drop")
        splits = load_splits(data)
        check_splits(splits, load_spec(data))
        assert sum(map(len, splits.values())) == 16
        left = {name for _, name in pairs_of(splits)}
        assert left == {f"photo_{number:02}.jpg" for number in range(4, 20)}
        record = describe_dropped(data)
        assert json.loads(json.dumps(record)) == record
        assert {entry["file"]: entry["reason"][:20] for entry in record["dropped"]} == {
            "images/photo_00.jpg": "the image has no mas",
            "images/photo_01.jpg": "cannot be decoded (U",
            "images/photo_02.jpg": "the image is 48x32 b",
            "masks/photo_03.png": "the mask holds 77 (1",
        }
        assert record["note"] == (
            "4 pairs were left out (data.on_bad_pair is drop): the scores are not comparable with those of a run on "
            "all pairs."
        )
        for entry in record["dropped"]:
            assert f"{bad / entry['file']}: left out: {entry['reason']}" in caplog.text
        assert record["note"] in caplog.text

    def test_it_is_looked_at_once(self, bad, recipe, monkeypatch):
        data = recipe("folder", bad, on_bad_pair="drop")
        first = fingerprint(load_splits(data))
        monkeypatch.setattr("hf_seg.data.check.decode_pair", None)  # calling it would raise
        assert fingerprint(load_splits(data)) == first and len(describe_dropped(data)["dropped"]) == 4

    def test_nothing_to_drop(self, own, recipe):
        data = recipe("folder", own(), on_bad_pair="drop")
        assert fingerprint(load_splits(data)) == fingerprint(load_splits(recipe("folder", data.root)))
        assert describe_dropped(data) == {"dropped": []}

    def test_without_it_nothing_is_recorded(self, own, recipe):
        one = {f"max_{split}_samples": 1 for split in ("train", "validation", "test")}
        assert describe_dropped(recipe("folder", own())) == {} == describe_dropped(recipe("synthetic_pet", **one))

    def test_a_split_of_bad_pairs_only(self, bad, refused):
        (bad / "split.json").write_text(
            json.dumps({"train": ["photo_04"], "validation": ["photo_01"], "test": ["photo_05"]})
        )
        assert "the validation split has no usable pair" in refused(bad, on_bad_pair="drop")


def test_the_check_is_made_again_when_the_classes_change(own, recipe, refused):
    root = own("ids")
    data = recipe("folder", root)
    check_splits(load_splits(data), load_spec(data))
    describe(root, {"classes": IDS["classes"][:2] + [{"name": "bar", "id": 3}], "ignore": [255]})
    assert "the mask holds 2 (" in refused(root)


def test_what_is_said_of_it(own, recipe):
    said = load_spec(recipe("folder", own())).describe()
    assert said["title"] == "own" and said["publish_images"] is False and said["terms"] is None
    assert said["split_rule"].startswith("80 % train")
