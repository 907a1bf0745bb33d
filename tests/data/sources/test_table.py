"""Data sets with an image and a mask column: Parquet files, `save_to_disk`, and the Hub (one on loopback)."""

import io
import json

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from helpers import describe_dropped
from own_folders import KINDS, scene, write_folder
from pyarrow import parquet

from hf_seg.data import cache, check_splits, fingerprint, load_spec, load_splits
from hf_seg.data.cache import prepare_splits
from hf_seg.data.sources import table_files as hub_files
from hf_seg.data.transforms import build_transforms
from hf_seg.problem import DataError
from hf_seg.recipe.keys import DataRecipe

CLASSES = {"classes": [{"name": name, "id": index} for index, name in enumerate(("ground", "disc", "bar"))]}
CLASSES["ignore"] = [255]


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_home" / "datasets")
    hub_files._load_from_hub.cache_clear()


def encode(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind, quality=95)
    return file.getvalue()


def stored(number, kind="ids"):
    """The bytes of an image and of its mask."""
    from PIL import Image as Pillow

    image, ids = scene(number)
    return encode(Pillow.fromarray(image), "JPEG"), encode(KINDS[kind](ids))


def make_table(numbers, image="image", mask="mask", kind="ids", without_mask=(), **columns):
    pairs = [stored(number, kind) for number in numbers]
    table = {
        image: [{"bytes": pair[0], "path": None} for pair in pairs],
        mask: [None if n in without_mask else {"bytes": pair[1], "path": "m.png"} for n, pair in enumerate(pairs)],
    }
    dataset = Dataset.from_dict(table, features=Features({image: Image(), mask: Image()}))
    for name, (values, feature) in columns.items():
        dataset = dataset.add_column(name, values, feature=feature)
    return dataset


def write_parquet(root, **splits):
    """`root/data/train-00000-of-00001.parquet` …, as a data set's repository has them; and classes.json."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return describe(root)


def describe(root):
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def hub_recipe(path, **keys):
    return DataRecipe(name="hub", path=str(path), **keys)


def refused(path, **keys):
    data = hub_recipe(path, **keys)
    with pytest.raises(DataError) as caught:
        check_splits(load_splits(data), load_spec(data))
    return str(caught.value)


def counts(splits):
    return {name: len(split) for name, split in splits.items()}


def origins(splits):
    return {name: list(split["origin"]) for name, split in splits.items()}


def three_splits(root, **changes):
    tables = {"train": make_table(range(4)), "validation": make_table([4, 5]), "test": make_table([6])} | changes
    return write_parquet(root, **tables)


@pytest.mark.parametrize("kind", ["ids", "palette", "rgb"])
def test_parquet_files_become_the_right_labels(tmp_path, kind):
    root = three_splits(tmp_path / "own", train=make_table(range(4), kind=kind))
    if kind == "rgb":
        colors = {"ground": "#000000", "disc": "#c81e1e", "bar": "#1e1ec8"}
        classes = [{"name": name, "color": color} for name, color in colors.items()]
        (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": ["#ffffff"]}))
    data = hub_recipe(root)
    spec, splits = load_spec(data), load_splits(data)
    assert counts(splits) == {"train": 4, "validation": 2, "test": 1} and not (root / "split.json").exists()
    assert spec.class_names == ("ground", "disc", "bar") and spec.title == "own"
    for number, sample in enumerate(splits["train"]):
        image, ids = scene(number)
        expected = ids.copy()
        if kind != "palette":
            expected[:2] = 255
        assert (np.asarray(sample["mask"]) == expected).all()
        assert np.abs(np.asarray(sample["image"], float) - image).mean() < 12
    if kind != "rgb":
        check_splits(splits, spec)


def test_what_is_beside_the_parquet_files_is_no_data(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    make_table(range(3)).to_parquet(root / "train.parquet")
    make_table([3]).to_parquet(root / "pets_val.parquet")
    describe(root)
    (root / "runs" / "train").mkdir(parents=True)
    for name in ("recipe.json", "runs/train/test_results.json", "runs/train/training_args.bin", ".train.parquet"):
        (root / name).write_text("{}")
    first = load_splits(hub_recipe(root))
    assert counts(first) == {"train": 2, "validation": 1, "test": 1}
    (root / "split.json").unlink()
    (root / "default" / "test").mkdir(parents=True)
    make_table([4]).to_parquet(root / "default" / "test" / "0000.parquet")
    assert counts(load_splits(hub_recipe(root))) == {"train": 3, "validation": 1, "test": 1}
    make_table([5]).to_parquet(root / "more.parquet")
    assert "more.parquet: neither its name nor its folders' names contain a split." in refused(root)


def test_files_without_a_split_in_their_names_are_train(tmp_path):
    root = describe(tmp_path / "own")
    make_table(range(3)).to_parquet(root / "a.parquet")
    make_table(range(3, 6)).to_parquet(root / "b.parquet")
    assert counts(load_splits(hub_recipe(root))) == {"train": 4, "validation": 1, "test": 1}


def test_save_to_disk_gives_the_same_pictures(tmp_path):
    three_splits(tmp_path / "parquet")
    tables = {"train": make_table(range(4)), "val": make_table([4, 5]), "test": make_table([6])}
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    make_table(range(4)).save_to_disk(tmp_path / "single")
    describe(tmp_path / "saved"), describe(tmp_path / "single")
    splits = {name: load_splits(hub_recipe(tmp_path / name)) for name in ("parquet", "saved", "single")}
    assert fingerprint(splits["parquet"]) == fingerprint(splits["saved"])
    assert counts(splits["single"]) == {"train": 2, "validation": 1, "test": 1}
    assert "config_name out" in refused(tmp_path / "saved", config_name="small")


def test_a_table_is_mapped_into_memory_and_not_read(tmp_path):
    splits = load_splits(hub_recipe(three_splits(tmp_path / "own")))
    assert all(split.cache_files for split in splits.values())
    assert splits["train"].column_names == ["image", "mask", "origin"]


def test_a_table_of_paths(tmp_path):
    root = write_folder(tmp_path / "own" / "photos", "ids", 6)
    names = {part: sorted((root / part).iterdir()) for part in ("images", "masks")}

    def write(rows):
        columns = {part[:-1]: [str(names[part][row]) for row in rows] for part in names}
        features = Features({"image": Image(), "mask": Image()})
        return write_parquet(tmp_path / "own", train=Dataset.from_dict(columns, features=features))

    place = write([0, 1, 2, 3, 4])
    data = hub_recipe(place)
    splits = load_splits(data)
    check_splits(splits, load_spec(data))
    write([0, 1, 2, 3, 5])
    assert "was made for other pictures" in refused(place)
    (place / "split.json").unlink()
    write([0, 1, 2, 3, 4])
    names["masks"][4].unlink()
    assert f"{names['masks'][4]}: cannot be decoded (FileNotFoundError" in refused(place)


def link(root, file):
    (root / "inside.jpg").symlink_to(file)
    return root / "inside.jpg"


@pytest.mark.parametrize(
    "named",
    [
        lambda root, file: file,
        lambda root, file: root / ".." / file.name,
        link,
        lambda root, file: f"file://{file}",
        lambda root, file: f"zip://a.jpg::{file}",
    ],
)
def test_a_row_that_names_a_file_elsewhere(tmp_path, named):
    image, mask = stored(0)
    (tmp_path / "private.jpg").write_bytes(image)
    root = tmp_path / "own"
    root.mkdir()
    table = make_table(range(4)).to_dict()
    table["image"][2] = {"bytes": None, "path": str(named(root, tmp_path / "private.jpg"))}
    parquet.write_table(pyarrow.table(table), describe(root) / "train.parquet")
    message = refused(root)
    assert f"{root} train[2]: the image is a file outside the data set, " in message
    assert "A row may name only files in the data set's own folder" in message
    assert origins(load_splits(hub_recipe(root, on_bad_pair="drop")))["train"] == [f"{root} train[{n}]" for n in (1,)]


@pytest.mark.parametrize("place", ["../private.parquet", "/{}/private.parquet"])
def test_a_card_that_names_data_elsewhere(tmp_path, place):
    root = describe(tmp_path / "own")
    make_table(range(4)).to_parquet(tmp_path / "private.parquet")
    place = place.format(str(tmp_path).strip("/"))
    (root / "README.md").write_text(f"---\nconfigs:\n- config_name: a\n  data_files: {place}\n---\n")
    assert "its README.md names data outside the data set:\n" in refused(root)


def test_folders_of_tables_that_are_links(tmp_path):
    make_table(range(4)).to_parquet(tmp_path / "elsewhere.parquet")
    root = describe(tmp_path / "own")
    (tmp_path / "more").mkdir()
    (tmp_path / "elsewhere.parquet").rename(tmp_path / "more" / "train.parquet")
    (root / "data").symlink_to(tmp_path / "more")
    assert sum(counts(load_splits(hub_recipe(root))).values()) == 4
    (root / "again").symlink_to(root)
    assert f"{root / 'again'}: is a link to a folder that contains it" in refused(root)


class TestColumns:
    @pytest.mark.parametrize(
        ("image", "mask"),
        [("image", "label"), ("pixel_values", "labels"), ("img", "Annotation"), ("photo", "weird"), ("weird", "gt")],
    )
    def test_are_found(self, tmp_path, image, mask):
        table = make_table(range(3), image=image, mask=mask, number=([1, 2, 3], Value("int64")))
        splits = load_splits(hub_recipe(write_parquet(tmp_path / "own", train=table)))
        assert (np.asarray(splits["test"][0]["mask"])[:2] == 255).all()

    @pytest.mark.parametrize("as_struct", [True, False])
    def test_bytes_of_other_writers(self, tmp_path, as_struct):
        root = describe(tmp_path / "own")
        pairs = [stored(number) for number in range(3)]
        columns = {
            name: [{"bytes": pair[part]} if as_struct else pair[part] for pair in pairs]
            for part, name in enumerate(("image", "mask"))
        }
        parquet.write_table(pyarrow.table(columns), root / "train.parquet")
        splits = load_splits(hub_recipe(root))
        check_splits(splits, load_spec(hub_recipe(root)))
        assert counts(splits) == {"train": 1, "validation": 1, "test": 1}

    def test_two_that_could_be_meant(self, tmp_path):
        masks = [{"bytes": stored(number)[1], "path": None} for number in range(3)]
        table = make_table(range(3), label=(masks, Image()))
        root = write_parquet(tmp_path / "own", train=table)
        message = refused(root)
        assert message == (
            f"{root}: the mask column cannot be determined. Its columns: image (Image), mask (Image), label "
            "(Image). Set data.mask_column (in `hf-seg init`: --mask-column)."
        )
        load_splits(hub_recipe(root, mask_column="label"))

    def test_given_ones_must_be_there_and_hold_pictures(self, tmp_path):
        table = make_table(range(3), number=([1, 2, 3], Value("int64")))
        root = write_parquet(tmp_path / "own", train=table)
        message = refused(root, mask_column="masks")
        assert (
            'has no column "masks" (data.mask_column). Its columns: image (Image), mask (Image), number (' in message
        )
        assert 'the column "number" (data.image_column) holds no pictures' in refused(root, image_column="number")

    def test_masks_that_are_lists(self, tmp_path):
        root = describe(tmp_path / "own")
        ids = [scene(number)[1].tolist() for number in range(3)]
        feature = List(List(Value("int32")))
        table = make_table(range(3)).remove_columns("mask").add_column("mask", ids, feature=feature)
        table.to_parquet(root / "train.parquet")
        message = refused(root)
        assert "the mask column cannot be determined" in message and "mask (List)" in message
        assert "lists of ids to pictures with map and PIL.Image.fromarray" in message

    def test_a_split_without_them(self, tmp_path):
        root = three_splits(tmp_path / "own")
        saved = {"train": make_table(range(4)), "test": make_table([1], mask="label")}
        DatasetDict(saved).save_to_disk(root / "saved")
        describe(root / "saved")
        assert "its test split has no column mask, which train has" in refused(root / "saved")


class TestSplits:
    def test_are_drawn_once_and_kept(self, tmp_path):
        root = write_parquet(tmp_path / "own", train=make_table(range(20)))
        data = hub_recipe(root)
        first = origins(load_splits(data))
        assert {name: len(rows) for name, rows in first.items()} == {"train": 16, "validation": 2, "test": 2}
        assert sorted(sum(first.values(), [])) == sorted(f"{root} train[{row}]" for row in range(20))
        saved = json.loads((root / "split.json").read_text())
        assert saved["train_rows"] == 20 and saved["seed"] == 0
        assert first["test"] == [f"{root} train[{row}]" for row in saved["test"]]
        saved["test"], saved["validation"] = saved["validation"], saved["test"]  # as a person may
        (root / "split.json").write_text(json.dumps(saved))
        second = origins(load_splits(data))
        assert second["test"] == first["validation"] and second["train"] == first["train"]
        elsewhere = write_parquet(tmp_path / "elsewhere", train=make_table(range(20)))
        assert fingerprint(load_splits(data)) != fingerprint(load_splits(hub_recipe(elsewhere)))
        (root / "split.json").unlink()
        assert fingerprint(load_splits(data)) == fingerprint(load_splits(hub_recipe(elsewhere)))

    def test_only_what_is_lacking_is_drawn(self, tmp_path):
        root = write_parquet(tmp_path / "own", train=make_table(range(10)), validation=make_table([10, 11, 12]))
        splits = load_splits(hub_recipe(root, max_train_samples=5))
        assert counts(splits) == {"train": 5, "validation": 3, "test": 1}
        assert "validation" not in json.loads((root / "split.json").read_text())
        assert splits["validation"][0]["origin"] == f"{root} validation[0]"

    def test_they_may_be_kept_elsewhere(self, tmp_path):
        root = write_parquet(tmp_path / "own", train=make_table(range(5)))
        (root / "classes.json").unlink()
        place = describe(tmp_path / "place")
        load_splits(hub_recipe(root, root=str(place)))
        assert (place / "split.json").exists() and not (root / "split.json").exists()

    @pytest.mark.parametrize(
        ("after", "message"),
        [
            ({"train": range(9)}, "was made for 10 rows of train, but {root} has 9."),
            ({"train": [*range(9), 30]}, "was made for other pictures than {root} now has in train."),
            (
                {"train": range(10), "test": [11]},
                "holds validation and test, but for {root} validation must be drawn.",
            ),
            ({"train": range(10), "test": [11], "val": [12]}, "for {root} nothing must be drawn."),
        ],
    )
    def test_of_a_data_set_that_has_changed(self, tmp_path, after, message):
        root = write_parquet(tmp_path / "own", train=make_table(range(10)))
        load_splits(hub_recipe(root))
        write_parquet(root, **{split: make_table(numbers) for split, numbers in after.items()})
        found = refused(root)
        assert found.startswith(f"{root / 'split.json'}: ") and message.format(root=root) in found
        assert "or delete the file; then a new split is drawn" in found
        (root / "split.json").unlink()
        load_splits(hub_recipe(root))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"train": ["a"], "validation": ["b"], "test": ["c"]}, "must hold train_rows, content, and the row"),
            ({"train_rows": 10, "content": "", "test": ["1"]}, "test must be a non-empty list of row numbers"),
            ({"train_rows": 10, "content": "", "test": [1, 1]}, "1 is given twice"),
            ({"train_rows": 10, "content": "", "test": [10]}, "row numbers must be at least 0 and below train_rows"),
        ],
    )
    def test_a_file_that_is_wrong(self, tmp_path, content, message):
        root = write_parquet(tmp_path / "own", train=make_table(range(10)))
        (root / "split.json").write_text(json.dumps(content))
        assert message in refused(root)

    def test_too_few_rows(self, tmp_path):
        root = write_parquet(tmp_path / "own", train=make_table(range(2)))
        assert "2 pairs cannot be split into train, validation and test: at least 3 are needed" in refused(root)

    def test_without_train(self, tmp_path):
        DatasetDict({"all": make_table(range(4))}).save_to_disk(tmp_path / "own")
        assert "has no split named train, only all." in refused(describe(tmp_path / "own"))

    def test_two_of_one_meaning(self, tmp_path):
        DatasetDict({name: make_table([1]) for name in ("train", "val", "dev")}).save_to_disk(tmp_path / "own")
        assert "which is the validation split, val or dev?" in refused(describe(tmp_path / "own"))


class TestBadRows:
    def test_they_are_named_by_their_rows(self, tmp_path):
        table = make_table(range(12)).to_dict()
        table["image"][3]["bytes"] = b"no picture"
        table["mask"][5]["bytes"] = encode(KINDS["ids"](scene(5)[1] + 7))
        table["mask"][7]["bytes"] = stored(7)[0]
        table = Dataset.from_dict(table, features=Features({"image": Image(), "mask": Image()}))
        root = write_parquet(tmp_path / "own", train=table)
        message = refused(root)
        assert message.startswith("hub: 3 of 12 image and mask pairs cannot be used:\n")
        assert f"{root} train[3], image: cannot be decoded (Unid" in message
        assert f"{root} train[5], mask: the mask holds 7 (" in message
        assert f"{root} train[7], mask: the mask is JPEG data" in message

        data = hub_recipe(root, on_bad_pair="drop")
        splits = load_splits(data)
        check_splits(splits, load_spec(data))
        assert sum(map(len, splits.values())) == 9
        record = describe_dropped(data)
        assert json.loads(json.dumps(record)) == record and record["note"].startswith("3 pairs were left out")
        assert {entry["file"] for entry in record["dropped"]} == {
            f"{root} train[3], image",
            f"{root} train[5], mask",
            f"{root} train[7], mask",
        }

    def test_rows_without_a_mask(self, tmp_path):
        root = three_splits(tmp_path / "own", train=make_table(range(5), without_mask=[1, 3]))
        message = refused(root)
        assert message.startswith(f"{root}: 2 of 8 image and mask pairs cannot be used:\n")
        assert f"{root} train[3]: the row has no mask\n" in message
        splits = load_splits(hub_recipe(root, on_bad_pair="drop"))
        assert origins(splits)["train"] == [f"{root} train[{row}]" for row in (0, 2, 4)]

    def test_a_test_split_without_masks(self, tmp_path):
        root = three_splits(tmp_path / "own", test=make_table(range(3), without_mask=range(3)))
        message = refused(root)
        assert (
            f"{root} test: none of its 3 rows has a mask\n" in message and "is replaced by a part of train" in message
        )
        assert not (root / "split.json").exists()
        data = hub_recipe(root, on_bad_pair="drop")
        assert counts(load_splits(data)) == {"train": 3, "validation": 2, "test": 1}
        assert describe_dropped(data)["dropped"] == [
            {"file": f"{root} test", "reason": "none of its 3 rows has a mask"}
        ]


class TestWhatCannotBeLoaded:
    def test_a_folder_without_parquet(self, tmp_path):
        message = refused(describe(tmp_path / "own"))
        assert message.startswith(f"{tmp_path / 'own'}: holds no Parquet file. A folder holds Parquet files, with")

    def test_a_damaged_file(self, tmp_path):
        root = three_splits(tmp_path / "own")
        path = root / "data" / "train-00000-of-00001.parquet"
        path.write_bytes(path.read_bytes()[:200])
        message = refused(root)
        assert message.startswith(f"{path}: is not a complete Parquet file (") and message.endswith("). Get it again.")

    def test_files_that_do_not_fit_together(self, tmp_path):
        root = three_splits(tmp_path / "own")
        make_table([1], image="photo").to_parquet(root / "data" / "train-00001-of-00002.parquet")
        assert refused(root) == (
            f"{root / 'data' / 'train-00001-of-00002.parquet'}: its columns are photo, mask, but those of "
            "test-00000-of-00001.parquet are image, mask. All files of a data set must have the same columns."
        )

    def test_damage_within_a_file(self, tmp_path):
        root = three_splits(tmp_path / "own")
        path = root / "data" / "train-00000-of-00001.parquet"
        content = bytearray(path.read_bytes())
        content[500:3000] = b"\xff" * 2500
        path.write_bytes(content)
        message = refused(root)
        assert message.startswith(f"{root}: cannot be loaded (ArrowInvalid: ")
        assert "Get the data set's files again" in message

    def test_a_file_in_place_of_a_folder(self, tmp_path):
        path = describe(tmp_path) / "train.parquet"
        make_table([1]).to_parquet(path)
        assert f"{path}: is a file; data.path must name a folder." in refused(path, root=str(tmp_path))

    @pytest.mark.parametrize(("number", "remedy"), [(13, "Give this user the right"), (28, "Free disk space")])
    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch, number, remedy):
        def refuse(*args, **options):
            raise OSError(number, "no")

        root = three_splits(tmp_path / "own")
        monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", refuse)
        message = refused(root)
        assert "Error: [Errno" in message and remedy in message and "files again" not in message

    def test_without_classes(self, tmp_path):
        root = three_splits(tmp_path / "own")
        (root / "classes.json").unlink()
        assert f"{root / 'classes.json'}: is missing" in refused(root)


CARD = """---
configs:
- config_name: large
  default: true
  data_files: [{split: train, path: large/*}]
- config_name: small
  data_files: [{split: train, path: small.parquet}]
---
"""


def test_configurations_of_a_downloaded_repository(tmp_path):
    root = describe(tmp_path / "own")
    (root / "README.md").write_text(CARD)
    (root / "large").mkdir()
    make_table(range(8)).to_parquet(root / "large" / "0.parquet")
    make_table(range(4)).to_parquet(root / "small.parquet")
    assert sum(counts(load_splits(hub_recipe(root))).values()) == 8
    (root / "split.json").unlink()
    assert sum(counts(load_splits(hub_recipe(root, config_name="small"))).values()) == 4
    message = refused(root, config_name="medium")
    assert "BuilderConfig 'medium' not found. Available: ['large', 'small']" in message


class TestClassNames:
    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            ({0, 1, 255}, ({0: "ground", 1: "disc"}, "the column parts")),
            ({0, 1, 2}, ({}, "")),  # one name a row is that of the whole picture
            ({0, 1, 2, 3}, ({}, "")),
        ],
    )
    def test_of_a_class_label_with_as_many_names(self, tmp_path, ids, expected):
        labels = {"parts": List(ClassLabel(names=["ground", "disc"])), "kind": ClassLabel(names=["a", "b", "c"])}
        features = Features({"image": Image(), "mask": Image(), **labels})
        assert hub_files.load_class_names(str(tmp_path), None, features, ids, False) == expected

    def test_two_class_labels_that_fit(self, tmp_path):
        features = Features({name: ClassLabel(names=["a", "b"]) for name in ("one", "two")})
        assert hub_files.load_class_names(str(tmp_path), None, features, {0, 1}, False) == ({}, "")

    def test_of_id2label(self, tmp_path):
        (tmp_path / "id2label.json").write_text('{"0": "ground", "1": "disc"}')
        found = hub_files.load_class_names(str(tmp_path), None, Features({}), {0}, False)
        assert found == ({0: "ground", 1: "disc"}, "id2label.json")
        (tmp_path / "id2label.json").write_text('["ground"]')
        with pytest.raises(DataError, match="id2label.json: cannot be read"):
            hub_files.load_class_names(str(tmp_path), None, Features({}), {0}, False)


@pytest.fixture
def online(hub, tmp_path, monkeypatch):
    """The Hub on loopback, with a function that uploads `train` tables as a data set; gives the commit."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    api = huggingface_hub.HfApi(token=None)

    def upload(repo_id, number=0, private=False, **files):
        folder = tmp_path / f"upload-{number}"
        folder.mkdir()
        make_table(range(number, number + 10)).to_parquet(folder / "train-00000-of-00001.parquet")
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        api.create_repo(repo_id, repo_type="dataset", exist_ok=True, private=private)
        return api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder).oid

    hub.upload = upload
    return hub


class TestHub:
    def test_a_data_set_by_its_id_and_revision(self, online, tmp_path):
        root = describe(tmp_path / "root")
        first = online.upload("alice/discs")
        second = online.upload("alice/discs", number=20)
        newest = load_splits(hub_recipe("alice/discs", root=str(root)))
        assert counts(newest) == {"train": 8, "validation": 1, "test": 1}
        assert newest["test"][0]["origin"].startswith("alice/discs train[")
        spec = load_spec(hub_recipe("alice/discs", root=str(root), revision=first))
        assert spec.title == "alice/discs"
        assert spec.homepage == f"https://huggingface.co/datasets/alice/discs/tree/{first}"
        assert "was made for other pictures than alice/discs now has" in refused(
            "alice/discs", root=str(root), revision=first
        )
        (root / "split.json").unlink()
        older = load_splits(hub_recipe("alice/discs", root=str(root), revision=first))
        assert fingerprint(older) != fingerprint(newest)
        again = load_splits(hub_recipe("alice/discs", root=str(root), revision=first))
        assert fingerprint(again) == fingerprint(older) and first != second

    def test_one_that_is_not_there(self, online, tmp_path):
        root = str(describe(tmp_path / "root"))
        online.upload("alice/discs")
        assert refused("alice/disks", root=root).startswith(
            "alice/disks: Dataset 'alice/disks' doesn't exist on the Hub or cannot be accessed. Correct data.path"
        )
        message = refused("alice/discs", root=root, revision="v7")
        assert message.startswith("alice/discs at v7: Revision 'v7' doesn't exist for dataset 'alice/discs' on the")
        assert "hf auth login" in message

    def test_without_a_connection(self, online, tmp_path, monkeypatch):
        root = str(describe(tmp_path / "root"))
        first = online.upload("alice/discs")
        there = fingerprint(load_splits(hub_recipe("alice/discs", root=root)))
        online.close()
        hub_files._load_from_hub.cache_clear()
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert fingerprint(load_splits(hub_recipe("alice/discs", root=root))) == there  # kept by datasets
        assert fingerprint(load_splits(hub_recipe("alice/discs", root=root, revision=first))) == there
        message = refused("alice/discs", root=root, revision="v1")
        assert f"alice/discs at v1: the Hub cannot be reached, and the commit in the cache is {first}." in message
        message = refused("alice/squares", root=root)
        assert message.startswith("alice/squares: the Hub cannot be reached (") and "HF_HUB_OFFLINE" in message


def test_its_pairs_are_prepared_once(tmp_path, monkeypatch):
    decoded = []
    decode = cache.decode_pair
    monkeypatch.setattr(
        cache, "decode_pair", lambda pair, *rest: decoded.append(pair.image_name) or decode(pair, *rest)
    )
    root = write_parquet(tmp_path / "set", train=make_table(range(8)), test=make_table(range(8, 10)))
    data = hub_recipe(root, max_train_samples=100)

    def prepare():
        spec = load_spec(data)
        return prepare_splits(load_splits(data), spec, build_transforms(data, spec), True)

    first = prepare()
    assert isinstance(first["train"].labels, np.memmap) and len(decoded) == 10
    assert decoded[-1] == f"{root} test[1], image"
    assert np.array_equal(prepare()["test"].pixel_values, first["test"].pixel_values) and len(decoded) == 10
    make_table([20, 21]).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    assert not np.array_equal(prepare()["test"].pixel_values, first["test"].pixel_values)
    assert len(decoded) == 20  # datasets has written its tables again, all of them
