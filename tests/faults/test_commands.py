"""Whole commands on hostile folders: a documented status, never a traceback, and the user's files as they were."""

import json
import shutil

import pytest
from helpers import TINY_MODELS
from hostile_folders import write_hostile_folder
from huggingface_hub import constants
from own_folders import write_folder

from hf_seg import cli, train

pytestmark = pytest.mark.faults

ONE_STEP = {
    "model.config": json.dumps(TINY_MODELS["segformer"]["config"]),
    "data.image_size": "32",
    "data.max_train_samples": "2",
    "data.max_validation_samples": "1",
    "data.max_test_samples": "1",
    "training.global_train_batch_size": "2",
    "training.num_train_epochs": "1",
    "training.eval_every_epochs": "1",
    "training.bf16": "false",
    "training.report_to": "none",
    "training.disable_tqdm": "true",
}
OVERRIDES = [word for key, value in ONE_STEP.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of one step on a folder in good order."""
    root = tmp_path_factory.mktemp("good")
    write_folder(root / "photos", "ids", 6)
    assert cli.main(["init", str(root / "photos")]) == 0
    [recipe] = (root / "photos").glob("*recipe*.json")
    assert train.main([str(recipe), "--output_dir", str(root / "runs"), *OVERRIDES]) == 0
    return next((root / "runs").glob("*/results.json")).parent


@pytest.fixture
def command(capsys):
    """`command(main, statuses, words)` runs it and gives its status; no traceback, and nothing that moves a cursor."""

    def call(main, statuses, *words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert "Traceback" not in said, said
        assert "\x1b[31m" not in said and "\x1b[2J" not in said, said
        assert status in statuses, f"{words} ended with {status}\n{said}"
        return status

    return call


def through_all_commands(root, number, trained, command):
    photos = write_hostile_folder(root, number)
    runs, away = root / "runs", root / "predicted"
    command(cli.main, (0, 1), "doctor", photos)
    written = {path.name for path in photos.iterdir()}
    status = command(cli.main, (0, 1, 2), "init", photos)
    if status == 2:  # perhaps since these were in its way
        for name in ("classes.json", "recipe.json", "preview.png", "split.json"):
            (photos / name).unlink(missing_ok=True)
        written = {path.name for path in photos.iterdir()}
        status = command(cli.main, (0, 1, 2), "init", photos)
    command(cli.main, (0, 1), "doctor", photos)
    recipes = [path for path in photos.glob("*recipe*.json") if path.name not in written]
    for recipe in recipes if status != 2 else []:
        assert command(cli.main, (0,), "check", recipe) == 0
        drop = ["--data.on_bad_pair", "drop"] if number % 2 else []
        command(train.main, (0, 1, 2), recipe, "--output_dir", runs, *OVERRIDES, *drop)
        namesake = root / "photos.json"  # whose run would lie where the photographs are
        shutil.copy(recipe, namesake)
        command(train.main, (0, 1, 2), namesake, "--output_dir", root, *OVERRIDES, "--overwrite")
    images = next((path for path in sorted(photos.rglob("*")) if path.name.lower() in ("images", "imgs")), photos)
    command(cli.main, (0, 1, 2), "predict", trained, images, "--out", away)
    command(cli.main, (0, 1, 2), "predict", trained, photos, "--out", photos / "masks")
    command(cli.main, (0, 1, 2), "predict", trained, images, "--out", images)
    for result in sorted(runs.glob("*/results.json")):
        command(cli.main, (0, 2), "compare", trained, result.parent)


@pytest.mark.parametrize("number", range(12))
def test_some_folders(number, tmp_path, trained, command):
    through_all_commands(tmp_path, number, trained, command)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 1500, 25))
def test_many_folders(first, tmp_path, trained, command):
    for number in range(first, first + 25):
        place = tmp_path / str(number)
        through_all_commands(place, number, trained, command)
        shutil.rmtree(place)
