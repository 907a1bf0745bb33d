"""`hf-seg init`: what it says, writes and refuses; and from folders to trained models and predictions."""

import json
import os
import shlex

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List
from datasets import Image as ImageColumn
from own_folders import KINDS, scene, write_folder, write_image
from PIL import Image

from hf_seg import cli, train
from hf_seg.data import load_splits
from hf_seg.inference.export import metadata_of
from hf_seg.inference.predict import predict
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models.normalization import resolve_normalize
from hf_seg.recipe import load_recipes

TINY = {
    "model.config.depths": "[1, 1, 1, 1]",
    "model.config.hidden_sizes": "[16, 32, 64, 96]",
    "model.config.decoder_hidden_size": "32",
    "data.image_size": "64",
    "data.augment": "none",
    "training.num_train_epochs": "25",
    "training.eval_every_epochs": "25",
    "training.learning_rate": "0.003",
    "training.bf16": "false",
    "training.report_to": "none",
    "training.disable_tqdm": "true",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_home" / "datasets")


@pytest.fixture
def init(capsys):
    """`init(root, ...)` runs the command; gives exit status, stdout and stderr."""

    def run(*arguments):
        status = cli.main(["init", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def as_arguments(overrides):
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


def read(path):
    return json.loads(path.read_text())


def test_what_it_says_and_writes(tmp_path, init):
    root = write_folder(tmp_path / "my pets", "ids", 12)
    status, out, _ = init(root)
    assert status == 0
    assert out.splitlines() == [
        f"{root}: 12 pairs",
        "  layout  images+masks",
        "  images  12 JPEG RGB; 48×32 pixels",
        "  masks   12 PNG L; ids",
        "  size    32×32 by letterbox, since most are not square: padding keeps their shape",
        *out.splitlines()[5:9],
        "",
        f"Wrote classes.json, recipe.json, preview.png in {root}. Look at preview.png; correct names and ids in "
        "classes.json.",
        f"How long it takes on this machine: hf-seg doctor '{root}/recipe.json'",
        "With few pictures and an internet connection, add --model.init imagenet to the next command.",
        f"Then: hf-seg train '{root}/recipe.json' --output_dir '{root}/runs'",
        f"Then: hf-seg predict '{root}/runs/recipe' PHOTOGRAPHS --out predictions",
    ]
    shares = [line.split() for line in out.splitlines()[5:9]]
    assert [row[:2] for row in shares] == [["0", "class_0"], ["1", "class_1"], ["2", "class_2"], ["255", "(ignored)"]]
    assert shares[3][2:] == ["6.25%", "of", "the", "pixels,", "in", "12", "pictures"]  # 2 rows of 32
    assert sum(float(row[2].rstrip("%")) for row in shares) == pytest.approx(100, abs=0.05)

    assert read(root / "classes.json")["ignore"] == [255]
    assert len((root / "classes.json").read_text().splitlines()) == 8  # a line a class
    with Image.open(root / "preview.png") as preview:
        assert preview.width == 1200
    files = {"images", "masks", "classes.json", "recipe.json", "preview.png", ".hf_seg-init.json"}
    assert {path.name for path in root.iterdir()} == files


def test_a_class_on_few_pixels_is_named(tmp_path, init):
    root = write_folder(tmp_path, "palette", 4)
    for path in (root / "masks").iterdir():
        ids = np.asarray(Image.open(path)).copy()
        ids[ids == 2] = 0
        ids[0, :5] = 2
        write_image(path, Image.fromarray(ids))
    status, out, _ = init(root)
    assert status == 0
    assert "  hint    below 1% of the labelled pixels: class_2 (0.33%)\n" in out
    assert "class_1 (" not in out


def write_films(root, place, lengths=(5, 2, 3, 6)):
    """Frames of films, each from one place; {} are the numbers of film and frame."""
    for film, length in enumerate(lengths):
        image, ids = scene(film)
        for frame in range(length):
            noise = np.random.default_rng(frame).integers(0, 5, image.shape, dtype=np.uint8)
            write_image(root / "images" / f"{place.format(film, frame)}.png", image // 2 + noise)
            write_image(root / "masks" / f"{place.format(film, frame)}.png", ids)


def test_films_are_divided_by_folder(tmp_path, init):
    write_films(tmp_path, "film {}/{}")
    status, out, _ = init(tmp_path)
    assert status == 0
    assert (
        "  split   16 of 16 pictures look like another one in their folder, as frames of a film do; so whole folders "
        "are held out: film 1 (2 pictures) for validation and film 2 (3 pictures) for test.\n"
        "          Delete split.json for a random split.\n"
    ) in out
    assert "Wrote classes.json, recipe.json, preview.png, split.json in " in out
    splits = read(tmp_path / "split.json")
    assert splits["validation"] == ["film 1/0", "film 1/1"] and len(splits["train"]) == 11
    counts = load_splits(load_recipes([tmp_path / "recipe.json"])[0].data).num_rows
    assert counts == {"train": 11, "validation": 2, "test": 3}
    (tmp_path / "split.json").write_text(json.dumps(splits | {"test": splits["train"], "train": splits["test"]}))
    changed = (tmp_path / "split.json").read_text()
    status, out, _ = init(tmp_path, "--overwrite")
    assert status == 0 and "frames of a film" not in out and (tmp_path / "split.json").read_text() == changed


def test_films_in_the_folder_of_a_split(tmp_path, init):
    for split, lengths in {"train": (5, 2, 6), "val": (3,)}.items():
        write_films(tmp_path / split, "{}/{}", lengths)
    status, out, _ = init(tmp_path)
    assert status == 0 and "whole folders are held out: 1 (2 pictures) for test." in out
    assert read(tmp_path / "split.json") == {"seed": 0, "test": ["1/0", "1/1"]}
    data = load_recipes([tmp_path / "recipe.json"])[0].data
    assert load_splits(data).num_rows == {"train": 11, "validation": 3, "test": 2}


@pytest.mark.parametrize(("place", "lengths"), [("{}-{}", (5, 2, 3, 6)), ("{}/{}", (2, 20, 20))])
def test_films_that_no_folder_divides_are_mentioned(tmp_path, init, place, lengths):
    write_films(tmp_path, place, lengths)
    status, out, _ = init(tmp_path)
    assert status == 0 and not (tmp_path / "split.json").exists()
    assert (
        f"  hint    {sum(lengths)} of {sum(lengths)} pictures look like another one in their folder, as frames" in out
    )


def test_a_folder_for_each_class_is_not_held_out(tmp_path, init):
    write_films(tmp_path, "{}/{}")
    for path in (tmp_path / "masks").rglob("*.png"):
        ids = np.asarray(Image.open(path)).copy()
        ids[ids == 1] = 3 + int(path.parent.name)
        write_image(path, ids)
    status, out, _ = init(tmp_path)
    assert status == 0 and not (tmp_path / "split.json").exists()
    assert "  hint    16 of 16 pictures look like another one in their folder" in out


@pytest.mark.parametrize("objects", [1, 255])
def test_255_beside_0_and_1_may_be_the_object(tmp_path, init, objects):
    for number in range(4):
        pixels, ids = scene(number)
        ids = (ids == 1).astype(np.uint8) * objects
        ids[0, 0] = 256 - objects
        write_image(tmp_path / "images" / f"{number}.jpg", pixels)
        write_image(tmp_path / "masks" / f"{number}.png", ids)
    status, out, _ = init(tmp_path)
    assert status == 0
    assert ("255 counts as void here, and covers more pixels than 1. If it is the object" in out) == (objects == 255)


def in_effect(path):
    """A recipe from scratch that init has written, with what its `normalize` then stands for."""
    recipe = read(path)
    assert recipe["data"]["normalize"] == "auto"
    recipe["data"]["normalize"] = "none"
    return recipe


def test_the_recipe_is_complete_and_in_order(tmp_path, init, monkeypatch):
    write_folder(tmp_path / "own", "palette", 12, size=(400, 300))
    monkeypatch.chdir(tmp_path)
    init("own", "--arch", "fcn")
    [recipe] = load_recipes([tmp_path / "own" / "recipe.json"])
    assert recipe.to_dict() == in_effect(tmp_path / "own" / "recipe.json")
    [pretrained] = load_recipes([tmp_path / "own" / "recipe.json"], ["--model.init", "imagenet"])
    assert resolve_normalize([pretrained])[0].data.normalize == "imagenet"
    assert recipe.model.arch == "fcn" and recipe.model.init == "scratch"
    assert recipe.data.root == str(tmp_path / "own")  # absolute: it holds wherever training is started
    assert (recipe.data.name, recipe.data.image_size, recipe.data.on_bad_pair) == ("folder", [224, 288], "stop")
    assert (recipe.training.global_train_batch_size, recipe.training.num_train_epochs) == (8, 150)


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        ((48, 32), 3, (32, "letterbox", 8, 150)),
        ((200, 130), 500, ([128, 192], "letterbox", 16, 60)),
        ((480, 360), 500, ([224, 288], "letterbox", 16, 60)),
        ((900, 880), 10_000, (256, "stretch", 64, 30)),
        ((20, 20), 10_000, (32, "stretch", 64, 30)),
        ((1920, 1080), 10_000, (512, "crop", 8, 30)),
    ],
)
def test_size_batch_and_epochs_follow_from_the_folder(tmp_path, size, count, expected):
    from hf_seg.doctor.init import build_recipe

    recipe = build_recipe(tmp_path, "segformer", [size] * count, {"name": "folder"})
    training = recipe["training"]
    data, batch = recipe["data"], training["global_train_batch_size"]
    assert (data["image_size"], data["resize"], batch, training["num_train_epochs"]) == expected


def test_the_preview_shows_masks_over_photographs(tmp_path, init):
    root = write_folder(tmp_path, "palette", 3)
    for path in sorted((root / "images").iterdir()):
        write_image(path, np.full((32, 48, 3), 128, np.uint8))
    for path in sorted((root / "masks").iterdir()):
        mask = np.zeros((32, 48), np.uint8)
        mask[:, 24:] = 1
        write_image(path, mask)
    colors = [{"name": "a", "id": 0, "color": "#ff0000"}, {"name": "b", "id": 1, "color": "#0000ff"}]
    (root / "classes.json").write_text(json.dumps({"classes": colors}))
    assert init(root)[0] == 0
    with Image.open(root / "preview.png") as preview:
        counts = {color: count for count, color in preview.convert("RGB").getcolors(100_000)}
    for color in ((191, 64, 64), (64, 64, 191)):  # half of 128, half of the class's colour
        near = sum(count for other, count in counts.items() if np.abs(np.subtract(color, other)).max() <= 2)
        assert near > 0.05 * preview.width * preview.height


def test_existing_files_are_never_written_over(tmp_path, init, monkeypatch):
    root = write_folder(tmp_path, "ids", 4)
    for name in ("recipe.json", "preview.png"):
        (root / name).write_text("mine")
    monkeypatch.setattr("hf_seg.doctor.init.survey_masks", None)  # calling it would raise: refused before the scan
    status, out, err = init(root)
    assert (status, out) == (2, "")
    assert err == f"error: {root}: already holds recipe.json and preview.png; move them away, or add --overwrite.\n"
    assert (root / "recipe.json").read_text() == (root / "preview.png").read_text() == "mine"
    assert not (root / "classes.json").exists()


def test_overwrite_leaves_the_classes(tmp_path, init):
    root = write_folder(tmp_path, "ids", 4)
    init(root)
    classes = read(root / "classes.json")
    classes["classes"][1]["name"] = "disc"
    (root / "classes.json").write_text(json.dumps(classes))
    status, out, _ = init(root, "--overwrite")
    assert status == 0 and "Wrote recipe.json, preview.png in" in out and "  disc " in out
    assert read(root / "classes.json") == classes and read(root / "recipe.json")["data"]["name"] == "folder"


@pytest.mark.parametrize("name", ["recipe.json", "preview.png"])
@pytest.mark.parametrize("before", [True, False])
def test_overwrite_is_for_what_init_has_written(tmp_path, init, name, before):
    root = write_folder(tmp_path / "own", "ids", 4)
    if before:
        init(root)
    (root / name).unlink(missing_ok=True)
    (root / name).write_bytes(b"mine")
    content = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    status, out, err = init(root, "--overwrite")
    assert (status, out) == (2, "") and f"{root}: {name} is not replaced: init did not write it" in err
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == content
    (tmp_path / "mine").write_bytes(b"mine")
    (root / name).unlink()
    (root / name).symlink_to(tmp_path / "mine")
    assert init(root, "--overwrite")[0] == 2 and (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("inner", [True, False])
def test_splits_of_the_folders_are_said(tmp_path, init, inner):
    root = tmp_path / "own"
    for split, numbers in {"train": range(6), "val": range(6, 9)}.items():
        for number in numbers:
            image, ids = scene(number)
            for part, pixels in (("images", image), ("masks", ids)):
                write_image(root.joinpath(*((part, split) if inner else (split, part)), f"{number}.png"), pixels)
    status, out, _ = init(root)
    layout = "images/SPLIT+masks/SPLIT" if inner else "SPLIT/images+SPLIT/masks"
    assert status == 0 and out.startswith(
        f"{root}: 9 pairs\n  layout  {layout}\n  splits  6 train, 3 validation; test will be drawn from t"
    )
    assert not (root / "split.json").exists()


NAMES = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbar:30,30,200::\ndisc:200,30,30::\n",
    "_classes.csv": "Pixel Value, Class\n0, background\n1, disc\n2, bar\n",
    "class_names.txt": "__ignore__\nbackground\ndisc\nbar\n",
    "label_classes.json": '[{"name": "background", "id": 0}, {"name": "disc", "id": 1}, {"id": 2, "name": "bar"}]',
    "id2label.json": '{"0": "background", "1": "disc", "2": "bar"}',
}


@pytest.mark.parametrize("place", ["", "masks"])
@pytest.mark.parametrize("name", NAMES)
def test_names_beside_the_masks(tmp_path, init, name, place):
    kind = "rgba" if name == "labelmap.txt" else "ids"
    root = write_folder(tmp_path / "own", kind, 4)
    (root / place / name).write_text(NAMES[name])
    status, out, _ = init(root)
    assert status == 0 and f"  names   from {name}\n" in out
    order = ["background", "bar", "disc"] if kind == "rgba" else ["background", "disc", "bar"]
    assert [entry["name"] for entry in read(root / "classes.json")["classes"]] == order


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n", "which has no name for 1, 2"),
        ("labelmap.txt", "one\ntwo\n", "which does not hold lines like name:255,0,0::"),
        ("label_classes.json", "{", 'which does not hold a list like [{"name"'),
        (
            "id2label.json",
            '{"0": {"name": "a"}, "1": "b", "2": "c"}',
            'which does not hold an object like {"0": "name"}',
        ),
        ("label_classes.json", "[1]", "which does not hold a list like"),
        ("label_classes.json", '[{"name": "disc", "color": "#ff0000ff"}]', "which has no name for 0, 1, 2"),
    ],
)
def test_names_that_do_not_fit(tmp_path, init, name, content, why):
    root = write_folder(tmp_path / "own", "ids", 4)
    (root / name).write_text(content)
    status, out, _ = init(root)
    assert status == 0 and f"  names   not from {name}, {why}" in out
    assert [entry["name"] for entry in read(root / "classes.json")["classes"]] == ["class_0", "class_1", "class_2"]


def test_bad_pairs_are_shown_and_the_files_written(tmp_path, init):
    root = write_folder(tmp_path, "ids", 6)
    (root / "masks" / "photo_00.png").unlink()
    (root / "images" / "photo_01.jpg").write_bytes(b"no picture")
    status, out, _ = init(root)
    assert status == 1
    assert f"{root}: 2 of 6 image and mask pairs cannot be used:\n" in out
    assert "photo_00.jpg: the image has no mask\n" in out and "photo_01.jpg: cannot be decoded" in out
    assert 'Training stops at these, unless data.on_bad_pair in recipe.json is "drop".' in out
    assert (root / "recipe.json").exists() and (root / "preview.png").exists()


def test_turned_photographs_and_stray_values_are_mentioned(tmp_path, init):
    root = write_folder(tmp_path, "palette", 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(0)[0]).transpose(Image.Transpose.ROTATE_90).save(root / "images" / "photo_00.jpg", exif=exif)
    ids = scene(1)[1]
    ids[0, :20] = np.arange(100, 120)
    write_image(root / "masks" / "photo_01.png", ids)
    status, out, _ = init(root)
    assert status == 0 and "; turned upright: 1" in out
    assert "20 of these cover less than 0.1% of the pixels: values of smoothed outlines?" in out


def empty_folders(root):
    for name in ("images", "masks"):
        (root / name).mkdir()


def no_photographs(root):
    for path in (write_folder(root, "ids", 3) / "images").iterdir():
        path.write_bytes(b"")


def black_masks(root):
    for path in (write_folder(root, "ids", 3) / "masks").iterdir():
        write_image(path, Image.new("L", (48, 32)))


def official_pets(root):
    (root / "images").mkdir()
    (root / "annotations" / "trimaps").mkdir(parents=True)


def unnamed_void(root):
    for path in (write_folder(root, "ids", 3) / "masks").iterdir():
        ids = np.asarray(Image.open(path)).astype(np.int32)
        path.unlink()
        write_image(path.with_suffix(".tif"), np.where(ids == 255, -1, ids))


def too_few_in(root, **counts):
    for split, count in counts.items():
        write_folder(root / split, "ids", count)
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True, exist_ok=True)


def wrong_classes(root):
    (write_folder(root, "ids", 3) / "classes.json").write_text("{}")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "has no images, no masks; it holds no folder."),
        (lambda root: write_folder(root, "ids", 2), "2 pairs cannot be split into train, validation and test: at"),
        (empty_folders, "holds no pair."),
        (no_photographs, "3 of 3 image and mask pairs cannot be used:"),
        (black_masks, "the masks hold 0 only, but training needs two classes"),
        (wrong_classes, 'must be an object {"classes": [...]}'),
        (unnamed_void, "hold the id -1, but ids must be 0 to 65535"),
        (
            lambda root: too_few_in(root, train=1, test=5),
            "1 pairs cannot be split into train and validation: at least",
        ),
        (
            lambda root: too_few_in(root, train=6, val=0, test=3),
            "the validation split has no usable pair. Each of train, validation and test needs at least one.",
        ),
        (official_pets, "It needs no init: `hf-seg train oxford-pet-segformer-scratch --data.root /"),
    ],
)
def test_what_is_refused(tmp_path, init, prepare, message):
    root = tmp_path / "own"
    root.mkdir()
    prepare(root)
    status, out, err = init(root)
    assert (status, out) == (2, "")
    assert f"error: {root}" in err and message in err  # below the progress bar, if it came that far
    assert not (root / "recipe.json").exists()
    assert (root / "classes.json").exists() == (prepare is wrong_classes)


def test_places_that_cannot_be_used(tmp_path, init):
    root = write_folder(tmp_path / "own", "ids", 3)
    status, _, err = init(root, "--out", root / "images" / "photo_00.jpg")
    assert status == 2 and "photo_00.jpg: is not a folder, so nothing can be written to" in err
    (root / ".hf_seg-init.json").write_text("[1]")
    (root / "recipe.json").write_text("{}")
    status, _, err = init(root, "--overwrite")
    assert status == 2 and "recipe.json is not replaced: init did not write it" in err
    latin = root.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    status, _, err = init(latin)
    assert status == 2 and "the name is not UTF-8" in err


def test_why_too_few_pairs_are_left_is_said(tmp_path, init):
    root = write_folder(tmp_path / "own", "palette", 4)
    frames = [Image.fromarray(scene(number)[0]) for number in range(3)]
    for number, suffix in enumerate(("tif", "webp")):
        (root / "images" / f"photo_{number:02}.jpg").unlink()
        write_image(
            root / "images" / f"photo_{number:02}.{suffix}", frames[0], save_all=True, append_images=frames[1:]
        )
    status, _, err = init(root)
    assert status == 2 and not (root / "classes.json").exists()
    assert "2 of 4 image and mask pairs cannot be used:" in err and err.count("the image has 3 pages or frames") == 2
    assert err.count("Save each page or frame as a separate picture: only the first would be read.") == 1


def test_no_such_folder(tmp_path, init):
    status, _, err = init(tmp_path / "nowhere")
    assert status == 2 and err.endswith("nowhere. Correct the path.\n")


def name_void(path):
    """What a person does who knows that white is no class."""
    content = read(path)
    content["classes"] = [entry for entry in content["classes"] if entry["color"] != "#ffffff"]
    path.write_text(json.dumps(content | {"ignore": ["#ffffff"]}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ids", "palette", "rgb"])
def test_from_a_folder_to_a_model_and_a_prediction(tmp_path, init, monkeypatch, kind, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_folder(tmp_path / "own", kind, 24)
    status, out, _ = init(root)
    assert status == 0
    if kind == "rgb":
        name_void(root / "classes.json")
    command = shlex.split(out.splitlines()[-2].removeprefix("Then: hf-seg train"))
    assert train.main([*command, *as_arguments(TINY)]) == 0, capsys.readouterr().err

    run = root / "runs" / "recipe"
    results = read(run / "results.json")
    assert results["data"]["counts"] == {"train": 20, "validation": 2, "test": 2}
    assert results["test"]["mean_iou"] > 0.6
    names = results["data"]["class_names"]
    assert len(names) == 3

    image, ids = scene(100)
    write_image(tmp_path / "new.png", image)
    [prediction] = predict(run, [tmp_path / "new.png"], device="cpu")
    assert prediction.mask.shape == ids.shape
    order = {"ids": [0, 1, 2], "palette": [0, 1, 2], "rgb": [0, 2, 1]}[kind]  # colours sort blue before red
    assert (prediction.mask == np.array(order)[ids]).mean() > 0.85


def make_deep(image):
    """A photograph as a microscope gives it: one channel, 12 bits above 500."""
    return (image @ np.array([10, 0, 5])).astype(np.uint16) + 500


@pytest.mark.slow
def test_deep_photographs_are_trained_and_predicted_by_one_range(tmp_path, init, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_folder(tmp_path / "own", "ids", 8)
    for number in range(8):
        (root / "images" / f"photo_{number:02}.jpg").unlink()
        write_image(root / "images" / f"photo_{number:02}.png", make_deep(scene(number)[0]))
    status, out, _ = init(root)
    values = np.stack([make_deep(scene(number)[0]) for number in range(8)])
    low, high = np.percentile(values, (1, 99))
    value_range = [np.floor(low), np.ceil(high)]
    said = "black and white (1st and 99th percentile of 8 images with more than 8 bits): data.value_range\n"
    assert status == 0 and "  values  {:g} and {:g} become {}".format(*value_range, said) in out
    assert "  images  8 PNG I;16; 48×32 pixels; one channel, used for red, green and blue: 8\n" in out
    assert read(root / "recipe.json")["data"]["value_range"] == value_range
    with Image.open(root / "preview.png") as preview:  # neither black nor white
        assert len(preview.convert("L").getcolors()) > 100

    once = TINY | {"training.num_train_epochs": "1", "training.eval_every_epochs": "1"}
    assert train.main([str(root / "recipe.json"), *as_arguments(once)]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "recipe"
    assert read(run / "results.json")["recipe"]["data"]["value_range"] == value_range
    assert "values from {:.1f} to {:.1f} become 0 to 255".format(*value_range) in (run / "README.md").read_text()
    segmenter = load_segmenter(run, device="cpu")
    assert json.loads(metadata_of(segmenter)["value_range"]) == value_range
    test = load_splits(load_recipes([root / "recipe.json"])[0].data)["test"]
    [stored] = test.with_format(None).cast_column("image", ImageColumn(decode=False))["image"]
    [prediction] = predict(segmenter, [stored["path"]])
    assert np.array_equal(prediction.image, test[0]["image"]) and len(np.unique(prediction.image)) > 100


@pytest.mark.slow
def test_bad_pairs_stop_a_run_or_are_dropped(tmp_path, init, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_folder(tmp_path / "own", "binary", 12)
    init(root)
    write_image(root / "masks" / "photo_05.png", Image.new("L", (48, 32), 7))
    once = TINY | {"training.num_train_epochs": "1", "training.eval_every_epochs": "1"}
    assert train.main([str(root / "recipe.json"), *as_arguments(once)]) == 2
    assert "photo_05.png: the mask holds 7 (1,536 pixels)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert train.main([str(root / "recipe.json"), *as_arguments(once | {"data.on_bad_pair": "drop"})]) == 0
    results = read(tmp_path / "runs" / "recipe" / "results.json")
    assert sum(results["data"]["counts"].values()) == 11
    (dropped,) = results["data"]["dropped"]
    assert dropped["file"] == "masks/photo_05.png" and "holds 7 (1,536 pixels)" in dropped["reason"]
    assert "not comparable" in results["data"]["note"]


def make_table(numbers, kind="ids", names=None):
    """Columns `pixel_values` and `label`, and `parts`, whose type names the classes."""
    pairs = [scene(number) for number in numbers]
    columns = {"pixel_values": [image for image, _ in pairs], "label": [KINDS[kind](ids) for _, ids in pairs]}
    features = Features({"pixel_values": ImageColumn(), "label": ImageColumn()})
    table = Dataset.from_dict(columns, features=features)
    return table.add_column("parts", [[0]] * len(pairs), feature=List(ClassLabel(names=names))) if names else table


def write_parquet(root, **splits):
    root.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        table.to_parquet(root / f"{split}.parquet")
    return root


class TestTables:
    def test_what_it_says_and_writes(self, tmp_path, init):
        table = make_table(range(12), names=["ground", "disc", "bar"])
        root = write_parquet(tmp_path / "own", train=table, validation=make_table([12], names=["a", "b", "c"]))
        status, out, _ = init(root)
        assert status == 0
        lines = out.splitlines()
        assert lines[:7] == [
            f"{root}: 13 pairs",
            "  columns pixel_values (images), label (masks)",
            "  splits  12 train, 1 validation; test will be drawn from train",
            "  images  13 PNG RGB; 48×32 pixels",
            "  masks   13 PNG L; ids",
            "  size    32×32 by letterbox, since most are not square: padding keeps their shape",
            "  names   from the column parts",
        ]
        assert [line.split()[:2] for line in lines[7:10]] == [["0", "ground"], ["1", "disc"], ["2", "bar"]]
        assert lines[-2] == (f"Then: hf-seg train {root}/recipe.json --output_dir {root}/runs")
        assert not (root / "split.json").exists()
        [recipe] = load_recipes([root / "recipe.json"])
        assert recipe.to_dict() == in_effect(root / "recipe.json")
        data = recipe.data
        assert (data.name, data.path, data.root, data.revision) == ("hub", str(root), str(root), None)
        assert (data.image_column, data.mask_column) == ("pixel_values", "label")
        with Image.open(root / "preview.png") as preview:
            assert preview.width == 1200
        status, out, _ = init(root, "--overwrite")  # the files that init has written are no data
        assert status == 0 and out.splitlines()[1:5] == lines[1:5]

    def test_deep_photographs(self, tmp_path, init):
        deep = [Image.fromarray(make_deep(scene(number)[0])) for number in range(4)]
        columns = {"image": deep, "label": make_table(range(4))["label"]}
        table = Dataset.from_dict(columns, features=Features({"image": ImageColumn(), "label": ImageColumn()}))
        status, out, _ = init(write_parquet(tmp_path / "own", train=table))
        low, high = read(tmp_path / "own" / "recipe.json")["data"]["value_range"]
        assert status == 0 and 500 < low < 1500 < 3000 < high and "  images  4 TIFF I;16; " in out

    def test_names_of_the_data_set(self, tmp_path, init):
        root = write_parquet(tmp_path / "own", train=make_table(range(4)))
        names = {"0": "ground", "1": "disc", "2": "bar", "3": "tree", "4": "bar"}
        (root / "id2label.json").write_text(json.dumps(names))
        status, out, _ = init(root)
        assert status == 0 and "  names   from id2label.json\n" in out
        content = read(root / "classes.json")
        assert [entry["name"] for entry in content["classes"]] == ["ground", "disc", "bar (2)", "tree", "bar (4)"]
        assert content["ignore"] == [255]

    def test_two_ids_need_two_names(self, tmp_path, init):
        root = write_parquet(tmp_path / "own", train=make_table(range(4), "binary"))
        (root / "id2label.json").write_text(json.dumps({"0": "ground", "1": "disc"}))
        status, out, _ = init(root)
        assert status == 0 and "  names   not from id2label.json, which has no name for 255\n" in out
        assert [entry["name"] for entry in read(root / "classes.json")["classes"]] == ["background", "foreground"]

    def test_class_label_of_another_number_of_classes_names_nothing(self, tmp_path, init):
        scenes = [f"place {number}" for number in range(9)]
        root = write_parquet(tmp_path / "own", train=make_table(range(4), names=scenes))
        assert "  names " not in init(root)[1]
        assert [entry["name"] for entry in read(root / "classes.json")["classes"]] == ["class_0", "class_1", "class_2"]

    def test_written_elsewhere_and_saved_to_disk(self, tmp_path, init):
        tables = {"train": make_table(range(4)), "test": make_table([4]), "dev": make_table([5])}
        DatasetDict(tables).save_to_disk(tmp_path / "saved")
        before = {path.name for path in (tmp_path / "saved").iterdir()}
        status, out, _ = init(tmp_path / "saved", "--out", tmp_path / "place", "--mask-column", "label")
        assert status == 0 and "  splits  4 train, 1 validation, 1 test\n" in out
        assert {path.name for path in (tmp_path / "saved").iterdir()} == before
        data = read(tmp_path / "place" / "recipe.json")["data"]
        assert (data["path"], data["root"]) == (str(tmp_path / "saved"), str(tmp_path / "place"))

    def test_bad_rows_are_shown_and_the_files_written(self, tmp_path, init):
        table = make_table(range(6)).cast_column("label", ImageColumn(decode=False)).to_dict()
        table["label"][2] = None
        table["label"][4]["bytes"] = b"no picture"
        features = Features({"pixel_values": ImageColumn(), "label": ImageColumn()})
        root = write_parquet(tmp_path / "own", train=Dataset.from_dict(table, features=features))
        status, out, _ = init(root)
        assert status == 1 and f"{root}: 2 of 6 image and mask pairs cannot be used:\n" in out
        assert f"  {root} train[2]: the row has no mask\n" in out
        assert f"  {root} train[4], mask: cannot be decoded (Unid" in out
        assert (root / "recipe.json").exists() and (root / "preview.png").exists()

    def test_what_is_refused(self, tmp_path, init, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, _, err = init("org/name")
        assert status == 2
        assert err.endswith(
            "Correct the path. Or, if it is a data set on the Hub, name the folder to write to with --out.\n"
        )
        root = write_folder(tmp_path / "photos", "ids", 3)
        status, _, err = init(root, "--mask-column", "mask")
        assert (status, err) == (
            2,
            f"error: {root}: --mask-column is for tables and the Hub, but this is a folder of files. Leave it out.\n",
        )
        root = write_parquet(tmp_path / "own", train=make_table(range(2)))
        assert "--revision is for data sets on the Hub" in init(root, "--revision", "main")[2]
        status, _, err = init(root)
        assert status == 2 and f"error: {root}: 2 pairs cannot be split into train, validation and test" in err

    def test_a_data_set_on_the_hub(self, tmp_path, init, hub, monkeypatch):
        import datasets
        from huggingface_hub import HfApi

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        folder = write_parquet(tmp_path / "upload", train=make_table(range(5)))
        (folder / "id2label.json").write_text('{"0": "ground", "1": "disc", "2": "bar"}')
        HfApi().create_repo("alice/scenes", repo_type="dataset")
        commit = HfApi().upload_folder(repo_id="alice/scenes", repo_type="dataset", folder_path=folder).oid
        out_folder = tmp_path / "scenes"
        status, out, _ = init("alice/scenes", "--out", out_folder, "--revision", commit)
        assert status == 0 and out.startswith("alice/scenes: 5 pairs\n") and "names   from id2label.json" in out
        data = read(out_folder / "recipe.json")["data"]
        assert (data["path"], data["root"], data["revision"]) == ("alice/scenes", str(out_folder), commit)
        assert not (out_folder / "split.json").exists()
        status, _, err = init("alice/nothing", "--out", tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()
        assert status == 2 and "error: alice/nothing: Dataset 'alice/nothing' doesn't exist on the Hub" in err


@pytest.mark.slow
def test_from_parquet_to_a_model_and_a_prediction(tmp_path, init, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_parquet(tmp_path / "own", train=make_table(range(24)))
    status, out, _ = init(root)
    assert status == 0
    command = shlex.split(out.splitlines()[-2].removeprefix("Then: hf-seg train"))
    assert train.main([*command, *as_arguments(TINY)]) == 0, capsys.readouterr().err
    run = root / "runs" / "recipe"
    results = read(run / "results.json")
    assert results["data"]["counts"] == {"train": 20, "validation": 2, "test": 2}
    assert results["data"]["title"] == "own" and results["test"]["mean_iou"] > 0.6
    image, ids = scene(100)
    write_image(tmp_path / "new.png", image)
    [prediction] = predict(run, [tmp_path / "new.png"], device="cpu")
    assert (prediction.mask == ids).mean() > 0.85
    assert train.main([*command, *as_arguments(TINY)]) == 0  # finished: what the run has written is no data
