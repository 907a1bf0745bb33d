import os

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_seg.data import load_splits
from hf_seg.problem import DataError, PairError


def stored(split, column):
    return split.cast_column(column, datasets.Image(decode=False))[column]


def names(split):
    return [os.path.basename(item["path"]) for item in stored(split, "image")]


def test_every_tenth_line_of_trainval_is_validation(pet_folder, recipe, picture):
    splits = load_splits(recipe("oxford_pet", pet_folder))
    assert names(splits["validation"]) == ["Breed_09.jpg", "Breed_19.jpg"]
    assert names(splits["train"]) == [f"Breed_{i:02}.jpg" for i in range(20) if i not in (9, 19)]
    assert names(splits["test"]) == ["Cat_1.jpg", "Cat_2.jpg", "Cat_3.jpg"]
    sample = splits["train"][9]  # Breed_10: the pair must stay a pair
    assert sample["image"].mode == "RGB"
    np.testing.assert_array_equal(sample["image"], picture(10))
    np.testing.assert_array_equal(sample["mask"], picture(10)[..., 0] % 3 + 1)


def test_limits_take_the_first_samples(pet_folder, recipe):
    limits = {"max_train_samples": 3, "max_validation_samples": 1, "max_test_samples": 100}
    splits = load_splits(recipe("oxford_pet", pet_folder, **limits))
    assert names(splits["train"]) == ["Breed_00.jpg", "Breed_01.jpg", "Breed_02.jpg"]
    assert splits.num_rows == {"train": 3, "validation": 1, "test": 3}


def test_loading_reads_no_picture(pet_folder, recipe):
    (pet_folder / "images" / "Breed_00.jpg").write_bytes(b"no picture")
    splits = load_splits(recipe("oxford_pet", pet_folder))
    assert all(item["bytes"] is None for item in stored(splits["train"], "image"))
    assert all(item["bytes"] is None for item in stored(splits["train"], "mask"))
    with pytest.raises(PairError, match="cannot be decoded"):
        splits["train"][0]


def test_formats_under_a_jpg_name(pet_folder, recipe, picture, write):
    images = pet_folder / "images"
    colours = picture(0)
    palette = PIL.Image.fromarray(colours.astype(np.uint8)).quantize(256)
    palette.save(images / "Breed_00.jpg", "GIF")
    palette.save(images / "Breed_01.jpg", "PNG")
    write(images / "Breed_02.jpg", np.dstack([colours, np.zeros((8, 12))]))  # RGBA, all transparent
    PIL.Image.fromarray(colours.astype(np.uint8)[..., 0]).save(images / "Breed_03.jpg", "JPEG", quality=100)
    train = load_splits(recipe("oxford_pet", pet_folder))["train"]
    assert [train[i]["image"].mode for i in range(4)] == ["RGB"] * 4
    np.testing.assert_array_equal(train[0]["image"], palette.convert("RGB"))
    np.testing.assert_array_equal(train[1]["image"], palette.convert("RGB"))
    np.testing.assert_array_equal(train[2]["image"], colours)
    assert np.abs(np.asarray(train[3]["image"], int) - colours[..., :1]).max() < 8


def test_palette_trimaps_give_their_indices(pet_folder, recipe):
    path = pet_folder / "annotations" / "trimaps" / "Breed_00.png"
    values = np.asarray(PIL.Image.open(path))
    indexed = PIL.Image.fromarray(values)
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.save(path)
    mask = load_splits(recipe("oxford_pet", pet_folder))["train"][0]["mask"]
    assert mask.mode == "P"
    np.testing.assert_array_equal(mask, values)


def test_stray_files_are_ignored(pet_folder, recipe, picture, write):
    before = load_splits(recipe("oxford_pet", pet_folder)).num_rows
    (pet_folder / "annotations" / "trimaps" / "._Breed_00.png").write_bytes(b"\0\5\x16\7")
    (pet_folder / "images" / "._Breed_00.jpg").write_bytes(b"\0\5\x16\7")
    (pet_folder / "images" / "Breed_01.mat").write_bytes(b"MATLAB")
    write(pet_folder / "images" / "Unlisted_1.jpg", picture(1))
    assert load_splits(recipe("oxford_pet", pet_folder)).num_rows == before


def test_exif_rotation_is_not_applied(pet_folder, recipe, picture):
    path = pet_folder / "images" / "Breed_00.jpg"
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    pixels = picture(0).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(path, "PNG", exif=exif)
    assert datasets.Image().decode_example({"path": str(path), "bytes": None}).size == (8, 12)  # what is avoided
    sample = load_splits(recipe("oxford_pet", pet_folder))["train"][0]
    assert sample["image"].size == sample["mask"].size == (12, 8)
    np.testing.assert_array_equal(sample["image"], pixels)


def test_columns_survive_what_datasets_does(pet_folder, recipe, tmp_path):
    train = load_splits(recipe("oxford_pet", pet_folder))["train"]
    train.save_to_disk(tmp_path / "saved")
    reloaded = datasets.load_from_disk(tmp_path / "saved")
    assert reloaded.features == train.features
    shuffled = train.shuffle(seed=0).select([0, 1])
    assert shuffled.features == train.features
    shuffled.set_transform(lambda batch: {"sizes": [image.size for image in batch["image"]]})
    assert shuffled[0] == {"sizes": (12, 8)}


def test_root_may_hold_the_folder(pet_folder, recipe, monkeypatch):
    expected = load_splits(recipe("oxford_pet", pet_folder)).num_rows
    pet_folder.rename(pet_folder.with_name("oxford-iiit-pet"))
    assert load_splits(recipe("oxford_pet", pet_folder.parent)).num_rows == expected
    monkeypatch.setenv("HF_SEG_DATA", str(pet_folder.parent))  # read at the call, not at import
    assert load_splits(recipe("oxford_pet")).num_rows == expected


def test_missing_listed_files_are_named(pet_folder, recipe):
    for i in range(12):
        (pet_folder / "images" / f"Breed_{i:02}.jpg").unlink()
    (pet_folder / "annotations" / "trimaps" / "Cat_3.png").unlink()
    with pytest.raises(DataError) as caught:
        load_splits(recipe("oxford_pet", pet_folder))
    message = str(caught.value)
    assert str(pet_folder) in message and "13 files" in message and "and 3 more" in message
    assert "images/Breed_00.jpg" in message.replace(os.sep, "/") and message.count("Breed_") == 10
    assert "Unpack the official" in message


def test_missing_list(pet_folder, recipe):
    (pet_folder / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt: is missing.*annotations\.tar\.gz"):
        load_splits(recipe("oxford_pet", pet_folder))


def test_empty_split_is_named(pet_folder, recipe):
    (pet_folder / "annotations" / "test.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match=r"pets: the test split of oxford_pet is empty.*annotations/test\.txt"):
        load_splits(recipe("oxford_pet", pet_folder))


@pytest.mark.parametrize("setting", ["data.root", "HF_SEG_DATA"])
def test_a_folder_that_is_not_there(tmp_path, recipe, monkeypatch, setting):
    absent = tmp_path / "typo"
    if setting == "HF_SEG_DATA":
        monkeypatch.setenv("HF_SEG_DATA", str(absent))
    with pytest.raises(DataError, match=f"{setting}: there is no folder {absent}. Correct the path"):
        load_splits(recipe("oxford_pet", absent if setting == "data.root" else None))
