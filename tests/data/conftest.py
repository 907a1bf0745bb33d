"""The fixtures of this room."""

# ruff: noqa: F401
import json
import re
import shlex

import numpy as np
import pytest
from official_folders import cityscapes_folder, cityscapes_pair, own_cache, pet_folder, picture, recipe, write
from own_folders import scene, write_image
from PIL import Image


@pytest.fixture
def first_day(tmp_path, capsys, tiny_models):
    """`first_day(root, ...)` runs `hf-seg init` and the two commands that it prints, with a tiny model and one epoch;
    gives what `init` says, the results of the run, and the mask of a new photograph."""
    from hf_seg import cli

    def run(root, *options):
        assert cli.main(["init", str(root), *options]) == 0
        said = capsys.readouterr().out
        content = json.loads((root / "recipe.json").read_text())
        small = {"num_train_epochs": 1, "eval_every_epochs": 1, "bf16": False, "report_to": "none"}
        content["training"] |= small | {"disable_tqdm": True}
        content["model"] |= tiny_models["segformer"]
        content["data"]["cache"] = str(tmp_path / "cache")
        (root / "recipe.json").write_text(json.dumps(content))
        new = write_image(tmp_path / "new" / "photo.png", scene(100)[0])
        train, predict = re.findall("^Then: hf-seg (.*)$", said, re.MULTILINE)
        assert cli.main(shlex.split(train)) == 0, capsys.readouterr().err
        words = {"PHOTOGRAPHS": str(new.parent), "predictions": str(tmp_path / "new masks")}
        assert cli.main([words.get(word, word) for word in shlex.split(predict)]) == 0, capsys.readouterr().err
        with Image.open(tmp_path / "new masks" / "photo.png") as mask:
            ids = np.asarray(mask)
        return said, json.loads((root / "runs" / "recipe" / "results.json").read_text()), ids

    return run
