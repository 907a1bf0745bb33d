import io
import itertools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_seg.data import cache, load_spec, load_splits
from hf_seg.data.cache import find_obstacle, prepare_splits
from hf_seg.data.prepared import UncachedPairs
from hf_seg.data.transforms import build_transforms, collate
from hf_seg.problem import DataError

PREPARE = Path(__file__).parent / "prepare.py"


def prepare(data, folder):
    spec = load_spec(data)
    return prepare_splits(load_splits(data), spec, build_transforms(data, spec), folder)


def rows(prepared, indices):
    return prepared.__getitems__(indices)


def folders(place):
    return sorted(path.name for path in place.iterdir() if path.is_dir())


@pytest.fixture
def pets(pet_folder, recipe):
    return recipe("oxford_pet", pet_folder)


@pytest.fixture
def count_decoded(monkeypatch):
    decoded = []
    decode = cache.decode_pair
    monkeypatch.setattr(cache, "decode_pair", lambda pair, *rest: decoded.append(pair.name) or decode(pair, *rest))
    return decoded


@pytest.mark.parametrize("augment", ["none", "flip", "standard", "strong"])
@pytest.mark.parametrize("name", ["oxford_pet", "cityscapes", "synthetic_pet"])
def test_cached_and_uncached_pixels_are_equal(name, augment, recipe, request, tmp_path):
    folder = {"oxford_pet": "pet_folder", "cityscapes": "cityscapes_folder"}.get(name)
    limits = {"max_train_samples": 9, "max_validation_samples": 2, "max_test_samples": 2}
    data = recipe(name, request.getfixturevalue(folder) if folder else None, augment=augment, **limits)
    transforms = build_transforms(data, load_spec(data))
    cached, uncached = prepare(data, str(tmp_path / "cache")), prepare(data, False)
    counts = cached["train"].count_labels()
    assert counts.tolist() == uncached["train"].count_labels().tolist()
    labels = rows(cached["train"], list(range(len(cached["train"]))))["labels"]
    assert {label: count for label, count in enumerate(counts.tolist()) if count} == dict(
        zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True)
    )
    for split, transform in transforms.items():
        assert len(cached[split]) == len(uncached[split])
        order = list(range(len(cached[split])))[::-1]
        torch.manual_seed(0)
        ours = transform.finish(rows(cached[split], order))
        torch.manual_seed(0)
        theirs = transform.finish(rows(uncached[split], order))
        assert all(torch.equal(ours[key], theirs[key]) for key in ("pixel_values", "labels"))
        # and by themselves, as a user looks at one
        one, other = cached[split][0], uncached[split][0]
        assert all(torch.equal(one[key], other[key]) for key in ("pixel_values", "labels"))


def test_a_cache_is_made_once(pets, pet_folder, tmp_path, count_decoded):
    first = prepare(pets, str(tmp_path / "cache"))
    assert len(count_decoded) == 23
    second = prepare(pets, str(tmp_path / "cache"))
    assert len(count_decoded) == 23
    assert np.array_equal(first["train"].pixel_values, second["train"].pixel_values)
    assert isinstance(second["train"].pixel_values, np.memmap)
    # another size or augmentation is another cache, of those splits only that it touches
    pets.augment = "standard"
    prepare(pets, str(tmp_path / "cache"))
    assert len(count_decoded) == 23 + 18
    pets.image_size = 32
    prepare(pets, str(tmp_path / "cache"))
    assert len(count_decoded) == 23 + 18 + 23
    # and so is a file of another date
    os.utime(pet_folder / "images" / "Cat_3.jpg", ns=(1, 1))
    prepare(pets, str(tmp_path / "cache"))
    assert count_decoded[64:] == ["test[0]", "test[1]", "test[2]"]


def test_a_bar_is_on_terminals_only_and_leaves_nothing(pets, tmp_path, monkeypatch, capsys):
    prepare(pets, str(tmp_path / "first"))
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    prepare(pets, str(tmp_path / "second"))
    shown = terminal.getvalue()
    assert "Preparing oxford_pet train: " in shown and "\n" not in shown and re.search(r"\r +\r$", shown)


def test_where_it_lies(pets, tmp_path):
    prepare(pets, True)
    assert len(folders(tmp_path / "hf_home" / "hf_seg" / "prepared")) == 3
    prepare(pets, False)
    assert prepare(pets, str(tmp_path / "mine"))["test"].folder.parent == tmp_path / "mine"


def test_generated_data_leaves_no_files(recipe, tmp_path):
    few = {"max_train_samples": 3, "max_validation_samples": 1, "max_test_samples": 1}
    prepared = prepare(recipe("synthetic_pet", **few), True)
    assert len(prepared["train"]) == 3 and not (tmp_path / "hf_home").exists()
    assert pickle.loads(pickle.dumps(prepared["train"]))[0]["labels"].shape == (64, 64)


def test_a_bad_pair_stops_it_and_nothing_is_kept(pets, pet_folder, write, tmp_path):
    write(pet_folder / "annotations" / "trimaps" / "Breed_03.png", np.full((8, 12), 7))
    (pet_folder / "images" / "Cat_1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        prepare(pets, str(tmp_path / "cache"))
    message = str(caught.value)
    assert message.startswith("oxford_pet: 2 of 23 image and mask pairs cannot be used:\n")
    assert "Breed_03.png: holds 7 (96 pixels)" in message and "Cat_1.jpg: cannot be decoded" in message
    assert folders(tmp_path / "cache") == [name for name in folders(tmp_path / "cache") if "validation" in name]


def damage_header(folder):
    with open(folder / "labels.npy", "r+b") as file:
        file.write(b"XXXX")


DAMAGES = {
    "cut short": lambda folder: os.truncate(folder / "pixel_values.npy", 5000),
    "empty": lambda folder: os.truncate(folder / "labels.npy", 0),
    "another header": damage_header,
    "gone": lambda folder: (folder / "labels.npy").unlink(),
    "another shape": lambda folder: np.save(folder / "labels.npy", np.zeros((2, 3, 3), np.uint8)),
    "another type": lambda folder: np.save(folder / "labels.npy", np.zeros((3, 64, 64), np.int64)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_made_again(pets, tmp_path, damage, caplog):
    whole = prepare(pets, str(tmp_path / "cache"))["test"]
    expected = np.array(whole.labels)
    damage(whole.folder)
    again = prepare(pets, str(tmp_path / "cache"))["test"]
    assert np.array_equal(again.labels, expected)
    assert f"{whole.folder}: the cache is damaged" in caplog.text and "will be made again" in caplog.text


def test_workers_map_it_anew_and_batches_come_whole(pets, tmp_path):
    train = prepare(pets, str(tmp_path / "cache"))["train"]
    assert len(pickle.dumps(train)) < 1000  # and not the arrays
    batches = list(DataLoader(train, batch_size=8, collate_fn=collate, num_workers=1))
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 2]
    assert torch.equal(batches[1]["pixel_values"], train.__getitems__(range(8, 16))["pixel_values"])


def test_only_the_rows_asked_for_are_read(tmp_path):
    # 4 GB of zeros that take no room: memory would show it if they were read
    (tmp_path / "big").mkdir()
    for name, shape in (("pixel_values", (250_000, 3, 64, 64)), ("labels", (250_000, 64, 64))):
        np.lib.format.open_memmap(tmp_path / "big" / f"{name}.npy", "w+", np.uint8, shape)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom hf_seg.data.prepared import CachedPairs\n"
        "pairs = CachedPairs.open(Path(sys.argv[1]))\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for start in range(0, 250_000, 25_000): pairs.__getitems__(range(start, start + 64))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "big"], text=True, capture_output=True, check=True)
    assert int(out.stdout) < 100_000  # kB


# -- what may go wrong while it is written ---------------------------------------------------------------------------


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, PREPARE, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_killed_in_the_middle(pets, pet_folder, tmp_path):
    with start(pet_folder, tmp_path / "cache", 0.05) as process:
        for _ in itertools.islice(process.stdout, 15):  # three of its parts are written
            pass
        process.send_signal(signal.SIGKILL)
    assert [name for name in folders(tmp_path / "cache") if name.endswith(".partial")]
    prepared = prepare(pets, str(tmp_path / "cache"))
    assert not [name for name in folders(tmp_path / "cache") if name.endswith(".partial")]
    fresh = prepare(pets, str(tmp_path / "fresh"))
    assert all(np.array_equal(prepared[name].pixel_values, fresh[name].pixel_values) for name in fresh)


def test_two_launches_at_once(pet_folder, tmp_path):
    with start(pet_folder, tmp_path / "cache", 0.05) as first, start(pet_folder, tmp_path / "cache", 0.05) as second:
        outputs = [process.communicate()[0].splitlines() for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert outputs[0][-1] == outputs[1][-1] and outputs[0][-1].startswith("made ")
    # what one has decoded, the other reads
    assert sum(line.count("decoding") for lines in outputs for line in lines) == 23
    assert len(folders(tmp_path / "cache")) == 3


def run_on_small_disk(tmp_path, pet_folder, *more):
    """`prepare.py` with a cache folder on a file system of 200 kB; None where this user may not mount one."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=200k none {disk}"
    if shutil.which("unshare") is None or subprocess.run([*unshare, *mount.split()], capture_output=True).returncode:
        return None
    words = [sys.executable, PREPARE, pet_folder, disk / "cache", 0, *more]
    script = f"{mount} && {' '.join(map(str, words))}; status=$?; ls {disk}/cache; exit $status"
    return subprocess.run([*unshare, "sh", "-c", script], text=True, capture_output=True)


@pytest.mark.parametrize("more", [(), ("full",)], ids=["seen before", "in the middle"])
def test_a_full_disk(pet_folder, tmp_path, more):
    process = run_on_small_disk(tmp_path, pet_folder, *more)
    if process is None:
        pytest.skip("mounting a file system is not allowed here")
    assert process.returncode == 1
    message = process.stderr.splitlines()[-1]
    assert message.startswith(
        f"error: {tmp_path / 'disk' / 'cache'}: the train pairs of oxford_pet cannot be stored there"
    )
    assert ("No space left on device" if more else "they take 0.3 MB, but only 0.2 MB are free") in message
    assert ("Free disk space. " if more else "") + "Name another folder in data.cache, or set it to false" in message
    left = [name for name in process.stdout.splitlines() if "decoding" not in name and name]
    assert left and all(name.endswith(".lock") for name in left)


def test_a_folder_that_cannot_be_made(pets, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file")
    assert isinstance(prepare(pets, "auto")["train"], UncachedPairs)
    assert "Otherwise the pictures are decoded again each epoch." in caplog.text
    with pytest.raises(DataError, match="the train pairs of oxford_pet cannot be stored there: .*Not a directory"):
        prepare(pets, str(tmp_path / "file" / "cache"))


def test_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    folder = tmp_path / "not" / "yet"
    half = SimpleNamespace(place=folder / "train", bytes=5 * 10**8)
    assert find_obstacle([half, half], folder, "error") is None and find_obstacle([half], folder, "warning") is None
    for count, level, limit in ((3, "error", "more than"), (2, "warning", "more than half of")):
        found = find_obstacle([half] * count, folder, level)
        assert (found.level, found.code, found.place) == (level, "full-disk", str(folder))
        assert found.what == f"the resized pairs need {count / 2:.1f} GB, {limit} the 1.0 GB free"
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    missing = SimpleNamespace(place=tmp_path / "new" / "train", bytes=0)
    found = find_obstacle([missing], tmp_path / "new", "warning")
    assert (found.level, found.code) == ("warning", "unwritable-folder")
    assert found.what == f"is the folder for the resized pairs, but {tmp_path} is not writable"
    assert found.remedy.endswith("Otherwise the pictures are decoded again each epoch.")
