"""Cityscapes: which files belong to which split, and what the labelIds mean.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016;
https://www.cityscapes-dataset.com.
"""

from __future__ import annotations

from pathlib import Path

from hf_seg.data.sources.download import Archive
from hf_seg.data.spec import IGNORE_INDEX, DatasetSpec, build_label_table
from hf_seg.problem import DataError, Problem

# labelId, name and colour of each of the benchmark's 19 evaluated classes; the position is the class id.
CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
# labelIds are 0 to 33, and -1 (licence plate), which an 8-bit file can only store as 255.
LABEL_TABLE = build_label_table(
    {value: IGNORE_INDEX for value in (*range(34), 255)}
    | {label_id: train_id for train_id, (label_id, _, _) in enumerate(CLASSES)}
)

VALIDATION_CITIES = 3
SPLIT_RULE = (
    "validation is the last three city folders of leftImg8bit/train, train the cities before them (so it needs four), "
    "test the cities of leftImg8bit/val."
)

SPEC = DatasetSpec(
    name="cityscapes",
    class_names=tuple(name for _, name, _ in CLASSES),
    palette=tuple(colour for _, _, colour in CLASSES),
    label_table=LABEL_TABLE,
    title="Cityscapes",
    homepage="https://www.cityscapes-dataset.com",
    terms=(
        "Only for non-commercial purposes such as research. The data must not be passed on, in whole or in part; this "
        "includes pictures that show it."
    ),
    license_name="cityscapes-terms",
    split_rule=SPLIT_RULE,
    official_size="2048×1024 pixels",
    limits=(
        "Test is the official validation set, since the labels of the official test set are not public: the scores "
        "are not those of the benchmark's server.",
        "The data set shows streets from a car's view, by day and in fair weather. A model trained on it is for "
        "research, not for use in a vehicle.",
        "Where a reduced copy of the data was used: label maps that were shrunk by interpolation have wrong ids at "
        "the borders of objects, which limits the scores.",
    ),
)

FOLDER_NAME = "cityscapes"
PARTS = ("leftImg8bit", "gtFine")
SIGN = "gtFine"  # folder by which the data set is recognised
IMAGE_SUFFIXES = ("_leftImg8bit.png", "_leftImg8bit.jpg")
MASK_SUFFIXES = ("_gtFine_labelIds.png",)
Key = tuple[str, str]  # city and name


def _is_wanted(member: str) -> bool:
    """Whether a file in the official archives is needed: images and labelIds of train and val."""
    parts = member.split("/")
    return len(parts) == 4 and parts[1] in ("train", "val") and parts[3].endswith(IMAGE_SUFFIXES + MASK_SUFFIXES)


ARCHIVES = tuple(
    Archive(part=part, file_name=f"{part}_trainvaltest.zip", size=size, wanted=_is_wanted)
    for part, size in zip(PARTS, ("11 GB", "241 MB"), strict=True)
)
HOW_TO_GET = (
    "Cityscapes cannot be downloaded without an account: log in at https://www.cityscapes-dataset.com, download the "
    "packages leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and put both files, or the "
    "folders leftImg8bit and gtFine that they hold, into {folder}; or set data.root to the folder that holds them, or "
    "HF_SEG_DATA to a folder that holds them in cityscapes/."
)


def list_pairs(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """List the (image, labelIds) files of each split, sorted by city and name.

    The last three city folders of the official train set (by name) are validation, its other cities are train. The
    official val set is test, since the labels of the official test set are not public.

    Raises:
        DataError: when an image has no mask, a mask has no image, or an image exists twice.
    """
    official_train = _match(folder, "train")
    held_out = sorted({city for city, _ in official_train})[-VALIDATION_CITIES:]
    return {
        "train": [pair for (city, _), pair in official_train.items() if city not in held_out],
        "validation": [pair for (city, _), pair in official_train.items() if city in held_out],
        "test": list(_match(folder, "val").values()),
    }


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """List all images of train and val that have a mask; other files are ignored."""
    pairs = []
    for split in ("train", "val"):
        images, masks, _ = _find(folder, split)
        pairs += [(images[key], masks[key]) for key in sorted(images.keys() & masks.keys())]
    return pairs


def _match(folder: Path, split: str) -> dict[Key, tuple[Path, Path]]:
    images, masks, twice = _find(folder, split)
    wrong = {path: "there is another image with this name" for path in twice}
    wrong |= {images[key]: "no mask" for key in sorted(images.keys() - masks.keys())}
    wrong |= {masks[key]: "no image" for key in sorted(masks.keys() - images.keys())}
    if wrong:
        remedy = (
            f"Each image leftImg8bit/{split}/CITY/NAME_leftImg8bit.png (or .jpg) needs its mask "
            f"gtFine/{split}/CITY/NAME_gtFine_labelIds.png: add the missing files or remove these."
        )
        kind = {"code": "data-set", "remedy": remedy}
        problems = [Problem(place=str(path), what=what, **kind) for path, what in wrong.items()]
        heading = f"{folder}: {len(wrong)} files of {split} are not pairs of one image and one mask:"
        raise DataError(problems=problems, heading=heading)
    return {key: (images[key], masks[key]) for key in sorted(images)}


def _find(folder: Path, split: str) -> tuple[dict[Key, Path], dict[Key, Path], list[Path]]:
    """Find images, masks, and images that exist a second time with another suffix."""
    images: dict[Key, Path] = {}
    masks: dict[Key, Path] = {}
    twice = []
    for part, suffixes, found in ((PARTS[0], IMAGE_SUFFIXES, images), (PARTS[1], MASK_SUFFIXES, masks)):
        for path in sorted((folder / part / split).glob("*/[!.]*")):  # not ._*, which macOS writes to other disks
            for suffix in suffixes:
                if path.name.endswith(suffix):
                    key = (path.parent.name, path.name.removesuffix(suffix))
                    twice += [path] if key in found else []
                    found[key] = path
    return images, masks, twice
