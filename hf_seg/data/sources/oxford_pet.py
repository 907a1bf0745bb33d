"""Oxford-IIIT Pet: which files belong to which split, and what the trimap values mean.

Source: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012; https://www.robots.ox.ac.uk/~vgg/data/pets/.
"""

from __future__ import annotations

import os
from pathlib import Path

from hf_seg.data.sources.download import Archive
from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.problem import DataError, Problem

VALIDATION_EVERY = 10
SPLIT_RULE = (
    "train and validation are the names in annotations/trainval.txt (every tenth is validation, so it needs ten), "
    "test those in annotations/test.txt."
)

SPEC = DatasetSpec(
    name="oxford_pet",
    class_names=("foreground", "background", "boundary"),
    palette=((230, 97, 1), (58, 76, 110), (253, 219, 120)),
    label_table=build_label_table({1: 0, 2: 1, 3: 2}),
    title="Oxford-IIIT Pet",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    terms=(
        "The README of the annotations says that they are for research purposes only and that each photograph stays "
        "under the terms of the web site it came from; third parties state CC BY-SA 4.0 for the data set."
    ),
    license_name="oxford-iiit-pet-terms",
    split_rule=SPLIT_RULE,
    official_size="various sizes, mostly about 500 pixels on the longer side",
    limits=(
        "The data set shows cats and dogs, mostly one a picture. Foreground is the animal, of whatever species and "
        "breed; boundary is a band around its outline.",
    ),
)

FOLDER_NAME = "oxford-iiit-pet"
PARTS = ("images", "annotations")
SIGN = "annotations/trimaps"  # folder by which the data set is recognised
ARCHIVES = tuple(
    Archive(part=part, file_name=f"{part}.tar.gz", url=f"{SPEC.homepage}data/{part}.tar.gz", md5=md5, size=size)
    for part, md5, size in (
        ("images", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "0.8 GB"),
        ("annotations", "95a8c909bbe2e81eed6a22bccdf3f68f", "19 MB"),
    )
)
HOW_TO_GET = ""  # hf_seg downloads it


def list_pairs(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """List the (image, trimap) files of each split.

    The 10th, 20th, 30th … name of the official trainval list is validation, its other names are train; the official
    test list is test. Only the listed names are used, in list order, so other files in the folders do no harm.

    Raises:
        DataError: when a list or a listed file is missing.
    """
    trainval = _read_list(folder / "annotations" / "trainval.txt")
    names = {
        "train": [name for line, name in enumerate(trainval, start=1) if line % VALIDATION_EVERY != 0],
        "validation": trainval[VALIDATION_EVERY - 1 :: VALIDATION_EVERY],
        "test": _read_list(folder / "annotations" / "test.txt"),
    }
    images, trimaps = folder / "images", folder / "annotations" / "trimaps"
    pairs = {split: [(images / f"{n}.jpg", trimaps / f"{n}.png") for n in listed] for split, listed in names.items()}
    # Two directory listings instead of a stat for each of 14,698 files: this must stay quick on a network disk.
    present = {place: set(os.listdir(place)) if place.is_dir() else set() for place in (images, trimaps)}
    files = [path for listed in pairs.values() for pair in listed for path in pair]
    if missing := [path for path in files if path.name not in present[path.parent]]:
        remedy = (
            "Unpack the official images.tar.gz and annotations.tar.gz there again, or remove the lines from the lists."
        )
        kind = {"code": "data-set", "what": "is listed in annotations, but missing", "remedy": remedy}
        heading = f"{folder}: {len(missing)} files listed in annotations/trainval.txt or test.txt are missing:"
        raise DataError(problems=[Problem(place=str(path), **kind) for path in missing], heading=heading)
    return pairs


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """List all images that have a trimap, independently of the split lists."""
    images = {path.stem: path for path in (folder / "images").glob("[!.]*.jpg")}
    trimaps = {path.stem: path for path in (folder / "annotations" / "trimaps").glob("[!.]*.png")}
    return [(images[name], trimaps[name]) for name in sorted(images.keys() & trimaps.keys())]


def _read_list(path: Path) -> list[str]:
    """Return the names in a split list: the first word of each line that is neither blank nor a `#` comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        remedy = "It belongs to the official annotations.tar.gz: unpack that again."
        raise DataError(path, "is missing", remedy) from None
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
