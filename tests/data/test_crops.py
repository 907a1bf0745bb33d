from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from hf_seg.data.cache import prepare_splits
from hf_seg.data.crops import MOST, SCALES, RandomCrops, StoredPictures, draw_crop
from hf_seg.data.prepared import UncachedPairs
from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.data.transforms import build_transforms
from hf_seg.recipe.keys import DataRecipe

SPEC = DatasetSpec(
    name="blocks",
    class_names=("a", "b", "c"),
    palette=((0, 0, 0), (0, 255, 0), (0, 0, 255)),
    label_table=build_label_table({0: 0, 1: 1, 2: 2, 255: 255}),
)
SIZES = [(100, 80), (64, 64), (40, 150), (90, 120)]  # height and width


@pytest.fixture
def splits(tmp_path):
    def save(number, size):
        mask = np.kron(np.random.default_rng(number).integers(0, 3, (5, 5)), np.ones((32, 32)))[: size[0], : size[1]]
        # the mask can be read off the picture, in every window of it
        PILImage.fromarray((mask * 100).astype(np.uint8)).convert("RGB").save(tmp_path / f"{number}.png")
        PILImage.fromarray(mask.astype(np.uint8)).save(tmp_path / f"{number}_mask.png")
        return str(tmp_path / f"{number}.png"), str(tmp_path / f"{number}_mask.png")

    images, masks = zip(*(save(number, size) for number, size in enumerate(SIZES)), strict=True)
    table = Dataset.from_dict(
        {"image": list(images), "mask": list(masks)}, Features({"image": Image(mode="RGB"), "mask": Image()})
    )
    return DatasetDict({"train": table, "validation": table, "test": table})


def prepare(splits, cache, **keys):
    data = DataRecipe(name="folder", root=".", image_size=[64, 96], resize="crop", **keys)
    return prepare_splits(splits, SPEC, build_transforms(data, SPEC), cache)


def test_the_cache_holds_what_is_decoded(splits, tmp_path):
    kept = prepare(splits, str(tmp_path / "cache"))
    assert isinstance(kept["train"], RandomCrops) and isinstance(kept["test"], StoredPictures)
    assert isinstance(kept["train"].pictures, StoredPictures) and not kept["train"].decodes
    decoded = prepare(splits, False)
    assert isinstance(decoded["train"].pictures, UncachedPairs) and decoded["train"].decodes
    again = prepare(splits, str(tmp_path / "cache"))
    for index, size in enumerate(SIZES):
        pairs = [each["test"].__getitems__([index]) for each in (kept, decoded, again)]
        assert pairs[0]["labels"].shape == (1, *size) and pairs[0]["pixel_values"].shape == (1, 3, *size)
        assert all(torch.equal(pairs[0][key], pair[key]) for pair in pairs for key in pair)
    for each in (kept, decoded):  # whole pictures, as classes are weighted by them
        counts = each["train"].count_labels()
        assert counts.shape == (256,) and counts.sum() == sum(height * width for height, width in SIZES)
        assert np.array_equal(counts, kept["train"].count_labels())
    rows = [[3, 0, 2], [1]]
    crops = [[each["train"].__getitems__(part) for part in rows] for each in (kept, decoded)]
    for ours, theirs in zip(*crops, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_damaged_cache_is_made_again(splits, tmp_path, caplog):
    prepare(splits, str(tmp_path / "cache"))
    for folder in (tmp_path / "cache").glob("blocks-test-own-*"):
        if folder.is_dir():
            np.save(folder / "sizes.npy", np.array(SIZES[:3]))
    test = prepare(splits, str(tmp_path / "cache"))["test"]
    assert "the cache is damaged" in caplog.text
    assert [len(test.__getitems__([index])["labels"][0]) for index in range(4)] == [100, 64, 40, 90]


def test_windows_follow_from_seed_epoch_and_picture(splits):
    def drawn(seed, epoch, indices=(0, 1, 2, 3)):
        pairs = prepare(splits, False)["train"]
        pairs.seed = seed
        pairs.set_epoch(epoch)
        return pairs.__getitems__(list(indices))

    first = drawn(0, 0)
    assert first["pixel_values"].shape == (4, 3, 64, 96) and first["labels"].shape == (4, 64, 96)
    assert first["pixel_values"].dtype == first["labels"].dtype == torch.uint8
    assert torch.equal(first["pixel_values"], drawn(0, 0)["pixel_values"])
    assert torch.equal(first["pixel_values"][2], drawn(0, 0, [2])["pixel_values"][0])  # in whatever batch
    assert not torch.equal(first["pixel_values"], drawn(1, 0)["pixel_values"])
    assert not torch.equal(first["pixel_values"], drawn(0, 1)["pixel_values"])


def test_image_and_mask_are_cut_as_one(splits):
    pairs = prepare(splits, False)["train"]
    for epoch in range(10):
        pairs.set_epoch(epoch)
        batch = pairs.__getitems__([0, 1, 2, 3])
        counted = batch["labels"] != 255
        assert counted.any(dim=(1, 2)).all()
        assert not batch["pixel_values"][~counted[:, None].expand(-1, 3, -1, -1)].any()
        shown = (batch["pixel_values"][:, 0].float() / 100).round()
        # but for the blocks' edges, which are blurred where the picture is enlarged
        assert (shown == batch["labels"])[counted].float().mean() > 0.9


def test_scales_and_places_are_spread():
    labels, random = np.arange(400 * 600).reshape(400, 600) % 3, np.random.default_rng(0)
    drawn = [draw_crop(labels.astype(np.uint8), (64, 64), 255, random) for _ in range(2000)]
    scales = np.array([64 / (box[2] - box[0]) for box, _ in drawn])
    assert all(inner == (64, 64) for _, inner in drawn)
    assert scales.min() == pytest.approx(SCALES[0], abs=0.02) and scales.max() == pytest.approx(SCALES[1], abs=0.04)
    assert scales.mean() == pytest.approx(sum(SCALES) / 2, abs=0.03)
    tops, bottoms = ([box[side] for box, _ in drawn] for side in (0, 2))
    assert min(tops) == 0 and max(bottoms) == 400


def test_a_window_of_one_class_is_drawn_again():
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 100:] = 1
    labels[:50, :20] = 255
    random = np.random.default_rng(0)

    def share():
        (top, left, bottom, right), _ = draw_crop(labels, (64, 64), 255, random)
        counts = Counter(labels[top:bottom, left:right].ravel().tolist())
        counts.pop(255, None)
        return max(counts.values()) / counts.total()

    # of windows that are drawn once, a quarter would be so
    assert np.mean([share() < MOST for _ in range(200)]) > 0.8


def test_a_small_disk_is_not_filled(splits, tmp_path, monkeypatch, caplog):
    from hf_seg.data import cache

    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "home")
    pixels = sum(height * width for height, width in SIZES)
    needed = 3 * 4 * pixels  # three splits of the same pictures, RGB and a label
    for free, decodes in ((2 * needed - 1, True), (2 * needed, False)):
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert prepare(splits, "auto")["train"].decodes is decodes
    (line,) = [line for line in caplog.messages if "more than half of the" in line]
    assert "Otherwise the pictures are decoded again each epoch." in line
