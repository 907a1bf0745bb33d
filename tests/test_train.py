"""Whole runs through `train.main`: what they leave behind, where their encoders come from, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from own_folders import write_folder
from PIL import Image
from records import made_up
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForImageClassification

from hf_seg.compare import compare
from hf_seg.files import write_json
from hf_seg.models import FCNForSemanticSegmentation
from hf_seg.problem import RecipeError
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import TrainingRecipe
from hf_seg.runs.folder import Run, start_run
from hf_seg.runs.record import PER_IMAGE, ROC, SAMPLES, load_arrays
from hf_seg.scoring.confusion import mean_iou
from hf_seg.training.arguments import per_device_batch_size


def results_of(name):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(Path("runs", name, "results.json").read_text(), parse_constant=refuse)


PREDICT = """
import json, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_seg":
            raise AssertionError("hf_seg was imported")
sys.meta_path.insert(0, Forbidden())
from PIL import Image
from transformers import pipeline
folder, trust = sys.argv[1], sys.argv[2] == "trust"
segment = pipeline("image-segmentation", model=folder, trust_remote_code=trust)
masks = segment(Image.open(sys.argv[3]))
print(json.dumps([[mask["label"], mask["mask"].size] for mask in masks]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_a_run_from_recipe_to_pipeline(write_recipe, write_mean_iou, run, tmp_path, arch):
    recipe = write_recipe(
        "whole",
        arch=arch,
        data={"name": "synthetic_cityscapes"},
        training={
            "num_train_epochs": 3,
            "eval_every_epochs": 2,
        },
    )
    status, out, err = run(recipe, "--mean_iou_script", write_mean_iou(tmp_path / "mean_iou.py"))
    assert status == 0
    assert "it/s" not in err and "{" not in out  # no bars, which transformers draws for each file; no raw numbers
    assert "whole: encoder: " in out and "fresh tensors (random initialisation)" in out and "| whole " in out

    results = results_of("whole")
    assert results["status"] == "finished" and results["recipe"]["name"] == "whole"
    assert results["recipe"]["training"]["num_train_epochs"] == 3
    assert results["model"]["arch"] == arch and results["model"]["parameters"] > 10_000
    assert results["model"]["init"]["encoder"]["tensors_loaded"] == 0
    assert results["data"]["counts"] == {"train": 32, "validation": 10, "test": 10}
    assert len(results["data"]["fingerprint"]) == 16
    assert results["train"]["epochs"] == 3 and results["train"]["steps"] == 12 and results["train"]["seed"] == 0
    assert results["train"]["world_size"] == 1 and results["train"]["precision"] == "fp32"
    assert results["train"]["seconds"] > 0 and results["train"]["images_per_second"] > 0
    # validation after every second epoch, and after the last
    validated = [entry["epoch"] for entry in results["train"]["history"] if "eval_loss" in entry]
    assert validated == [2, 3]
    # the exponential schedule, a step an epoch
    rates = [entry["learning_rate"] for entry in results["train"]["history"] if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3, 1e-3 * 0.98, 1e-3 * 0.98**2])
    # what is saved and scored is the best checkpoint by validation mIoU, and its optimiser was AMSGrad
    best = Path(f"runs/whole/checkpoint-{results['train']['best_step']}")
    assert Path("runs/whole/model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    on_validation = [entry["eval_mean_iou"] for entry in results["train"]["history"] if "eval_mean_iou" in entry]
    assert results["validation"]["mean_iou"] == max(on_validation)
    optimizer = torch.load(best / "optimizer.pt", weights_only=True)
    assert optimizer["param_groups"][0]["amsgrad"] is True and "max_exp_avg_sq" in optimizer["state"][0]
    for split in ("validation", "test"):
        scores = results[split]
        matrix = np.array(scores["confusion_matrix"])
        assert matrix.shape == (19, 19)
        iou = {
            name: matrix[i, i] / union
            for i, name in enumerate(scores["roc_auc"] if "roc_auc" in scores else results["test"]["roc_auc"])
            if (union := matrix[i].sum() + matrix[:, i].sum() - matrix[i, i])
        }
        assert scores["per_category_iou"] == pytest.approx(iou)
        assert scores["mean_iou"] == pytest.approx(np.mean(list(iou.values())))
        assert scores["overall_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
        assert {"loss", "mean_accuracy", "per_category_accuracy"} <= scores.keys()
        dice = {name: 2 * value / (1 + value) for name, value in iou.items()}
        assert scores["per_category_dice"] == pytest.approx(dice)
        assert scores["mean_dice"] == pytest.approx(np.mean(list(dice.values())))
        assert scores["per_category_precision"].keys() == iou.keys() and 0 < scores["mean_precision"] < 1
        assert 0 < scores["frequency_weighted_iou"] < scores["overall_accuracy"]
    native = results["test"]["native"]
    assert native["mean_iou"] == pytest.approx(results["test"]["mean_iou"], abs=0.02)
    ceilings = [native["ceilings"][size] for size in ("64", "32", "16", "8")]
    assert 1 > ceilings[0] > ceilings[1] > ceilings[2] > ceilings[3] > native["mean_iou"]
    outlines = results["test"]["boundary_iou"]
    assert outlines["distance"] == 2
    assert outlines["mean"] == pytest.approx(np.mean([*outlines["per_category"].values()]))
    kept = load_arrays(Path("runs/whole") / PER_IMAGE)
    per_image = kept["confusion"]
    assert mean_iou(kept["native"].sum(axis=0)) == pytest.approx(native["mean_iou"], abs=1e-12)
    curves = load_arrays(Path("runs/whole") / ROC)
    for index, area in enumerate(results["test"]["roc_auc"].values()):
        drawn = np.trapezoid(curves["tpr"][index], curves["fpr"][index])
        assert np.isnan(drawn) if area is None else drawn == pytest.approx(area, abs=1e-5)
    samples = load_arrays(Path("runs/whole") / SAMPLES)
    assert {name: array.shape for name, array in samples.items()} == {
        "pixel_values": (4, 3, 64, 64),
        "labels": (4, 64, 64),
        "predictions": (4, 64, 64),
        "palette": (19, 3),
    }
    assert samples["pixel_values"].max() > 128 and samples["predictions"].max() < 19
    assert per_image.shape == (10, 19, 19) and per_image.sum(axis=0).tolist() == results["test"]["confusion_matrix"]
    check = results["test"]["cross_check"]
    assert check["available"] is True and check["largest_difference"] < 1e-9
    assert check["mean_iou"] == pytest.approx(results["test"]["mean_iou"], abs=1e-9)

    folder = Path("runs/whole")
    assert json.loads((folder / "run.json").read_text())["recipe"] == {
        key: value for key, value in results["recipe"].items() if key != "name"
    }
    for plot in ("curves", "confusion", "roc", "samples"):
        assert Image.open(folder / "plots" / f"{plot}.png").width == 1200

    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 100, 3), dtype=np.uint8)).save(photograph)
    predicted = subprocess.run(
        [sys.executable, "-c", PREDICT, folder, "trust" if arch == "fcn" else "plain", photograph],
        text=True,
        capture_output=True,
    )
    assert predicted.returncode == 0, predicted.stderr
    masks = json.loads(predicted.stdout.splitlines()[-1])
    assert masks and all(size == [100, 75] for _, size in masks)
    assert {label for label, _ in masks} <= set(results["test"]["roc_auc"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer", "smp"])
def test_encoder_of_another_recipe_which_is_trained_first(write_recipe, run, arch):
    write_recipe("city", arch=arch, data={"name": "synthetic_cityscapes"}, training={"num_train_epochs": 1})
    pet = write_recipe(
        "pet",
        arch=arch,
        model={"init": "checkpoint", "encoder_weights": "city", "freeze_encoder": True},
        training={"num_train_epochs": 1},
    )
    status, out, _ = run(pet)
    assert status == 0 and out.index("city: encoder") < out.index("pet: encoder")
    plan = ["2 runs, in this order:", "city: new, 4 steps", "  for the encoder of pet; it is trained in full, and ov"]
    assert out.startswith("\n".join(plan)) and out.splitlines()[3] == "pet: new, 4 steps"
    init = results_of("pet")["model"]["init"]
    assert init["init"] == "checkpoint" and init["frozen"] is True
    assert init["encoder"]["source"] == "city" and init["encoder"]["tensors_fresh"] == 0
    assert init["head"] == {"source": "fresh", "tensors_fresh": init["head"]["tensors_fresh"]}
    # the encoder is frozen, so the trained run still has that of the other one, batch-norm statistics included
    city, pet = (load_file(f"runs/{name}/model.safetensors") for name in ("city", "pet"))
    prefix = "segformer." if arch == "segformer" else "encoder."
    encoder = [name for name in city if name.startswith(prefix)]
    assert len(encoder) == init["encoder"]["tensors_loaded"] > 0
    assert all(torch.equal(city[name], pet[name]) for name in encoder)
    heads = city.keys() - set(encoder)
    assert heads and not any(
        city[n].shape == pet[n].shape and torch.equal(city[n], pet[n]) for n in heads if n.endswith("weight")
    )

    # once more: both are finished, nothing is trained
    status, out, _ = run("recipes/pet.json")
    assert status == 0 and "city: finished" in out and "pet: finished" in out


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_imagenet_encoder_from_a_local_file_in_the_format_of_the_hub(write_recipe, run, tmp_path, tiny_models, arch):
    torch.manual_seed(1)
    weights = tmp_path / "imagenet"
    weights.mkdir()
    if arch == "fcn":
        source = timm.create_model(tiny_models["fcn"]["encoder"], num_classes=1000)
        save_file(source.state_dict(), weights / "model.safetensors")
        expected = source.state_dict()["conv1.0.weight"]
    else:
        source = SegformerForImageClassification(
            SegformerConfig(num_labels=1000, **tiny_models["segformer"]["config"])
        )
        source.save_pretrained(weights)
        expected = source.segformer.state_dict()
    recipe = write_recipe(
        "finetune",
        arch=arch,
        model={"init": "imagenet", "encoder_weights": str(weights / "model.safetensors"), "freeze_encoder": True},
        training={"num_train_epochs": 1},
    )
    status, out, _ = run(recipe)
    assert status == 0 and f"tensors from {weights / 'model.safetensors'} (sha256 " in out
    init = results_of("finetune")["model"]["init"]
    assert init["encoder"]["tensors_loaded"] > 0 and init["encoder"]["tensors_fresh"] == 0
    if arch == "fcn":
        model = FCNForSemanticSegmentation.from_pretrained("runs/finetune")
        assert torch.equal(model.encoder.state_dict()["conv1.0.weight"], expected)
    else:
        ours = load_file("runs/finetune/model.safetensors")
        hub = load_file(weights / "model.safetensors")
        encoder = [name for name in hub if name.startswith("segformer.")]
        assert encoder and all(torch.equal(ours[name], hub[name]) for name in encoder)
        assert expected


def write_pet(root: Path, count: int = 20) -> Path:
    """A tiny data set in the layout of Oxford-IIIT Pet."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    names = [f"cat_{index}" for index in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(rng.integers(1, 4, (40, 50), dtype=np.uint8)).save(
            root / "annotations" / "trimaps" / f"{name}.png"
        )
    for split, part in (("trainval", names[:15]), ("test", names[15:])):
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in part))
    return root


def break_image(root):
    path = root / "images" / "cat_3.jpg"
    path.write_bytes(path.read_bytes()[:300])


def break_size(root):
    Image.new("L", (41, 40), 1).save(root / "annotations" / "trimaps" / "cat_4.png")


def break_label(root):
    Image.new("L", (50, 40), 7).save(root / "annotations" / "trimaps" / "cat_5.png")


def empty_split(root):
    (root / "annotations" / "test.txt").write_text("")


def remove_file(root):
    (root / "images" / "cat_6.jpg").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_image, ["cat_3.jpg: cannot be decoded", "Get the undecodable files again"]),
        (break_size, ["cat_4.jpg: the image is 50x40 but the mask is 41x40", "must have the same width and height"]),
        (break_label, ["cat_5.png: holds 7 (2000 pixels)", "may hold 1, 2, 3"]),
        (empty_split, ["the test split of oxford_pet is empty", "annotations/test.txt"]),
        (remove_file, ["images/cat_6.jpg", "are missing"]),
    ],
)
def test_bad_data_is_refused_before_training(write_recipe, run, tmp_path, monkeypatch, damage, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    root = write_pet(tmp_path / "pets")
    damage(root)
    good = write_recipe("good")
    bad = write_recipe(
        "bad",
        data={
            "name": "oxford_pet",
            "root": str(root),
            "max_train_samples": None,
            "max_validation_samples": None,
            "max_test_samples": None,
        },
    )
    status, _, err = run(good, bad)
    assert status == 2 and "\nerror: " in f"\n{err}"
    for word in words:
        assert word in err
    assert not Path("runs").exists()  # the good recipe of the launch was not started either


def test_missing_data_says_where_to_put_it(write_recipe, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEG_DATA", str(tmp_path))
    pet = write_recipe("pet", data={"name": "oxford_pet"})
    status, _, err = run(pet)
    assert status == 2 and "Oxford-IIIT Pet is missing" in err and str(tmp_path / "oxford-iiit-pet") in err
    city = write_recipe("city", data={"name": "cityscapes"})
    status, _, err = run(city)
    assert status == 2 and "https://www.cityscapes-dataset.com" in err and str(tmp_path / "cityscapes") in err


def test_weights_out_of_reach(write_recipe, run):
    recipe = write_recipe("finetune", arch="segformer", model={"init": "imagenet", "config": {}})
    status, _, err = run(recipe)
    assert status == 2
    assert "model.encoder_weights: nvidia/mit-b0" in err and "cannot be reached" in err and "name a local file" in err


def test_checkpoint_of_another_architecture(write_recipe, run):
    write_recipe("city", arch="fcn")
    recipe = write_recipe("pet", arch="segformer", model={"init": "checkpoint", "encoder_weights": "city"})
    status, _, err = run(recipe)
    assert status == 2 and '"city" is a checkpoint of another architecture' in err


def test_all_problems_of_all_recipes_in_one_error(write_recipe, run, tmp_path):
    wrong = write_recipe("wrong", training={"learning_rat": 1, "num_train_epochs": "3"})
    broken = tmp_path / "broken.json"
    broken.write_text('{"model": ')
    status, _, err = run(wrong, broken, "--training.seeed", "3")
    assert status == 2
    assert "training.learning_rat: unknown key" in err and 'did you mean "learning_rate"?' in err
    assert "training.num_train_epochs: must be" in err and "without quotes" in err
    assert f"{broken}: is not JSON" in err and 'did you mean "seed"?' in err


def test_global_batch_that_does_not_divide():
    training = TrainingRecipe(global_train_batch_size=8)
    assert per_device_batch_size(training, 2) == 4
    with pytest.raises(
        RecipeError, match="8 cannot be divided by 3 processes × 1 accumulation steps; numbers of proce"
    ):
        per_device_batch_size(training, 3)
    training.gradient_accumulation_steps = 3
    with pytest.raises(RecipeError, match="gradient_accumulation_steps that work: 1, 2, 4$"):
        per_device_batch_size(training, 2)


def test_folder_of_another_recipe_or_of_something_else(write_recipe, run):
    recipe = write_recipe("mine", training={"num_train_epochs": 1})
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/thesis.txt").write_text("years of work")
    status, _, err = run(recipe, "--overwrite")
    assert status == 2 and "holds no run.json, so it is not a run of hf_seg" in err
    assert Path("runs/mine/thesis.txt").exists()
    Path("runs/mine/thesis.txt").unlink()

    assert run(recipe)[0] == 0
    first = Path("runs/mine/results.json").read_text()
    status, _, err = run(recipe, "--training.learning_rate", "0.5")
    assert status == 2 and "training.learning_rate: 0.001 there, 0.5 here" in err and "--overwrite" in err
    assert Path("runs/mine/results.json").read_text() == first
    assert run(recipe, "--training.learning_rate", "0.5", "--overwrite")[0] == 0
    assert results_of("mine")["recipe"]["training"]["learning_rate"] == 0.5


def test_a_finished_run_and_its_data(write_recipe, run, tmp_path):
    root = write_folder(tmp_path / "photos", "ids")
    (root / "classes.json").write_text('{"classes": [{"name": "a", "id": 0}, {"name": "b", "id": 1}]}')
    limits = dict.fromkeys(["max_train_samples", "max_validation_samples", "max_test_samples"])
    path = write_recipe("own", data={"name": "folder", "root": str(root), **limits})
    start_run(Run(load_recipes([path])[0], tmp_path / "runs" / "own", state="new"))
    write_json(made_up("own"), tmp_path / "runs" / "own" / "results.json")
    status, out, _ = run(path)
    assert status == 0 and out.count("own: finished, in runs/own (--overwrite trains it again)\n") == 1
    assert "on the Hub" not in out
    status, out, _ = run(path, "--training.push_to_hub", "true")  # it is not trained, nor pushed: that is said
    assert status == 0 and "own: is not on the Hub yet; `hf-seg push runs/own` pushes it" in out
    write_folder(root, "ids", 12)
    status, _, err = run(path)
    assert status == 2 and "runs/own: holds a run on data that has changed since (train: 2 pairs more" in err
    shutil.rmtree(root)
    status, out, _ = run(path)
    assert status == 0 and "trains it again); its data was not compared, since it is not in a local folder\n" in out


@pytest.mark.parametrize("name", ["mean_iou", "nowhere.py", "folder.py", "script"])
def test_a_script_that_is_no_file_is_not_looked_for_elsewhere(write_recipe, run, capsys, tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "script").touch()
    with pytest.raises(SystemExit):
        run(write_recipe("a"), "--mean_iou_script", name)
    assert f"--mean_iou_script: there is no file {name} that ends in .py" in capsys.readouterr().err
    status, _, err = run(write_recipe("a", training={"mean_iou_script": "mean_iou.py"}))
    assert status == 2 and "training.mean_iou_script: cannot be set: a recipe cannot name code" in err


def test_accelerate_asked_for_ranks_that_it_does_not_start(write_recipe, run, monkeypatch):
    # what `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process that it starts
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    status, _, err = run(write_recipe("ranks"))
    assert status == 2 and "`hf-seg train … --num_processes N`" in err


@pytest.mark.slow
def test_a_recipe_over_seeds(write_recipe, run):
    short = {"num_train_epochs": 1}
    city = write_recipe("city", training=short)
    pet = write_recipe("pet", model={"init": "checkpoint", "encoder_weights": "city"}, training=short)
    status, out, err = run(city, pet, "--seeds", "3,1,3")
    assert status == 0, err
    assert sorted(path.name for path in Path("runs").iterdir() if path.is_dir()) == [
        "city-seed1", "city-seed3", "pet-seed1", "pet-seed3"
    ]  # fmt: skip
    for seed in (1, 3):
        results = results_of(f"pet-seed{seed}")
        assert results["recipe"]["training"]["seed"] == results["train"]["seed"] == seed
        assert results["model"]["init"]["encoder"]["source"] == f"city-seed{seed}"
    weights = [Path(f"runs/city-seed{seed}/model.safetensors").read_bytes() for seed in (1, 3)]
    assert weights[0] != weights[1]
    comparison = compare([Path("runs") / f"{name}-seed{seed}" for name in ("city", "pet") for seed in (1, 3)])
    assert sorted((arm.name, len(arm.runs)) for arm in comparison.arms) == [("city", 2), ("pet", 2)]
    for difference in comparison.differences:
        assert difference.interval[0] < difference.mean < difference.interval[1]


@pytest.mark.parametrize("seeds", ["", "1,", "one", "-1", "1.5", str(2**32)])
def test_seeds_that_are_none(write_recipe, run, capsys, seeds):
    with pytest.raises(SystemExit):
        run(write_recipe("a"), f"--seeds={seeds}")
    assert "argument --seeds: invalid" in capsys.readouterr().err
