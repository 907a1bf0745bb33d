"""`data.resize`: runs that letterbox or crop, from training to prediction, pipeline, ONNX and the card."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_seg.data.geometry import fitted_size
from hf_seg.data.sources.synthetic import generate
from hf_seg.data.sources.synthetic.street import draw_street
from hf_seg.inference.export import export_model
from hf_seg.inference.predict import predict
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.scoring.confusion import class_iou, confusion_matrix

SIZES = [(96, 64), (64, 96), (120, 80), (80, 140)]  # width and height
EVERY = [(arch, resize) for arch in ("segformer", "fcn") for resize in ("letterbox", "crop")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 24 pets of several sizes, with the split in folders."""
    folder = tmp_path_factory.mktemp("pets")
    for split, columns in generate("synthetic_pet", {"train": 12, "validation": 4, "test": 8}).items():
        for kind, pictures in columns.items():
            (folder / split / f"{kind}s").mkdir(parents=True)
            for number, encoded in enumerate(pictures):
                picture = Image.open(io.BytesIO(encoded["bytes"])).resize(SIZES[number % 4], Image.Resampling.NEAREST)
                picture.save(folder / split / f"{kind}s" / f"{number}.png")
    classes = [{"name": name, "id": number} for number, name in enumerate(("foreground", "background", "boundary"), 1)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    return folder


def mean_iou_of_pipeline(folder, split):
    """By transformers' own pipeline, which knows nothing of padding and windows."""
    segment, confusion = pipeline("image-segmentation", model=str(folder)), torch.zeros(3, 3, dtype=torch.int64)
    for path in sorted((split / "images").iterdir()):
        labels = torch.from_numpy(np.array(Image.open(split / "masks" / path.name)) - 1)
        ids = torch.zeros_like(labels)
        for found in segment(str(path)):
            ids[torch.from_numpy(np.array(found["mask"])) > 0] = segment.model.config.label2id[found["label"]]
        confusion += confusion_matrix(ids, labels, 3, 255)
    return np.nanmean(class_iou(confusion.numpy()))


@pytest.mark.parametrize(("arch", "resize"), EVERY)
def test_scores_are_those_of_predict(arch, resize, pictures, write_recipe, run, tmp_path):
    recipe = write_recipe(
        "framed",
        arch=arch,
        data={
            "name": "folder",
            "root": str(pictures),
            "image_size": [64, 96],
            "resize": resize,
            "augment": "standard",
            "normalize": "imagenet",
            "max_train_samples": None,
            "cache": str(tmp_path / "cache"),
        },
        training={"num_train_epochs": 2, "global_train_batch_size": 4, "learning_rate": 3e-3},
    )
    status, _, err = run(recipe)
    assert status == 0, err
    folder = Path("runs/framed")
    results = json.loads((folder / "results.json").read_text())
    test, segmenter = results["test"], load_segmenter(folder)
    assert segmenter.framing.resize == resize and segmenter.framing.size == (64, 96)
    native, confusion = test["native"], torch.zeros(3, 3, dtype=torch.int64)
    for prediction in predict(segmenter, [pictures / "test" / "images"], batch_size=3):
        labels = np.array(Image.open(pictures / "test" / "masks" / prediction.path.name)) - 1
        assert prediction.mask.shape == labels.shape
        confusion += confusion_matrix(torch.from_numpy(prediction.mask), torch.from_numpy(labels), 3, 255)
    assert np.nanmean(class_iou(confusion.numpy())) == pytest.approx(native["mean_iou"], abs=2e-3)
    pixels = sum(Image.open(path).size[0] * Image.open(path).size[1] for path in (pictures / "test/masks").iterdir())
    assert confusion.sum() == pixels
    if resize == "crop":
        assert np.array(test["confusion_matrix"]).sum() == pixels and native["mean_iou"] == test["mean_iou"]
    else:  # the padding does not count
        assert np.array(test["confusion_matrix"]).sum() == sum(
            math.prod(fitted_size(size[::-1], (64, 96))) for size in SIZES * 2
        )
    stock = native["pipeline"]
    assert stock["pictures"] == 8 and stock["mean_iou"] == pytest.approx(native["mean_iou"], abs=1e-9)
    assert stock["pipeline_mean_iou"] == pytest.approx(mean_iou_of_pipeline(folder, pictures / "test"), abs=2e-3)
    card = (folder / "README.md").read_text()
    assert f"is {stock['mean_iou']:.4f} with hf_seg and {stock['pipeline_mean_iou']:.4f} with `pipeline`" in card
    comparison = export_model(folder, tmp_path / "model.onnx", images=[pictures / "test" / "images"])
    assert comparison.agrees and comparison.images == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_crops(workers, pictures, write_recipe, run):
    data = {"name": "folder", "root": str(pictures), "image_size": 32, "resize": "crop", "max_train_samples": None}
    training = {"num_train_epochs": 3, "global_train_batch_size": 4, "dataloader_num_workers": workers}
    for name in ("whole", "resumed"):
        assert run(write_recipe(name, data=data, training=training | {"save_total_limit": None}))[0] == 0
    folder = Path("runs/resumed")
    for path in folder.iterdir():  # as after a crash in the second epoch
        if path.name in ("checkpoint-6", "checkpoint-9"):
            shutil.rmtree(path)
        elif path.is_file() and path.name != "run.json":
            path.unlink()
    assert run("recipes/resumed.json")[0] == 0
    whole, resumed = (Path(f"runs/{name}/model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    history = json.loads(Path("runs/resumed/results.json").read_text())["train"]["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 3 and len(set(losses)) == 3


def test_one_picture_at_a_time(write_recipe, run):
    recipe = write_recipe("a", data={"resize": "crop"}, training={"per_device_eval_batch_size": 4})
    status, _, err = run(recipe)
    assert status == 2
    assert 'training.per_device_eval_batch_size: is 4, but with data.resize "crop" pictures keep their sizes' in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cityscapes-segformer-b0-1024", "cityscapes-fcn-1024"])
def test_the_full_size_recipes_run(name, tmp_path, run, tiny_models):
    # streets that are larger than a window, and a tiny model; everything else is as shipped
    for number, (split, city) in enumerate([*(("train", city) for city in "abcd"), ("val", "e")]):
        image, mask = draw_street(np.random.default_rng(number))
        for kind, picture, ending in (("leftImg8bit", image, ""), ("gtFine", mask, "_labelIds")):
            folder = tmp_path / "cityscapes" / kind / split / city
            folder.mkdir(parents=True)
            enlarged = picture.resize((1280, 640), Image.Resampling.NEAREST)
            enlarged.save(folder / f"{city}_000000_000000_{kind}{ending}.png", compress_level=1)
    arch = "fcn" if "fcn" in name else "segformer"
    model = {"init": "scratch", "encoder_weights": "null"} | tiny_models[arch]
    overrides = [
        f"--model.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in model.items()
    ]
    status, _, err = run(
        *(name, *overrides, "--data.root", tmp_path / "cityscapes", "--data.cache", tmp_path / "cache"),
        *("--training.num_train_epochs", 1, "--training.global_train_batch_size", 1, "--training.bf16", "false"),
        *("--training.eval_every_epochs", 1, "--training.report_to", "none", "--data.max_validation_samples", 1),
    )
    assert status == 0, err
    results = json.loads((Path("runs") / name / "results.json").read_text())
    test = results["test"]
    assert np.array(test["confusion_matrix"]).sum() > 0.8 * 1280 * 640  # the whole picture, less what is void
    assert test["native"]["mean_iou"] == test["mean_iou"] and test["native"]["ceilings"] == {}
    assert results["data"]["stored_size"]["test"] == [1280, 640] and results["recipe"]["data"]["resize"] == "crop"


@pytest.mark.slow
def test_two_ranks_score_pictures_of_several_sizes(pictures, write_recipe, launch, tmp_path):
    data = {"name": "folder", "root": str(pictures), "image_size": 64, "resize": "crop", "max_train_samples": None}
    recipe = write_recipe("ranks", data=data, training={"num_train_epochs": 1, "global_train_batch_size": 4})
    launch(recipe, processes=2)
    test = json.loads((tmp_path / "runs" / "ranks" / "results.json").read_text())["test"]
    pixels = sum(math.prod(size) for size in SIZES * 2)
    assert np.array(test["confusion_matrix"]).sum() == pixels  # what is padded on a rank does not count
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for prediction in predict(tmp_path / "runs" / "ranks", [pictures / "test" / "images"]):
        labels = np.array(Image.open(pictures / "test" / "masks" / prediction.path.name)) - 1
        confusion += confusion_matrix(torch.from_numpy(prediction.mask), torch.from_numpy(labels), 3, 255)
    assert np.nanmean(class_iou(confusion.numpy())) == pytest.approx(test["mean_iou"], abs=2e-3)
