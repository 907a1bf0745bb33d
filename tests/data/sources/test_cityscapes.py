import hashlib
import re
import zipfile

import datasets
import numpy as np
import pytest

from hf_seg.data import load_spec, load_splits
from hf_seg.data.sources import cityscapes, download, examine_archives
from hf_seg.data.sources.download import LOCK_NAME, UNPACKING
from hf_seg.problem import DataError

ZIPS = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")


def cities(split):
    paths = split.cast_column("image", datasets.Image(decode=False))["image"]
    return [item["path"].split("leftImg8bit")[1].split("/")[2] for item in paths]


@pytest.fixture
def zipped(cityscapes_folder, tmp_path):
    """The two official archives with what surrounds the needed files in them, and nothing else."""
    folder = tmp_path / "zips"
    folder.mkdir()
    for name in ZIPS:
        part = name.partition("_")[0]
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("README", "read me")
            for path in sorted((cityscapes_folder / part).rglob("*.png")):
                archive.write(path, path.relative_to(cityscapes_folder))
            if part == "gtFine":
                archive.writestr("gtFine/train/ulm/ulm_000000_000019_gtFine_color.png", b"not needed")
                archive.writestr("gtFine/train/ulm/ulm_000000_000019_gtFine_polygons.json", b"{}")
    return folder


def test_last_three_train_cities_are_validation_and_val_is_test(cityscapes_folder, recipe, picture):
    splits = load_splits(recipe("cityscapes", cityscapes_folder))
    assert cities(splits["train"]) == ["aachen", "aachen", "bochum", "bochum"]
    assert cities(splits["validation"]) == ["ulm", "ulm", "weimar", "weimar", "zurich", "zurich"]
    assert cities(splits["test"]) == ["frankfurt"]
    sample = splits["train"][3]  # the second of bochum
    np.testing.assert_array_equal(sample["image"], picture(3))
    np.testing.assert_array_equal(sample["mask"], picture(3)[..., 0] % 34)
    labels = np.array(load_spec(recipe("cityscapes")).label_table)[np.asarray(sample["mask"])]
    assert {255, 0} <= set(labels.ravel().tolist()) <= {255, *range(19)}


def test_limits_and_jpg_names(cityscapes_folder, recipe, cityscapes_pair):
    cityscapes_pair(cityscapes_folder, "train", "aaa_first", "aaa_first_000000_000019", suffix="jpg")
    aachen = cityscapes_folder / "leftImg8bit" / "train" / "aachen"
    (aachen / "._aachen_000000_000019_leftImg8bit.png").write_bytes(b"\0\5\x16\7")
    splits = load_splits(recipe("cityscapes", cityscapes_folder, max_train_samples=2, max_validation_samples=1))
    assert cities(splits["train"]) == ["aaa_first", "aachen"]
    assert splits.num_rows == {"train": 2, "validation": 1, "test": 1}


def test_the_same_name_in_two_cities_or_splits(cityscapes_folder, recipe, cityscapes_pair):
    cityscapes_pair(cityscapes_folder, "train", "bochum", "aachen_000000_000019")
    cityscapes_pair(cityscapes_folder, "val", "frankfurt", "aachen_000000_000019")
    assert load_splits(recipe("cityscapes", cityscapes_folder)).num_rows == {"train": 5, "validation": 6, "test": 2}


def test_files_without_partner_are_named(cityscapes_folder, recipe, cityscapes_pair):
    for number in range(9):
        name = f"ulm_{number:06}_000020"
        cityscapes_pair(cityscapes_folder, "train", "ulm", name)
        part = ("gtFine", "leftImg8bit")[number % 2]
        (path,) = (cityscapes_folder / part / "train" / "ulm").glob(f"{name}_*")
        path.unlink()
    with pytest.raises(DataError) as caught:
        load_splits(recipe("cityscapes", cityscapes_folder))
    message = str(caught.value)
    assert "9 files of train are not pairs of one image and one mask" in message
    assert "leftImg8bit/train/ulm/ulm_000000_000020_leftImg8bit.png: no mask" in message
    assert "gtFine/train/ulm/ulm_000001_000020_gtFine_labelIds.png: no image" in message
    assert "add the missing files or remove these" in message


def test_two_images_of_one_name(cityscapes_folder, recipe, cityscapes_pair):
    cityscapes_pair(cityscapes_folder, "val", "frankfurt", "frankfurt_000000_000294", suffix="jpg")
    with pytest.raises(DataError, match=r"frankfurt_000000_000294_leftImg8bit\.\w+: there is another image with this"):
        load_splits(recipe("cityscapes", cityscapes_folder))


def test_empty_split_is_named(tmp_path, recipe, cityscapes_pair):
    for city in ("a", "b", "c"):  # three cities are held out, so that nothing is left to train on
        cityscapes_pair(tmp_path, "train", city, f"{city}_000000_000000")
    with pytest.raises(DataError, match="the train split of cityscapes is empty.*it needs four"):
        load_splits(recipe("cityscapes", tmp_path))


def test_absent(tmp_path, recipe, monkeypatch):
    with pytest.raises(DataError) as caught:
        load_splits(recipe("cityscapes", tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: Cityscapes is missing: no folder leftImg8bit and gtFine, and no archive")
    for part in ("https://www.cityscapes-dataset.com", "log in", *ZIPS, "data.root", "HF_SEG_DATA"):
        assert part in message
    monkeypatch.setenv("HF_SEG_DATA", str(tmp_path))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "cityscapes"))):
        load_splits(recipe("cityscapes"))


def test_official_archives_are_unpacked_once(zipped, cityscapes_folder, recipe):
    splits = load_splits(recipe("cityscapes", zipped))
    expected = load_splits(recipe("cityscapes", cityscapes_folder))
    assert splits.num_rows == expected.num_rows
    np.testing.assert_array_equal(splits["test"][0]["image"], expected["test"][0]["image"])
    np.testing.assert_array_equal(splits["test"][0]["mask"], expected["test"][0]["mask"])
    names = {path.name for path in zipped.iterdir()}
    assert names == {*ZIPS, LOCK_NAME, "leftImg8bit", "gtFine"}
    unpacked = {path.name for path in (zipped / "gtFine").rglob("*.*")}
    assert not any("color" in name or "polygons" in name or "berlin" in name for name in unpacked)
    for name in ZIPS:  # a second run never opens them
        (zipped / name).write_bytes(b"")
    assert load_splits(recipe("cityscapes", zipped)).num_rows == expected.num_rows


def test_an_interrupted_unpacking_starts_anew(zipped, recipe, monkeypatch):
    extract, calls = zipfile.ZipFile.extract, []

    def fail_at_third(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return extract(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zipfile.ZipFile, "extract", fail_at_third)
        load_splits(recipe("cityscapes", zipped))
    assert not (zipped / "leftImg8bit").exists()
    (zipped / UNPACKING / "leftImg8bit" / "train" / "berlin").mkdir(parents=True)  # what a killed process leaves
    assert load_splits(recipe("cityscapes", zipped)).num_rows == {"train": 4, "validation": 6, "test": 1}


def test_members_cannot_leave_the_folder(zipped, recipe):
    with zipfile.ZipFile(zipped / ZIPS[0], "a") as archive:
        archive.writestr("leftImg8bit/train/../../../../outside_leftImg8bit.png", b"x")
        archive.writestr("leftImg8bit/train/../outside_leftImg8bit.png", b"x")
    load_splits(recipe("cityscapes", zipped))
    outside = [path for path in zipped.parent.rglob("*outside*") if zipped / "leftImg8bit" not in path.parents]
    assert outside == []


def test_one_archive_is_missing(zipped, recipe):
    (zipped / ZIPS[1]).unlink()
    with pytest.raises(DataError, match=r"no folder gtFine, and no archive gtFine_trainvaltest\.zip"):
        load_splits(recipe("cityscapes", zipped))
    assert not (zipped / "leftImg8bit").exists()  # nothing is unpacked before both are there


def test_damaged_archives(zipped, recipe):
    whole = (zipped / ZIPS[0]).read_bytes()
    (zipped / ZIPS[0]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"leftImg8bit_trainvaltest\.zip: is damaged.*Download it again"):
        load_splits(recipe("cityscapes", zipped))
    position = whole.index(b"IDAT", whole.index(b"leftImg8bit/train")) + 20
    (zipped / ZIPS[0]).write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
    with pytest.raises(DataError, match=r"leftImg8bit_trainvaltest\.zip: is damaged.*CRC"):
        load_splits(recipe("cityscapes", zipped))
    assert not (zipped / "leftImg8bit").exists()


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)])  # encrypted; a method that does not exist
def test_an_archive_that_cannot_be_unpacked(zipped, recipe, offset, value):
    content = bytearray((zipped / ZIPS[0]).read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(content)):
        content[entry.start() + offset] = value
    (zipped / ZIPS[0]).write_bytes(content)
    before = hashlib.sha256(content).digest()
    with pytest.raises(DataError, match=r"leftImg8bit_trainvaltest\.zip: is damaged or cannot be unpacked: "):
        load_splits(recipe("cityscapes", zipped))
    assert not (zipped / "leftImg8bit").exists()
    codes = [problem.code for problem in examine_archives(recipe("cityscapes", zipped), zipped)]
    assert codes.count("damaged-archive") == 1
    assert hashlib.sha256((zipped / ZIPS[0]).read_bytes()).digest() == before


def test_an_archive_of_something_else(zipped, recipe):
    with zipfile.ZipFile(zipped / ZIPS[1], "w") as archive:
        archive.writestr("gtCoarse/train/x.png", b"")
    with pytest.raises(DataError, match=r"holds none of the files needed from gtFine/"):
        load_splits(recipe("cityscapes", zipped))


def test_a_folder_that_cannot_be_written(zipped, recipe):
    (zipped / LOCK_NAME).mkdir()  # as good as a read-only folder, and works for root as well
    with pytest.raises(DataError, match=f"{zipped}: getting Cityscapes failed: .*must be writable.*data.root"):
        load_splits(recipe("cityscapes", zipped))


def test_an_archive_that_grows_without_end(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    with zipfile.ZipFile(tmp_path / "gtFine_trainvaltest.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", bytes(10**7))
    with pytest.raises(
        DataError, match=r"gtFine_trainvaltest.zip: 1 files of 10.0 MB .* cannot be pictures \(at most 200"
    ):
        download.fetch_parts(cityscapes, tmp_path, may_download=False)
    assert not (tmp_path / "gtFine").exists()
