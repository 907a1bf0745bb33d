"""The official data sets, tables, and archives as the doctor sees them; own folders are in tests/test_doctor.py."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image
from huggingface_hub import constants
from own_folders import ORIENTATION, scene
from PIL import Image as Pillow

from hf_seg.data import check_splits, load_spec, load_splits
from hf_seg.data.sources import examine_archives, list_data, oxford_pet
from hf_seg.doctor.survey import MAX_DUPLICATES, describe, find_problems, survey_pairs
from hf_seg.problem import DataError
from hf_seg.recipe.keys import DataRecipe


@pytest.fixture
def look():
    """Everything that is found about a data section, and the splits."""

    def run(data):
        listing = list_data(data)
        problems = examine_archives(data, Path(listing.place)) + listing.notes + listing.bad_pairs
        problems += [problem for refusal in listing.refusals for problem in refusal.problems]
        if listing.splits is None:
            return problems, {}
        survey = survey_pairs(listing.splits, listing.spec)
        whole = {"place": listing.place, "size": (1, 1), "split_known": listing.split_known}
        problems += survey.problems + list(find_problems(survey, listing.spec, **whole))
        return problems, describe(survey, listing.spec)

    return run


@pytest.fixture
def agree(look):
    """Look at a data section, and let training's own check say whether it would be refused."""

    def run(data):
        findings, splits = look(data)
        try:
            check_splits(load_splits(data), load_spec(data))
            refused = False
        except DataError:
            refused = True
        assert any(finding.level == "error" for finding in findings) == refused
        return [(finding.level, finding.code, finding.place) for finding in findings], splits

    return run


def pack(path, *folders):
    with tarfile.open(path, "w:gz") as archive:
        for folder in folders:
            archive.add(folder, folder.name)


def zip_folder(path, folder):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent).as_posix())


class TestOxfordPet:
    def test_clean(self, pet_folder, recipe, agree):
        findings, splits = agree(recipe("oxford_pet", pet_folder))
        # the pictures of the fixture are PNG files under the name .jpg
        assert {(level, code) for level, code, _ in findings} == {("warning", "wrong-suffix")}
        assert {name: (part["pairs"], part["usable"]) for name, part in splits.items()} == {
            "train": (18, 18),
            "validation": (2, 2),
            "test": (3, 3),
        }

    def test_listed_files_are_missing_and_the_rest_is_still_examined(self, pet_folder, recipe, agree):
        (pet_folder / "images" / "Breed_03.jpg").unlink()
        (pet_folder / "images" / "Breed_05.jpg").write_bytes(b"no picture")
        findings, splits = agree(recipe("oxford_pet", pet_folder))
        errors = [finding for finding in findings if finding[0] == "error"]
        broken = str(pet_folder / "images" / "Breed_05.jpg")
        missing = str(pet_folder / "images" / "Breed_03.jpg")
        assert errors == [("error", "data-set", missing), ("error", "undecodable", broken)]
        assert splits["pairs"]["pairs"] == 22

    def test_kinds_of_pictures(self, pet_folder, recipe, agree):
        images = pet_folder / "images"
        exif = Pillow.Exif()
        exif[ORIENTATION] = 3
        with Pillow.open(images / "Breed_01.jpg") as picture:
            picture.save(images / "Breed_01.jpg", "JPEG", exif=exif)
        Pillow.fromarray(np.full((8, 12), 500, np.uint16)).save(images / "Breed_02.jpg", "PNG")  # as in own folders
        found, _ = agree(recipe("oxford_pet", pet_folder))
        assert ("note", "exif-orientation", str(images / "Breed_01.jpg")) in found
        assert ("error", "deep-image", str(images / "Breed_02.jpg")) in found

    def test_a_value_of_another_data_set(self, pet_folder, recipe, agree, write):
        mask = write(pet_folder / "annotations" / "trimaps" / "Cat_1.png", np.full((8, 12), 255))
        assert ("error", "mask-values", str(mask)) in agree(recipe("oxford_pet", pet_folder))[0]

    def test_it_would_be_downloaded(self, look, recipe, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("hf_seg.data.sources.download.http_get", None)  # calling it would raise
        (finding,), _ = look(recipe("oxford_pet"))
        assert (finding.level, finding.code) == ("note", "not-downloaded")
        assert not (tmp_path / "hf_home").exists()

    @pytest.mark.parametrize("root", [True, False])
    def test_it_cannot_be_had(self, agree, recipe, tmp_path, root, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        ((level, code, _),), _ = agree(recipe("oxford_pet", tmp_path if root else None))
        assert (level, code) == ("error", "data-set")

    def test_no_such_root(self, agree, recipe, tmp_path):
        assert agree(recipe("oxford_pet", tmp_path / "nowhere"))[0][0][:2] == ("error", "data-set")

    @pytest.fixture
    def packed(self, pet_folder, tmp_path, monkeypatch):
        """The archives instead of the folders, as if they were the official ones."""
        root = tmp_path / "packed"
        root.mkdir()
        for part, files in (("images", ["images"]), ("annotations", ["annotations"])):
            pack(root / f"{part}.tar.gz", *(pet_folder / name for name in files))
        archives = tuple(
            replace(archive, md5=hashlib.md5((root / archive.file_name).read_bytes()).hexdigest())
            for archive in oxford_pet.ARCHIVES
        )
        monkeypatch.setattr(oxford_pet, "ARCHIVES", archives)
        return root

    def test_archives_are_left_packed(self, packed, recipe, agree, look):
        findings, splits = look(recipe("oxford_pet", packed))
        assert [finding.code for finding in findings] == ["not-unpacked"] and splits == {}
        assert {path.name for path in packed.iterdir()} == {"images.tar.gz", "annotations.tar.gz"}
        agree(recipe("oxford_pet", packed))

    def test_an_archive_that_is_another(self, packed, recipe, agree):
        path = packed / "images.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../escape.jpg"))
        found, _ = agree(recipe("oxford_pet", packed))
        assert [entry for entry in found if entry[0] == "error"] == [
            ("error", "wrong-archive", str(path)),
            ("error", "unsafe-archive", str(path)),
        ]

    def test_beside_the_unpacked_folder_it_does_no_harm(self, pet_folder, recipe, agree):
        (pet_folder / "images.tar.gz").write_bytes(b"half")
        found, _ = agree(recipe("oxford_pet", pet_folder))
        assert {entry[:2] for entry in found} >= {("warning", "wrong-archive"), ("warning", "damaged-archive")}


class TestCityscapes:
    def test_clean(self, cityscapes_folder, recipe, agree):
        findings, splits = agree(recipe("cityscapes", cityscapes_folder))
        # 96 random pixels a picture: no two alike, and classes may be absent or rare
        assert {code for _, code, _ in findings} <= {"absent-class", "rare-class"}
        assert {name: part["pairs"] for name, part in splits.items()} == {"train": 4, "validation": 6, "test": 1}

    def test_an_orphan_and_a_broken_file(self, cityscapes_folder, recipe, agree):
        masks = cityscapes_folder / "gtFine" / "train" / "ulm"
        (masks / "ulm_000000_000019_gtFine_labelIds.png").unlink()
        broken = masks / "ulm_000001_000019_gtFine_labelIds.png"
        broken.write_bytes(broken.read_bytes()[:60])
        found, splits = agree(recipe("cityscapes", cityscapes_folder))
        errors = [entry for entry in found if entry[0] == "error"]
        assert [entry[1] for entry in errors] == ["data-set", "undecodable"] and errors[1][2] == str(broken)
        assert splits["pairs"]["pairs"] == 10

    def test_zip_files(self, cityscapes_folder, recipe, agree, look, tmp_path):
        root = tmp_path / "zips"
        root.mkdir()
        for part in ("leftImg8bit", "gtFine"):
            zip_folder(root / f"{part}_trainvaltest.zip", cityscapes_folder / part)
        assert [finding.code for finding in look(recipe("cityscapes", root))[0]] == ["not-unpacked"]
        path = root / "gtFine_trainvaltest.zip"
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png")
        begin = member.header_offset + 30 + len(member.filename)
        content[begin + 20 : begin + 40] = bytes(20)  # the list of members is whole, this one's checksum is not
        path.write_bytes(content)
        found, _ = agree(recipe("cityscapes", root))
        assert ("error", "damaged-archive", str(path)) in found

    def test_it_is_not_there(self, recipe, agree, tmp_path):
        assert [entry[:2] for entry in agree(recipe("cityscapes", tmp_path))[0]] == [("error", "data-set")]


class TestTables:
    @pytest.fixture
    def table(self, tmp_path):
        """`table(pairs)`: a folder with a Parquet file of encoded pictures, and its classes.json."""

        def write(pairs):
            rows = {"image": [], "mask": []}
            for pair in pairs:
                for column, pixels in zip(rows, pair, strict=True):
                    if pixels is None:
                        rows[column].append(None)
                        continue
                    file = io.BytesIO()
                    Pillow.fromarray(pixels).save(file, "PNG")
                    rows[column].append({"bytes": file.getvalue(), "path": None})
            features = Features({"image": Image(), "mask": Image()})
            root = tmp_path / "table"
            root.mkdir()
            Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
            names = '{"name": "ground", "id": 0}, {"name": "disc", "id": 1}, {"name": "bar", "id": 2}'
            (root / "classes.json").write_text(f'{{"classes": [{names}]}}')
            return DataRecipe(name="hub", path=str(root))

        return write

    def test_rows_are_examined_and_no_split_is_kept(self, table, look):
        pairs = [scene(number, (96, 80)) for number in range(20)]
        pairs[7] = (pairs[7][0], np.full((80, 96), 9, np.uint8))
        data = table(pairs)
        findings, splits = look(data)
        assert [(finding.level, finding.code) for finding in findings] == [("error", "mask-values")]
        assert findings[0].place.endswith(" train[7], mask")
        assert {name: part["pairs"] for name, part in splits.items()} == {"train": 16, "validation": 2, "test": 2}
        assert not (Path(data.path) / "split.json").exists()

    def test_rows_without_mask(self, table, agree):
        pairs = [scene(number, (96, 80)) for number in range(20)]
        pairs[4] = (pairs[4][0], None)
        data = table(pairs)
        findings, splits = agree(data)
        assert findings == [("error", "unpaired", f"{data.path} train[4]")]
        assert sum(part["pairs"] for part in splits.values()) == 19

    def test_training_agrees(self, table, agree):
        findings, splits = agree(table([scene(number, (96, 80)) for number in range(20)]))
        assert findings == [] and {name: part["pairs"] for name, part in splits.items()}["test"] == 2


def test_a_film_from_one_place_does_not_flood():
    picture, ids = scene(0, (96, 80))
    encoded = []
    for pixels in (picture, ids):
        file = io.BytesIO()
        Pillow.fromarray(pixels).save(file, "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    frames = 150  # 11,175 pairs
    features = Features({"image": Image(), "mask": Image()})
    split = Dataset.from_dict({"image": [encoded[0]] * frames, "mask": [encoded[1]] * frames}, features=features)
    survey = survey_pairs({"train": split}, None)
    codes = [problem.code for problem in find_problems(survey, None, place="film", size=(1, 1))]
    assert codes.count("many-duplicates") == 1 and codes.count("duplicate-within-split") == MAX_DUPLICATES
