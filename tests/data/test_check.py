import io
import os
import shutil

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features

from hf_seg.data import check, check_splits, fingerprint, load_spec, load_splits
from hf_seg.data.columns import StoredImage
from hf_seg.problem import DataError


@pytest.fixture
def check_pets(pet_folder, recipe):
    data = recipe("oxford_pet", pet_folder)
    return lambda: check_splits(load_splits(data), load_spec(data))


@pytest.fixture
def failure(check_pets):
    """The message of a check that has to fail."""

    def fail():
        with pytest.raises(DataError) as caught:
            check_pets()
        return str(caught.value)

    return fail


def test_good_data_passes_and_is_remembered(pet_folder, check_pets, monkeypatch):
    (pet_folder / "annotations" / "trimaps" / "Cat_1.png").touch()
    palette = PIL.Image.fromarray(np.full((8, 12), 3, np.uint8))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(pet_folder / "annotations" / "trimaps" / "Cat_2.png")
    check_pets()

    looked = []
    decode = check.decode_pair
    monkeypatch.setattr(check, "decode_pair", lambda *args: looked.append(args[0]) or decode(*args))
    check_pets()
    assert looked == []
    os.utime(pet_folder / "images" / "Cat_3.jpg", ns=(1, 1))  # a changed file: everything is looked at again
    check_pets()
    assert len(looked) == 23


def test_a_file_of_the_same_size_and_date_is_another(pet_folder, recipe):
    data, file = recipe("oxford_pet", pet_folder), pet_folder / "images" / "Cat_3.jpg"
    before = os.stat(file)
    states = {check.describe_state("test", load_splits(data)["test"], load_spec(data)) for _ in range(2)}
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(file).st_size, os.stat(file).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    states.add(check.describe_state("test", load_splits(data)["test"], load_spec(data)))
    assert len(states) == 2


def test_a_failed_check_is_not_remembered(pet_folder, failure):
    (pet_folder / "images" / "Cat_3.jpg").write_bytes(b"")
    assert failure() == failure()


def test_undecodable_files(pet_folder, failure):
    images, trimaps = pet_folder / "images", pet_folder / "annotations" / "trimaps"
    (images / "Breed_00.jpg").write_bytes(b"no picture")
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (images / "Breed_09.jpg").write_bytes(buffer.getvalue()[:2000])  # in validation
    whole = (trimaps / "Cat_2.png").read_bytes()
    (trimaps / "Cat_2.png").write_bytes(whole[: len(whole) // 2])
    message = failure()
    assert message.startswith("oxford_pet: 3 of 23 image and mask pairs cannot be used:\n")
    assert f"{images / 'Breed_00.jpg'}: cannot be decoded (UnidentifiedImageError" in message
    assert f"{images / 'Breed_09.jpg'}: cannot be decoded (OSError: image file is truncated" in message
    assert f"{trimaps / 'Cat_2.png'}: cannot be decoded (" in message
    assert message.count("Get the undecodable files again") == 1


def test_more_pixels_than_the_limit(failure, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40)  # Pillow refuses above twice as many
    assert "exceeds limit of 80 pixels" in failure()


def test_a_file_that_vanished(pet_folder, recipe):
    data = recipe("oxford_pet", pet_folder)
    splits = load_splits(data)
    (pet_folder / "images" / "Cat_1.jpg").unlink()
    with pytest.raises(DataError, match=r"Cat_1\.jpg: cannot be decoded \(FileNotFoundError"):
        check_splits(splits, load_spec(data))


def test_sizes_that_differ(pet_folder, failure, write):
    write(pet_folder / "annotations" / "trimaps" / "Breed_03.png", np.ones((12, 8)))
    message = failure()
    assert "Breed_03.jpg: the image is 12x8 but the mask is 8x12" in message and "Breed_03.png" in message
    assert "must have the same width and height" in message


def test_masks_that_are_colours(pet_folder, failure, write):
    write(pet_folder / "annotations" / "trimaps" / "Breed_03.png", np.ones((8, 12, 3)))
    PIL.Image.fromarray(np.full((8, 12), 1, np.uint16)).save(pet_folder / "annotations" / "trimaps" / "Breed_04.png")
    message = failure()
    assert "Breed_03.png: the mask has the mode RGB" in message
    assert "Breed_04.png: the mask has the mode I;16" in message
    assert "one 8-bit channel" in message


def test_values_outside_the_table(pet_folder, failure, write):
    values = np.ones((8, 12))
    values[0, :5], values[1, :2] = 0, 255
    write(pet_folder / "annotations" / "trimaps" / "Breed_03.png", values)
    message = failure()
    assert "Breed_03.png: holds 0 (5 pixels), 255 (2 pixels)\n" in message
    assert message.endswith("The masks of oxford_pet may hold 1, 2, 3.")


def test_ten_are_named_and_all_counted(pet_folder, failure):
    for i in range(12):
        (pet_folder / "images" / f"Breed_{i:02}.jpg").write_bytes(b"no picture")
    message = failure()
    assert "12 of 23" in message and message.count("cannot be decoded") == 10 and "and 2 more" in message


def test_a_cache_that_cannot_be_written(tmp_path, check_pets, caplog, monkeypatch):
    (tmp_path / "hf_home").write_text("a file where the cache folder should be")
    check_pets()
    assert "is not writable: the next run has to check oxford_pet again" in caplog.text


def generated(mask_value):
    def encode(array):
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
        return {"path": None, "bytes": buffer.getvalue()}

    features = Features({"image": StoredImage(mode="RGB"), "mask": StoredImage()})
    columns = {"image": [encode(np.zeros((4, 4, 3)))], "mask": [encode(np.full((4, 4), mask_value))]}
    return DatasetDict({"train": Dataset.from_dict(columns, features=features)})


def test_generated_data_is_checked_too(recipe, tmp_path):
    spec = load_spec(recipe("synthetic_pet"))
    check_splits(generated(2), spec)
    with pytest.raises(DataError, match=r"train\[0\], mask: holds 7 \(16 pixels\)"):
        check_splits(generated(7), spec)
    assert not (tmp_path / "hf_home").exists()


def test_all_pixels_may_be_ignored(recipe):
    check_splits(generated(0), load_spec(recipe("synthetic_cityscapes")))


def test_a_transform_does_not_disturb(pet_folder, recipe):
    data = recipe("oxford_pet", pet_folder)
    plain, transformed = load_splits(data), load_splits(data).with_transform(lambda batch: {"labels": [0]})
    check_splits(transformed, load_spec(data))
    assert fingerprint(transformed) == fingerprint(plain)
    assert transformed["train"][0] == {"labels": 0}


def test_fingerprint_is_of_the_data_and_not_of_the_place(pet_folder, cityscapes_folder, recipe, tmp_path):
    shutil.copytree(pet_folder, tmp_path / "elsewhere" / "on" / "another" / "disk")
    here = fingerprint(load_splits(recipe("oxford_pet", pet_folder)))
    there = fingerprint(load_splits(recipe("oxford_pet", tmp_path / "elsewhere" / "on" / "another" / "disk")))
    assert here == there and len(here) == 16 and set(here) <= set("0123456789abcdef")
    assert fingerprint(load_splits(recipe("cityscapes", cityscapes_folder))) != here


def test_fingerprint_changes_with_the_data(pet_folder, recipe):
    data = recipe("oxford_pet", pet_folder)
    seen = {fingerprint(load_splits(data))}
    seen.add(fingerprint(load_splits(recipe("oxford_pet", pet_folder, max_test_samples=2))))
    with open(pet_folder / "images" / "Cat_1.jpg", "ab") as file:
        file.write(b"+")
    seen.add(fingerprint(load_splits(data)))
    trainval = pet_folder / "annotations" / "trainval.txt"
    lines = trainval.read_text().splitlines()
    trainval.write_text("\n".join([*lines[:1], lines[2], lines[1], *lines[3:]]))
    seen.add(fingerprint(load_splits(data)))  # another order
    assert len(seen) == 4


def test_fingerprint_of_generated_data():
    assert fingerprint(generated(1)) == fingerprint(generated(1)) != fingerprint(generated(2))
