"""Exports of polygons: what `init` draws of COCO's and labelme's JSON, and what it says and refuses."""

import base64
import dataclasses
import io
import json

import numpy as np
import PIL.Image
import pytest
from own_folders import scene, write_image
from pycocotools import mask as coco_mask

from hf_seg import cli
from hf_seg.data import load_spec, load_splits
from hf_seg.data.check import fingerprint
from hf_seg.recipe import load_recipes

SIZE = (48, 32)
# two shapes, of which the later one covers a part of the earlier one
BOX, BAR = (4, 6, 20, 16), (16, 10, 40, 28)  # left, top, right, bottom: the first pixels outside are right and bottom


def polygon(box):
    left, top, right, bottom = box
    return [[left, top, right, top, right, bottom, left, bottom]]


def covered(*shapes):
    """A mask in which each (box, id) is drawn over those before."""
    ids = np.zeros(SIZE[::-1], np.uint8)
    for (left, top, right, bottom), value in shapes:
        ids[top:bottom, left:right] = value
    return ids


def run_lengths(ids):
    """COCO's uncompressed RLE: by columns, zeros first."""
    flat, counts, value = ids.T.reshape(-1) > 0, [], False
    while len(flat):
        run = int(np.argmax(flat != value)) if (flat != value).any() else len(flat)
        counts.append(run)
        flat, value = flat[run:], not value
    return {"size": list(SIZE[::-1]), "counts": counts}


def write_coco(file, names, annotations, categories=({"id": 1, "name": "disc"}, {"id": 7, "name": "bar"})):
    """`annotations`: of each image, by the place of its name."""
    images = [{"id": 100 + n, "file_name": name, "width": 48, "height": 32} for n, name in enumerate(names)]
    entries = [entry | {"image_id": 100 + n} for n, listed in enumerate(annotations) for entry in listed]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": images, "annotations": entries, "categories": list(categories)}
    file.write_text(json.dumps(content))


def shape(category, segmentation, **rest):
    return {"category_id": category, "segmentation": segmentation, "bbox": [0, 0, 1, 1], **rest}


def photographs(root, template, numbers):
    for number in numbers:
        write_image(root / template.format(number), scene(number, SIZE)[0])


BOTH = [shape(1, polygon(BOX)), shape(7, polygon(BAR))]


@pytest.fixture
def init(capsys):
    def run(*arguments):
        status = cli.main(["init", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "%|" not in captured.err  # no bar, since this is no terminal
        return status, captured.out if status < 2 else captured.err

    return run


def labels_of(root):
    """The class ids of each photograph's mask, as training reads them; and its split."""
    (recipe,) = load_recipes([root / "recipe.json"])
    found = {}
    for split, pairs in load_splits(recipe.data).items():
        stored = pairs.cast_column("image", type(pairs.features["image"])(decode=False))["image"]
        for row, image in enumerate(stored):
            found[image["path"].rpartition("/")[2]] = np.asarray(pairs[row]["mask"]), split
    return found, load_spec(recipe.data).class_names


def test_coco_of_one_file(tmp_path, init):
    """As CVAT exports it: images/default, annotations/instances_default.json."""
    root = tmp_path / "export"
    photographs(root, "images/default/{} ä.jpg", range(6))
    whole = covered((BAR, 1))
    rle = coco_mask.encode(np.asfortranarray(whole))
    annotations = [
        BOTH,
        BOTH[::-1],
        [shape(1, run_lengths(covered((BOX, 1)))), shape(7, rle | {"counts": rle["counts"].decode()})],
        [shape(1, polygon(BOX)), shape(7, run_lengths(whole), iscrowd=1)],
        [],
        [shape(7, polygon(BAR) + polygon((0, 0, 4, 4))), shape(1, []), {"category_id": 1}],
    ]
    write_coco(root / "annotations" / "instances_default.json", [f"{n} ä.jpg" for n in range(6)], annotations)
    photographs(root, "images/default/{}.jpg", [7])
    before = sorted(path for path in root.rglob("*"))
    status, out = init(root)
    assert status == 0
    assert out.splitlines()[:4] == [
        f"{root}: 6 pairs",
        "  layout  drawn",
        "  drawn   9 shapes in 6 pictures of coco",
        "  note    2 annotations have no area (boxes, points, lines) and are not drawn",
    ]
    assert "  note    1 pictures have no shape with an area, so they are all background (to leave one out, " in out
    assert "  note    1 other pictures in these folders have no annotation and are left out\n" in out
    assert f"Wrote masks, classes.json, recipe.json, preview.png in {root}." in out
    assert set(before) < {*root.rglob("*")} and (root / "masks" / "images" / "default" / "0 ä.png").is_file()
    found, names = labels_of(root)
    assert names == ("background", "disc", "bar")
    expected = [
        covered((BOX, 1), (BAR, 2)),
        covered((BAR, 2), (BOX, 1)),
        covered((BOX, 1), (BAR, 2)),
        covered((BOX, 1), (BAR, 2)),  # `iscrowd` is of painted masks, too
        covered(),
        covered((BAR, 2), ((0, 0, 4, 4), 2)),
    ]
    for number, ids in enumerate(expected):
        assert (found[f"{number} ä.jpg"][0] == ids).all()


def test_coco_of_roboflow(tmp_path, init):
    """A JSON in each split's folder; the first category is the project."""
    root = tmp_path / "export"
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "bar", "supercategory": "things"},
        {"id": 2, "name": "disc", "supercategory": "things"},
    ]
    for split, numbers in {"train": range(3), "valid": range(10, 12), "test": range(20, 21)}.items():
        photographs(root, f"{split}/same_{{}}.jpg", numbers)
        names, shapes = [f"same_{n}.jpg" for n in numbers], [[shape(2, polygon(BOX)), shape(1, polygon(BAR))]] * 3
        write_coco(root / split / "_annotations.coco.json", names, shapes[: len(numbers)], categories)
    photographs(root, "valid/same_{}.jpg", [0])  # another picture of that name
    status, out = init(root)
    assert status == 0 and "  splits  3 train, 2 validation, 1 test\n" in out
    found, names = labels_of(root)
    assert names == ("background", "bar", "disc")
    assert {split: [name for name, (_, own) in found.items() if own == split] for split in ("validation", "test")} == {
        "validation": ["same_10.jpg", "same_11.jpg"],
        "test": ["same_20.jpg"],
    }
    assert all((ids == covered((BOX, 2), (BAR, 1))).all() for ids, _ in found.values())


def test_coco_as_it_is_published_and_out(tmp_path, init):
    """train2017/ and val2017/ hold pictures of one name; --out leaves the export as it was."""
    root, out = tmp_path / "coco", tmp_path / "out"
    for year, numbers in {"train2017": range(3), "val2017": range(2)}.items():
        photographs(root, f"{year}/{{:012}}.jpg", numbers)
        names = [f"{n:012}.jpg" for n in numbers]
        write_coco(root / "annotations" / f"instances_{year}.json", names, [BOTH] * len(numbers))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    status, said = init(root, "--out", out)
    assert status == 0 and "  splits  3 train, 2 validation; test will be drawn from train\n" in said
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert (out / "masks" / "val2017" / "000000000001.png").is_file()
    (recipe,) = load_recipes([out / "recipe.json"])
    assert load_splits(recipe.data).num_rows == {"train": 2, "validation": 2, "test": 1}
    assert load_spec(recipe.data).split_rule.startswith("the lists train and validation; for test, 10 % of train")


def labelme(shapes, image, **rest):
    shapes = [{"group_id": None, "flags": {}, "shape_type": "polygon", **entry} for entry in shapes]
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    return json.dumps(content | {"imageHeight": 32, "imageWidth": 48} | rest)


def corners(box):
    """Of what labelme covers: the last pixels inside."""
    return [[box[0], box[1]], [box[2] - 1, box[3] - 1]]


def test_labelme(tmp_path, init):
    root = tmp_path / "export"
    photographs(root, "train {}.jpg", range(6))  # photographs of trains: no split
    (left, top), (right, bottom) = corners(BAR)
    outline = {"label": "bar", "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}
    box = {"label": "disc", "shape_type": "rectangle", "points": corners(BOX)}
    stored = io.BytesIO()
    PIL.Image.fromarray(np.full((10, 16), True)).save(stored, "PNG")
    drawn = {"label": "disc", "shape_type": "mask", "mask": base64.b64encode(stored.getvalue()).decode()}
    shapes = [
        [box, outline],
        [outline, box | {"points": corners(BOX)[::-1]}],
        [drawn | {"points": [[4.0, 6.0], [19.0, 15.0]]}, {"label": "disc", "shape_type": "point", "points": [[1, 1]]}],
        [outline, box | {"label": "__ignore__"}, box | {"label": "_background_", "points": [[0, 0], [47, 1]]}],
        [{"label": "disc", "shape_type": "circle", "points": [[24, 16], [34, 16]]}],
    ]
    for number, listed in enumerate(shapes):
        (root / f"train {number}.json").write_text(labelme(listed, f"..\\pictures\\train {number}.jpg"))
    status, out = init(root)
    assert status == 0 and "  layout  drawn\n  drawn   9 shapes in 5 pictures of labelme\n" in out
    assert (
        "1 annotations have no area" in out
        and "1 other pictures in these folders have no annotation and are left out" in out
    )
    found, names = labels_of(root)
    assert names == ("background", "bar", "disc")
    expected = [
        covered((BOX, 2), (BAR, 1)),
        covered((BAR, 1), (BOX, 2)),
        covered((BOX, 2)),
        covered((BAR, 1), (BOX, 255)),
    ]
    for number, ids in enumerate(expected):
        assert (found[f"train {number}.jpg"][0] == ids).all()
    y, x = np.mgrid[:32, :48]
    disc = np.hypot(x - 24, y - 16)
    circle = found["train 4.jpg"][0]
    assert (circle[disc < 9] == 2).all() and (circle[disc > 11] == 0).all()
    status = cli.main(["doctor", str(root)])
    assert status == 0


def test_a_refused_init_leaves_nothing_and_the_next_draws_again(tmp_path, init):
    (left, top), (right, bottom) = corners(BAR)
    outline = {"label": "bar", "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}
    for count in (2, 4):
        photographs(tmp_path, "{}.jpg", range(count))
        for number in range(count):
            (tmp_path / f"{number}.json").write_text(labelme([outline], f"{number}.jpg"))
        before = {path.name for path in tmp_path.iterdir()}
        status, out = init(tmp_path)
        if count == 2:
            assert status == 2 and "at least 3 are needed" in out
            assert {path.name for path in tmp_path.iterdir()} == before
    assert status == 0 and f"{tmp_path}: 4 pairs\n" in out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_from_polygons_to_a_mask(tmp_path, first_day, kind):
    root = one_coco(tmp_path / "export")
    if kind == "labelme":
        (root / "result.json").unlink()
        box = {"label": "disc", "shape_type": "rectangle", "points": corners(BOX)}
        for number in range(3):
            (root / "images" / f"{number}.json").write_text(labelme([box], f"{number}.jpg"))
    said, results, mask = first_day(root)
    assert f"in 3 pictures of {kind}\n" in said and sum(results["data"]["counts"].values()) == 3
    assert mask.shape == (32, 48) and mask.max() < len(results["data"]["class_names"])


def one_coco(root, **change):
    photographs(root, "images/{}.jpg", range(3))
    write_coco(root / "result.json", [f"{n}.jpg" for n in range(3)], [BOTH] * 3)
    content = json.loads((root / "result.json").read_text()) | change
    (root / "result.json").write_text(json.dumps(content))
    return root


def rename_all(folder):
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(f"new {path.name}"))


SIZELESS = {"id": 100, "file_name": "0.jpg", "width": "48", "height": None}


@pytest.mark.parametrize("label", [1, None])
def test_a_label_of_labelme_that_is_no_text(tmp_path, init, label):
    photographs(tmp_path, "{}.jpg", range(3))
    box = {"label": label, "shape_type": "rectangle", "points": corners(BOX)}
    (tmp_path / "0.json").write_text(labelme([box], "0.jpg"))
    status, said = init(tmp_path)
    assert status == 2 and f"0.json: is not a valid labelme file: TypeError('the label {label} is not text')" in said


def test_what_of_coco_does_not_matter(tmp_path, init):
    root = one_coco(tmp_path / "own", info={"area": float("nan")})
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "result-checkpoint.json").write_bytes((root / "result.json").read_bytes())
    assert init(root)[0] == 0


def test_drawn_masks_of_photographs_that_have_moved(tmp_path, init, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, out = one_coco(tmp_path / "own"), tmp_path / "out"
    assert init(root, "--out", out)[0] == 0
    data = load_recipes([out / "recipe.json"])[0].data
    assert fingerprint(load_splits(data)) == fingerprint(load_splits(dataclasses.replace(data, root="out")))
    root.rename(tmp_path / "moved")
    assert cli.main(["doctor", str(out)]) == 1
    with pytest.raises(ValueError, match=f"default.txt: names {root}/images/0.jpg, which does not exist"):
        load_splits(data)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: (root / "classes.json").write_text("{}"), "already holds classes.json, which init would draw"),
        (lambda root: one_coco(root, categories=[]), "result.json: is not a valid coco file: KeyError(1)"),
        (lambda root: one_coco(root, annotations=[]), "the coco annotations have no shape with an area"),
        (
            lambda root: one_coco(
                root, annotations=[{"image_id": 100} | shape(1, {"size": [9, 9], "counts": [0, 81]})]
            ),
            "result.json: has a shape that cannot be drawn",
        ),
        (
            lambda root: one_coco(root, annotations=[{"image_id": 9} | BOTH[0]]),
            "an annotation refers to image 9, which is not",
        ),
        (lambda root: one_coco(root, images=[SIZELESS], annotations=[]), "a picture has '48' × None pixels"),
        (
            lambda root: one_coco(root, categories=[{"id": 1, "name": " "}, {"id": 7, "name": "bar"}]),
            "is missing or not text",
        ),
        (
            lambda root: (root / "result.json").rename(root / "test.json"),
            "by the names of its annotations and their fo",
        ),
        (
            lambda root: rename_all(root / "images"),
            "has none of the 3 pictures that its coco annotati",
        ),
        (
            lambda root: write_coco(root / "train.json", ["5.jpg"], [BOTH]),
            "which split is that? The paths of other files",
        ),
        (
            lambda root: write_coco(root / "more.json", ["0.jpg"], [BOTH]),
            "names images/0.jpg, for which a mask is already drawn from another file",
        ),
        (lambda root: photographs(root, "other/{}.jpg", [1]), "names 1.jpg: is that "),
        (
            lambda root: (root / "images" / "0.json").write_text(labelme([], "0.jpg")),
            "matches 2 layouts: coco, labelme. Choose with",
        ),
    ],
)
def test_what_is_refused(tmp_path, init, prepare, message):
    root = one_coco(tmp_path / "own")
    prepare(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    status, said = init(root)
    assert status == 2 and message in said
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_masks_that_are_there_are_not_drawn_over(tmp_path, init):
    root = one_coco(tmp_path / "own")
    write_image(root / "masks" / "0.png", covered((BOX, 1)))
    assert "matches 2 layouts: images+masks, coco. Choose with" in init(root)[1]
    status, said = init(root, "--layout", "coco")
    assert status == 2 and "already holds masks, which init would draw from the coco annotations" in said
    status, said = init(root, "--layout", "coco", "--out", tmp_path / "out")
    assert status == 0 and json.loads((tmp_path / "out" / "recipe.json").read_text())["data"]["layout"] is None


def test_a_picture_that_is_gone_is_named(tmp_path, init):
    root = one_coco(tmp_path / "own")
    photographs(root, "images/{}.jpg", [3])
    write_coco(root / "result.json", [f"{n}.jpg" for n in range(4)], [BOTH] * 4)
    (root / "images" / "1.jpg").rename(tmp_path / "1.jpg")
    status, out = init(root)
    assert status == 1 and f"names {root / 'images' / '1.jpg'}, which does not exist" in out
    (tmp_path / "1.jpg").rename(root / "images" / "1.jpg")
    assert sum(map(len, load_splits(load_recipes([root / "recipe.json"])[0].data).values())) == 4


def test_pictures_with_boxes_only_are_counted(tmp_path, init):
    root = one_coco(tmp_path / "own")
    photographs(root, "images/{}.jpg", range(3, 6))
    box = {"category_id": 1, "bbox": [0, 0, 9, 9]}
    write_coco(root / "result.json", [f"{n}.jpg" for n in range(6)], [BOTH, BOTH, [*BOTH, box], [box], [box], []])
    status, out = init(root)
    assert status == 0 and "  note    3 annotations have no area" in out
    assert "  note    3 pictures have no shape with an area, so they are all background" in out


@pytest.mark.parametrize("elsewhere", [True, False])
def test_annotations_that_change_after_the_masks_are_drawn(tmp_path, init, capsys, elsewhere):
    root, out = tmp_path / "a" / "b" / "c" / "own", tmp_path / "out"
    box = {"label": "disc", "shape_type": "rectangle", "points": corners(BOX)}
    for number in range(5):
        photographs(root, "{}.jpg", [number])
        (root / f"{number}.json").write_text(labelme([box], f"{number}.jpg"))
    assert init(root.parents[2], *(["--out", out] if elsewhere else []))[0] == 0
    place = out if elsewhere else root.parents[2]
    (root / "0.json").write_text(labelme([box], "0.jpg"))  # as it was
    assert cli.main(["doctor", str(place)]) == 0 and "stale-masks" not in capsys.readouterr().out
    (root / "1.json").write_text(labelme([box | {"points": [[0, 0], [5, 5]]}], "1.jpg"))
    (root / "2.json").unlink()
    (root / "new.json").write_text(labelme([box], "0.jpg"))
    assert cli.main(["doctor", str(place)]) == 0
    said = capsys.readouterr().out
    assert f"{root}/1.json: 3 files of annotations have changed since the masks were drawn from them\n" in said
    assert "warning: stale-masks (1)\n" in said and "To draw them again, move masks/ and classes.json away" in said


def test_training_and_doctor_ask_for_init(tmp_path, init, recipe, capsys):
    root = one_coco(tmp_path / "own")
    (root / "annotations").mkdir()
    (root / "result.json").rename(root / "annotations" / "instances.json")
    with pytest.raises(
        ValueError, match="holds coco annotations, but no masks have been drawn from them yet. `hf-seg init"
    ):
        load_splits(recipe("folder", root))
    assert cli.main(["doctor", str(root)]) == 1
    assert "holds coco annotations, but no masks have been drawn from them yet" in capsys.readouterr().out
    init(root)
    (root / "masks" / "images" / "0.png").unlink()
    with pytest.raises(ValueError, match="default.txt: names .*0.png, which does not exist"):
        load_splits(recipe("folder", root))


def test_without_pycocotools(tmp_path, init, monkeypatch):
    monkeypatch.setattr("hf_seg.data.sources.polygons.find_spec", lambda name: None)
    status, said = init(one_coco(tmp_path / "own"))
    assert status == 2 and "pip install 'hf_seg[annotations]'" in said
