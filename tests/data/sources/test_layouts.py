"""Folders as annotation programs and data sets make them: what `init` says of each, its pairs, splits and classes."""

import json
import re
import shlex
import unicodedata

import numpy as np
import pytest
from own_folders import as_palette, as_rgb, scene, write_image

from hf_seg import cli
from hf_seg.data import load_spec, load_splits
from hf_seg.data.sources.split import SPLITS
from hf_seg.recipe import load_recipes


def put(root, image, mask, numbers, kind=lambda ids: ids):
    """Write scenes; in the names, {} is the number."""
    for number in numbers:
        pixels, ids = scene(number)
        write_image(root / image.format(number), pixels)
        write_image(root / mask.format(number), kind(ids))


def in_splits(image, mask, **splits):
    """`put` for split folders, SPLIT in the names; train has the scenes 0 to 2, validation 10 to 12, test 20 to 22."""

    def write(root):
        for start, name in enumerate((splits or TWO).values()):
            put(root, image.replace("SPLIT", name), mask.replace("SPLIT", name), range(10 * start, 10 * start + 3))

    return write


def all_at_once(image, mask, kind=lambda ids: ids):
    return lambda root: put(root, image, mask, range(5), kind)


def with_files(write, **files):
    """The same with text files; `__` in a name stands for a slash."""

    def write_all(root):
        write(root)
        for name, text in files.items():
            path = root / f"{name.replace('__', '/')}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write_all


def voc(root):
    """With photographs that are for other tasks, and have no mask."""
    for numbers in (range(3), range(10, 13)):
        put(root, "JPEGImages/2007_{:06}.jpg", "SegmentationClass/2007_{:06}.png", numbers, as_palette)
    write_image(root / "JPEGImages" / "2008_000001.jpg", scene(1)[0])
    write_image(root / "SegmentationObject" / "2007_000001.png", scene(1)[1])
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = {"train": range(3), "val": range(10, 13)}
    for split, numbers in names.items():
        (lists / f"{split}.txt").write_text("".join(f"2007_{number:06}\n" for number in numbers))
    (lists / "trainval.txt").write_text("".join(f"2007_{n:06}\n" for part in names.values() for n in part))


def roboflow(root):
    in_splits("SPLIT/{}_jpg.rf.abc.jpg", "SPLIT/{}_jpg.rf.abc_mask.png", train="train", validation="valid")(root)
    for split in ("train", "valid"):
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, disc\n2, bar\n")


def cityscapes(root):
    image, mask = "leftImg8bit/SPLIT/ulm/ulm_{:06}_leftImg8bit.png", "gtFine/SPLIT/ulm/ulm_{:06}_gtFine_labelIds.png"
    in_splits(image, mask)(root)
    for kind in ("color", "instanceIds"):
        in_splits(image, mask.replace("labelIds", kind))(root)
    (root / "gtFine" / "train" / "ulm" / "ulm_000000_gtFine_polygons.json").write_text("{}")


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbar:30,30,200::\ndisc:200,30,30::\n"
NAMES = {"CVAT": ("background", "bar", "disc"), "Roboflow": ("background", "disc", "bar")}
TWO = {"train": "train", "validation": "val"}
THREE = TWO | {"test": "test"}
IN_TWO = ("images/{}.jpg", "masks/{}.png")
# a folder → what `init` calls its layout, and the scenes of each split that is not drawn
FOLDERS = {
    "synonyms": (all_at_once("imgs/{}.jpg", "labels/{}.png"), "imgs+labels", {}),
    "any letter case": (all_at_once("Images/{}.jpg", "MASK/{}.png"), "Images+MASK", {}),
    "split folders": (
        in_splits("SPLIT/Image/{}.png", "SPLIT/GT/{}.png", train="Training", validation="dev", test="testing"),
        "SPLIT/image+SPLIT/gt",
        THREE,
    ),
    "Ultralytics": (in_splits("images/SPLIT/{}.jpg", "masks/SPLIT/{}.png"), "images/SPLIT+masks/SPLIT", TWO),
    "MMSegmentation": (
        in_splits("img_dir/SPLIT/{}.jpg", "ann_dir/SPLIT/{}.png"),
        "img_dir/SPLIT+ann_dir/SPLIT (MMSegmentation)",
        TWO,
    ),
    "ADE20K": (
        in_splits("images/SPLIT/{}.jpg", "annotations/SPLIT/{}.png", train="training", validation="validation"),
        "images/SPLIT+annotations/SPLIT (ADE20K)",
        TWO,
    ),
    "CamVid": (
        with_files(  # whose lists name files on its makers' machine
            in_splits("SPLIT/{}.png", "SPLITannot/{}.png", **THREE),
            train="/SegNet/CamVid/train/0.png /SegNet/CamVid/trainannot/0.png\n",
        ),
        "SPLIT+SPLITannot (CamVid)",
        THREE,
    ),
    "CamVid with colours": (
        in_splits("SPLIT/{}.png", "SPLIT_labels/{}_L.png", **THREE),
        "SPLIT+SPLITlabels",
        THREE,
    ),
    "Pascal VOC": (voc, "JPEGImages+SegmentationClass+ImageSets (Pascal VOC)", TWO),
    "CVAT": (
        with_files(
            all_at_once("JPEGImages/{}.jpg", "SegmentationClass/{}.png", as_rgb),
            ImageSets__Segmentation__default="0\n1\n2\n3\n4\n",
            labelmap=LABELMAP,
        ),
        "JPEGImages+SegmentationClass+ImageSets (Pascal VOC)",
        {},
    ),
    "one folder": (all_at_once("{}.jpg", "{}_mask.png"), "NAME+NAME_mask", {}),
    "one folder, masks of other kinds": (all_at_once("a b {}.jpg", "a b {}-Label.png"), "NAME+NAME-Label", {}),
    "one folder, two suffixes": (all_at_once("{}.jpg", "{}.jpg.png"), "NAME+NAME.jpg", {}),
    "Roboflow": (roboflow, "SPLIT/NAME+SPLIT/NAME_mask (Roboflow)", TWO),
    "lists": (
        with_files(
            lambda root: [all_at_once("images/{}.jpg", "masks/{}.png")(root), put(root, *IN_TWO, range(10, 13))],
            train="0\n1.jpg\nimages/2.jpg\n",
            val="./10\n11\n12\n",
        ),
        "images+masks+lists",
        TWO,
    ),
    "lists of names beside their masks": (
        with_files(
            lambda root: [put(root, "{}.jpg", "{}_gt.png", numbers) for numbers in (range(3), range(10, 13))],
            train="0\n1\n2\n",
            val="10\n11\n12\n",
        ),
        "NAME+NAME_gt+lists",
        TWO,
    ),
    "lists of pairs": (
        with_files(
            lambda root: [put(root, "a/{} b.jpg", "c/m{}.png", numbers) for numbers in (range(3), range(10, 13))],
            train="".join(f"a/{n} b.jpg c/m{n}.png\n" for n in range(3)),
            val="".join(f"/a/{n} b.jpg,/c/m{n}.png\n" for n in range(10, 13)),
        ),
        "lists",
        TWO,
    ),
    "like Cityscapes": (cityscapes, "leftImg8bit+gtFine_labelIds (like Cityscapes)", TWO),
    "with names as the folders": (
        all_at_once("rgb_anon/fog/GP_{}_rgb_anon.png", "truth/fog/GP_{}_truth_labelTrainIds.png"),
        "rgb_anon+truth_labelTrainIds",
        {},
    ),
}


@pytest.fixture
def init(tmp_path, capsys):
    """`init(...)` runs the command; gives exit status and what it says."""

    def run(*arguments):
        status = cli.main(["init", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out if status == 0 else captured.err

    return run


def scenes_of(root, order=(0, 1, 2)):
    """The number of each pair's scene, by split, as training finds them; each mask must be its image's. `order`: the
    class of each of the scene's ids."""
    (recipe,) = load_recipes([root / "recipe.json"])
    found = {}
    for split, pairs in load_splits(recipe.data).items():
        stored = pairs.cast_column("image", type(pairs.features["image"])(decode=False))
        found[split] = set()
        for row, image in enumerate(stored["image"]):
            number = int(re.findall(r"\d+", image["path"].removeprefix(str(root)).replace("8bit", ""))[-1])
            assert (np.asarray(pairs[row]["mask"]) == np.array(order)[scene(number)[1]]).all()
            found[split].add(number)
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_is_recognised(tmp_path, init, name):
    write, layout, splits = FOLDERS[name]
    root = tmp_path / "export"
    write(root)
    status, out = init(root)
    assert status == 0 and f"  layout  {layout}\n" in out, out
    if name in NAMES:
        assert load_spec(load_recipes([root / "recipe.json"])[0].data).class_names == NAMES[name]
    found = scenes_of(root, (0, 2, 1) if name == "CVAT" else (0, 1, 2))
    there = {split: set(range(10 * start, 10 * start + 3)) for start, split in enumerate(splits)} or {
        "all": set(range(5))
    }
    assert set().union(*found.values()) == set().union(*there.values())
    assert all(found[split] == numbers for split, numbers in there.items() if split in SPLITS[1:])
    if splits == TWO:
        assert (
            "  splits  3 train, 3 validation; test will be drawn from train\n" in out
            and found["test"] < there["train"]
        )


def test_names_of_folders_in_two_forms_of_unicode(tmp_path, init):
    accented = unicodedata.normalize("NFD", "IMAGES")
    all_at_once(f"{accented}/café{{}}.jpg", f"masks/{unicodedata.normalize('NFD', 'café')}{{}}.png")(tmp_path)
    assert init(tmp_path)[0] == 0
    assert sum(map(len, scenes_of(tmp_path).values())) == 5


@pytest.mark.parametrize("place", ["labels", "train"])
def test_two_layouts_are_not_guessed(tmp_path, init, place):
    root = tmp_path / "export"
    all_at_once("images/{}.png", "masks/{}.png")(root)
    if place == "labels":
        put(root, "labels/{}.png", "labels/{}.png", range(5), kind=lambda ids: 2 - ids)
        other = "images+labels"
    else:
        in_splits("SPLIT/images/{}.png", "SPLIT/masks/{}.png")(root)
        other = "SPLIT/images+SPLIT/masks"
    status, err = init(root)
    assert status == 2 and not (root / "recipe.json").exists()
    assert "matches 2 layouts: " in err and "images+masks" in err and other in err
    assert "Choose with `hf-seg init DIR --layout " in err
    status, out = init(root, "--layout", "images+masks")
    assert status == 0 and "  layout  images+masks\n" in out
    assert json.loads((root / "recipe.json").read_text())["data"]["layout"] == "images+masks"
    assert sum(map(len, scenes_of(root).values())) == 5
    (root / "classes.json").unlink(), (root / "split.json").unlink()
    status, out = init(root, "--overwrite", "--layout", other)
    assert status == 0 and f"  layout  {other}\n" in out
    assert sum(map(len, load_splits(load_recipes([root / "recipe.json"])[0].data).values())) == (
        5 if place == "labels" else 6
    )
    status, err = init(root, "--overwrite", "--layout", "image+masks")
    assert status == 2 and 'does not match the layout "image+masks"; did you mean "images+masks"?' in err


def test_a_recipe_written_before_the_second_layout_is_refused(tmp_path, init):
    all_at_once("images/{}.png", "masks/{}.png")(tmp_path)
    assert init(tmp_path)[0] == 0
    in_splits("SPLIT/images/{}.png", "SPLIT/masks/{}.png")(tmp_path)
    data = load_recipes([tmp_path / "recipe.json"])[0].data
    for load in (load_spec, load_splits):
        with pytest.raises(ValueError, match="matches 2 layouts"):
            load(data)


def test_the_doctor_says_the_same_words(tmp_path, init, capsys):
    in_splits("img_dir/SPLIT/{}.png", "ann_dir/SPLIT/{}.png")(tmp_path)
    assert init(tmp_path)[0] == 0
    cli.main(["doctor", str(tmp_path)])
    assert "; layout img_dir/SPLIT+ann_dir/SPLIT (MMSegmentation)\n" in capsys.readouterr().out


# one for each row of the table in docs/data.md; images/ and masks/ are trained on in tests/doctor/test_init.py
ROWS = ("split folders", "ADE20K", "CamVid", "Roboflow", "lists", "CVAT", "like Cityscapes")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_from_an_export_to_a_mask(tmp_path, first_day, name):
    write, layout, splits = FOLDERS[name]
    write(tmp_path / "export")
    said, results, mask = first_day(tmp_path / "export")
    assert f"  layout  {layout}\n" in said
    assert sum(results["data"]["counts"].values()) == (3 * len(splits) or 5)
    assert mask.shape == (32, 48) and mask.max() < len(results["data"]["class_names"]) == 3


@pytest.mark.slow
def test_from_patterns_to_a_mask(tmp_path, first_day):
    write, (images, masks), _ = PATTERNS["splits"]
    write(tmp_path)
    said, results, mask = first_day(tmp_path, "--images", images, "--masks", masks)
    assert "  splits  3 train, 3 validation; test will be drawn from train\n" in said
    assert sum(results["data"]["counts"].values()) == 6 and mask.shape == (32, 48)


PATTERNS = {
    "folders": (all_at_once("rgb/{}.png", "sem/{}.png"), ("rgb/*", "sem/*.png"), {}),
    "endings": (all_at_once("{}_rgb.jpg", "{}_truth.png"), ("*_rgb.jpg", "*_truth.png"), {}),
    "beginnings, masks of one kind": (
        lambda root: [all_at_once("d/IMG_{}.PNG", f"d/{kind}_{{}}.png")(root) for kind in ("SEG", "INST")],
        ("./d/IMG_*.png", "d/SEG_*.png"),
        {},
    ),
    "what fits both is a mask": (all_at_once("{}.png", "{}_truth.png"), ("*", "*_truth.png"), {}),
    "what fits both is an image": (all_at_once("{}_rgb.png", "{}.png"), ("*_rgb.png", "*.png"), {}),
    "a folder for each picture": (all_at_once("{}/rgb.png", "{}/mask.png"), ("*/rgb.png", "*/mask.png"), {}),
    "a folder for each patient": (
        lambda root: [put(root, f"p{n % 2}/rgb/{n}.jpg", f"p{n % 2}/sem/{n}.png", [n]) for n in range(5)],
        ("*/rgb/*", "*/sem/**.png"),
        {},
    ),
    "folders below": (
        all_at_once("rgb/a/b/{}.jpg", "sem/a/b/{}_s.png"),
        ("rgb/**/*.jpg", "sem/**_s.png"),
        {},
    ),
    "splits": (in_splits("rgb/SPLIT/{}.jpg", "SPLIT_truth/{}.png"), ("rgb/SPLIT/*.jpg", "SPLIT_truth/*.png"), TWO),
    "lists": (
        with_files(
            lambda root: [put(root, "rgb/{}.jpg", "sem/{}.png", numbers) for numbers in (range(3), range(10, 13))],
            train="0\n1\n2\n",
            val="10\n11\n12\n",
        ),
        ("rgb/*.jpg", "sem/*.png"),
        TWO,
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(tmp_path, init, name):
    write, (images, masks), splits = PATTERNS[name]
    root = tmp_path / "own"
    write(root)
    status, out = init(root, "--images", images, "--masks", masks)
    assert status == 0 and f"  layout  {images} + {masks}" in out
    assert json.loads((root / "recipe.json").read_text())["data"]["layout"] == f"{images} + {masks}"
    write_image(root / "runs" / "recipe" / "curves_rgb.png", scene(7)[0])  # of no pair
    found = scenes_of(root)
    expected = {*range(3), *range(10, 13)} if splits else {*range(5)}
    assert set().union(*found.values()) == expected and (not splits or found["validation"] == {10, 11, 12})


def test_patterns_of_all_that_there_is_leave_the_preview_out(tmp_path, init):
    all_at_once("a/{}.png", "a/{}_s.png")(tmp_path)
    write_image(tmp_path / "a" / "preview.png", scene(5)[0])  # somebody's photograph
    write_image(tmp_path / "a" / "preview_s.png", scene(5)[1])
    for more in ([], ["--overwrite"]):
        status, out = init(tmp_path, "--images", "**.png", "--masks", "**_s.png", *more)
        assert status == 0 and f"{tmp_path}: 6 pairs\n" in out
    assert (tmp_path / "preview.png").is_file() and sum(load_splits(load_recipe(tmp_path)).num_rows.values()) == 6


def load_recipe(root):
    return load_recipes([root / "recipe.json"])[0].data


@pytest.mark.parametrize("more", [0, 2])
def test_a_list_of_all_pairs_counts_after_the_split_is_drawn_too(tmp_path, init, more):
    """CVAT's default.txt names the pictures that are annotated."""
    put(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", range(7 + more), as_palette)
    write_image(tmp_path / "JPEGImages" / "20.jpg", scene(20)[0])
    listed = tmp_path / "ImageSets" / "Segmentation" / "default.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{number}\n" for number in range(7)))
    assert init(tmp_path)[0] == 0
    first = load_splits(load_recipe(tmp_path))
    assert (tmp_path / "split.json").is_file() and sum(first.num_rows.values()) == 7
    assert load_splits(load_recipe(tmp_path)).num_rows == first.num_rows


def test_patterns_leave_the_plots_of_runs_out(tmp_path, init):
    put(tmp_path, "patient/{}.png", "patient/{}_mask.png", range(4))
    plots = tmp_path / "runs" / "recipe" / "plots"
    write_image(plots / "confusion.png", scene(0)[0])
    (plots.parent / "run.json").write_text("{}")
    status, out = init(tmp_path, "--images", "**.png", "--masks", "**_mask.png")
    assert status == 0 and ": 4 pairs\n" in out


@pytest.mark.parametrize("words", [("train2017", "val2017"), ("train_set", "val_set"), ("01_train", "02_val")])
def test_numbers_around_the_names_of_splits(tmp_path, init, words):
    for start, word in enumerate(words):
        put(tmp_path, f"images/{word}/{{}}.jpg", f"annotations/{word}/{{}}.png", range(10 * start, 10 * start + 3))
    status, out = init(tmp_path)
    assert status == 0 and "  splits  3 train, 3 validation; test will be drawn from train\n" in out


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (
            "rgb/*.jpg",
            "sem/*.tif",
            "has no file that matches sem/*.tif. A pattern is a path below the folder, with a * for each",
        ),
        ("rgb/0.jpg", "sem/*.png", '"rgb/0.jpg + sem/*.png" is not one pattern for images and one for masks'),
        ("../rgb/*.jpg", "sem/*.png", "is not one pattern for images and one for masks"),
        ("rgb/***.jpg", "sem/***.png", "is not one pattern for images and one for masks"),
        ("rgb/*_*.jpg", "sem/*.png", "is not one pattern for images and one for masks"),
        ("SPLIT/SPLIT*.jpg", "SPLIT/SPLIT*.png", "is not one pattern for images and one for masks"),
        ("SPLIT/*.jpg", "sem/*.png", "is not one pattern for images and one for masks"),
        ("SPLIT/*.jpg", "SPLIT/*.png", "has SPLIT/*.png for val, but no SPLIT/*.jpg"),
    ],
)
def test_patterns_that_are_wrong(tmp_path, init, images, masks, message):
    all_at_once("rgb/{}.jpg", "sem/{}.png")(tmp_path)
    put(tmp_path, "train/{}.jpg", "val/{}.png", range(3))
    status, err = init(tmp_path, "--images", images, "--masks", masks)
    assert status == 2 and message in err


def test_patterns_choose_between_layouts_and_go_together(tmp_path, init):
    for kind in ("labelIds", "labelTrainIds"):
        all_at_once("{}.png", "{}_" + kind + ".png")(tmp_path)
    status, err = init(tmp_path, "--images", "*.png")
    assert status == 2 and "--images and --masks must be given together, and without --layout" in err
    assert init(tmp_path, "--images", "*.png", "--masks", "*_labelIds.png")[0] == 0
    assert sum(map(len, scenes_of(tmp_path).values())) == 5


def test_an_image_without_its_mask_is_named_with_patterns(tmp_path, init):
    all_at_once("rgb/{}.jpg", "sem/{}.png")(tmp_path)
    (tmp_path / "sem" / "3.png").unlink()
    status = cli.main(["init", str(tmp_path), "--images", "rgb/*", "--masks", "sem/*"])
    assert status == 1


def test_layout_is_for_folders_of_files(init):
    status, err = init("org/name", "--out", "nowhere", "--layout", "coco")
    assert status == 2 and "--layout is for a folder of files, but this is not one" in err


def listed(root, **lists):
    all_at_once(*IN_TWO)(root)
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": ["0", "1", "9"], "val": ["2"]}, "train.txt: names 9, but there is no such image\n"),
        (
            {"train": ["0", "1"], "val": ["1.jpg", "2"]},
            "val.txt: names 1, which another list assigns to train; 1 pictures in all. Remove them from one list.",
        ),
        ({"train": ["images/0.jpg masks/0.png", "images/9.jpg masks/9.png"]}, "images/9.jpg, which does not exist\n"),
        ({"train": ["images/0.jpg masks/0.png", "1"]}, "1 does not have the form `image mask` of other lines"),
        (
            {"train": ["images/0.jpg masks/0.png", "../1.jpg masks/1.png"]},
            "1.jpg, which is outside the folder. List only files in the folder.",
        ),
        ({"train": ["images/0.jpg masks/0.png", "images/0.jpg masks/1.png"]}, "masks/1.png and 0.jpg with "),
    ],
)
def test_lists_that_are_wrong(tmp_path, init, lists, message):
    root = listed(tmp_path / "own", **lists)
    (root / "classes.json").write_text('{"classes": [{"name": "a", "id": 0}, {"name": "b", "id": 1}]}')
    cli.main(["init", str(root)])
    assert message in init(root, "--overwrite")[1]


def test_a_test_list_without_masks(tmp_path, init, recipe):
    root = listed(tmp_path / "own", train=["0", "1", "2"], val=["3"], test=["4"])
    assert init(root)[0] == 0
    (root / "masks" / "4.png").unlink()
    with pytest.raises(ValueError, match="none of its 1 images has a mask"):
        load_splits(recipe("folder", root))
    splits = load_splits(recipe("folder", root, on_bad_pair="drop"))
    assert splits.num_rows == {"train": 2, "validation": 1, "test": 1}


def test_pictures_in_no_list_are_counted(tmp_path, capsys):
    root = listed(tmp_path / "own", train=["0", "1"], val=["2"])
    assert cli.main(["init", str(root)]) == 0
    assert "2 pairs are in no list, such as 3, and are left out" in capsys.readouterr().out
    assert cli.main(["doctor", str(root)]) == 0
    assert "2 pairs are in no list, such as 3, and are left out" in capsys.readouterr().out


def test_lists_may_be_left_aside(tmp_path, init):
    root = listed(tmp_path / "own", train=["0", "1", "9"], val=["2"])
    assert init(root, "--layout", "images+masks")[0] == 0
    assert sum(map(len, scenes_of(root).values())) == 5


def in_two_forms(root):
    """Files in the one form of Unicode, and a list of them in the other."""
    image, mask = "café/{} é.jpg", "m/{}.png"
    put(root, unicodedata.normalize("NFD", image), mask, range(5))
    lines = "".join(f"{image} {mask}\n".format(n, n) for n in range(5))
    (root / "train.txt").write_text(unicodedata.normalize("NFC", lines))


def in_folders(root):
    put(root, "{}.jpg", "{}_mask.png", range(5))
    put(root, "day 1/{}.jpg", "day 1/{}_mask.png", range(10, 12))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            in_folders,
            "2 pairs are in folders below, such as day 1/10, and are left out. To use them, too, name the fil",
        ),
        (with_files(all_at_once(*IN_TWO), test="0\n"), "/test.txt: looks like the list of a split, but is not used"),
        (
            with_files(all_at_once(*IN_TWO), lists__train="0\n"),
            "/lists/train.txt: looks like the list of a split, but",
        ),
        (
            with_files(all_at_once(*IN_TWO), train="/d/images/0.jpg /d/masks/0.png\n"),
            "/train.txt: looks like the list",
        ),
        (in_two_forms, "  layout  lists\n"),
    ],
)
def test_what_is_not_used_is_said(tmp_path, init, capsys, write, message):
    write(tmp_path / "own")
    status, out = init(tmp_path / "own")
    assert status == 0 and message in out and sum(map(len, scenes_of(tmp_path / "own").values())) == 5


def test_a_folder_for_each_patient_is_refused_with_the_patterns_that_fit(tmp_path, init):
    root = tmp_path / "my clinic"
    for number in range(6):
        put(root, f"p{number % 2}/Images/{{}}.jpg", f"p{number % 2}/masks/{{}}.png", [number])
    status, err = init(root)
    command = f"hf-seg init '{root}' --images '*/Images/**' --masks '*/masks/**'"
    assert (
        status == 2
        and f"p0 has the layout Images+masks: name that folder. If all folders are like it: `{command}`" in err
    )
    assert init(*shlex.split(command)[2:])[0] == 0
    assert sum(map(len, scenes_of(root).values())) == 6


def test_two_kinds_of_masks_are_not_guessed(tmp_path, init):
    for kind in ("labelIds", "labelTrainIds"):
        all_at_once("{}.png", "{}_" + kind + ".png")(tmp_path)
    status, err = init(tmp_path)
    assert status == 2 and "matches 2 layouts: NAME+NAME_labelIds, NAME+NAME_labelTrainIds." in err
    assert init(tmp_path, "--layout", "NAME+NAME_labelIds")[0] == 0
    assert sum(map(len, scenes_of(tmp_path).values())) == 5


def test_one_folder_after_a_run(tmp_path, init):
    """What `init` and training write into the folder is no photograph."""
    all_at_once("{}.jpg", "{}_mask.png")(tmp_path)
    assert init(tmp_path)[0] == 0
    write_image(tmp_path / "runs" / "recipe" / "curves.png", scene(7)[0])
    (tmp_path / "runs" / "best").symlink_to("gone")
    assert sum(map(len, scenes_of(tmp_path).values())) == 5
    write_image(tmp_path / "front_label.jpg", scene(7)[0])  # a photograph of that name
    status = cli.main(["init", str(tmp_path), "--overwrite"])
    assert status == 1


def test_a_json_that_cannot_be_read(tmp_path, init, monkeypatch):
    (tmp_path / "annotations.json").write_text("{}")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: open(tmp_path))
    assert "annotations.json: cannot be read: Is a directory" in init(tmp_path)[1]
