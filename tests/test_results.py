import json
from pathlib import Path

import pytest

from hf_seg.recipe import Recipe, RecipeError
from hf_seg.recipe_keys import DataRecipe, ModelRecipe, TrainingRecipe
from hf_seg.results import (
    describe_encoder_run,
    format_table,
    hold_runs,
    load_results,
    open_run,
    start_run,
    write_json,
)


@pytest.fixture
def recipe():
    return Recipe(
        name="mine",
        path=Path("mine.json"),
        model=ModelRecipe(arch="segformer"),
        data=DataRecipe(name="synthetic_pet"),
        training=TrainingRecipe(arguments={"logging_steps": 5}),
    )


def test_a_run_folder_through_its_life(recipe, tmp_path):
    run_dir = tmp_path / "runs" / "mine"
    assert open_run(recipe, run_dir) == "new"
    start_run(recipe, run_dir)
    assert json.loads((run_dir / "recipe.json").read_text()) == recipe.to_dict()
    assert open_run(recipe, run_dir) == "interrupted"
    write_json({"status": "finished"}, run_dir / "results.json")
    assert open_run(recipe, run_dir) == "finished"
    assert load_results(run_dir) == {"status": "finished"}
    assert open_run(recipe, run_dir, overwrite=True) == "new"
    start_run(recipe, run_dir, overwrite=True)
    assert not (run_dir / "results.json").exists()


def test_a_launch_killed_while_it_wrote_the_recipe(recipe, tmp_path):
    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    (run_dir / "recipe.json.partial").write_text('{"model"')
    assert open_run(recipe, run_dir) == "new"
    start_run(recipe, run_dir)
    assert [path.name for path in run_dir.iterdir()] == ["recipe.json"]


def test_keys_of_the_machine_do_not_make_another_recipe(recipe, tmp_path):
    start_run(recipe, tmp_path / "mine")
    recipe.training.gradient_accumulation_steps = 4
    recipe.training.report_to = "none"
    recipe.data.root = "elsewhere"
    recipe.training.arguments["dataloader_num_workers"] = 2
    assert open_run(recipe, tmp_path / "mine") == "interrupted"
    recipe.training.arguments["logging_steps"] = 6
    with pytest.raises(RecipeError, match="training.logging_steps: 5 there, 6 here"):
        open_run(recipe, tmp_path / "mine")


def test_a_folder_of_ones_own_is_not_any_folder(recipe, tmp_path):
    recipe.data = DataRecipe(name="folder", root="pets")
    start_run(recipe, tmp_path / "mine")
    assert open_run(recipe, tmp_path / "mine") == "interrupted"
    recipe.data.root = "streets"
    with pytest.raises(RecipeError, match="data.root: 'pets' there, 'streets' here"):
        open_run(recipe, tmp_path / "mine")


def test_a_key_that_an_older_version_did_not_have(recipe, tmp_path):
    start_run(recipe, tmp_path / "mine")
    saved = tmp_path / "mine" / "recipe.json"
    older = json.loads(saved.read_text())
    del older["training"]["channels_last"]
    saved.write_text(json.dumps(older))
    assert open_run(recipe, tmp_path / "mine") == "interrupted"
    recipe.training.channels_last = False
    with pytest.raises(RecipeError, match="training.channels_last: 'auto' there, False here"):
        open_run(recipe, tmp_path / "mine")


@pytest.mark.parametrize("content", ["", "[]", '{"model": 3}', '{"model": '])
def test_a_damaged_recipe_in_a_run_folder(recipe, tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(RecipeError, match="--overwrite"):
        open_run(recipe, tmp_path)


def test_a_file_where_the_folder_belongs(recipe, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(RecipeError, match="is a file"):
        open_run(recipe, tmp_path / "mine")


def test_damaged_results(tmp_path):
    (tmp_path / "results.json").write_text('{"status"')
    with pytest.raises(RecipeError, match="results.json: cannot be read .* --overwrite"):
        load_results(tmp_path)


def test_a_place_that_takes_no_files(recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="file/runs: nothing can be written there .*choose another --output_dir"):
        with hold_runs([recipe], tmp_path / "file" / "runs", set()):
            raise AssertionError


def test_a_run_that_is_replaced_goes_all_at_once(recipe, tmp_path, monkeypatch):
    run = tmp_path / "mine"
    start_run(recipe, run)
    (run / "checkpoint-4").mkdir()

    def killed(path):
        (path / "recipe.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        start_run(recipe, run, overwrite=True)
    assert open_run(recipe, run, overwrite=True) == open_run(recipe, run) == "new"
    start_run(recipe, run, overwrite=True)
    assert [path.name for path in run.iterdir()] == ["recipe.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_two_launches_in_one_folder(recipe, tmp_path):
    with hold_runs([recipe], tmp_path, set()):
        with pytest.raises(RecipeError, match="mine: another launch is at work in it; wait until it ends"):
            with hold_runs([recipe], tmp_path, set()):
                raise AssertionError
    with hold_runs([recipe], tmp_path, set()):
        pass
    # a finished run is looked at only, which several may do
    start_run(recipe, tmp_path / "mine")
    write_json({}, tmp_path / "mine" / "results.json")
    with hold_runs([recipe], tmp_path, set()), hold_runs([recipe], tmp_path, set()):
        pass


def test_what_is_said_of_the_run_that_gave_the_encoder(tmp_path):
    results = {"recipe": {"name": "city"}, "data": {"name": "cityscapes"}, "model": {"init": {"init": "scratch"}}}
    write_json(results | {"test": {}}, tmp_path / "results.json")
    (tmp_path / "model.safetensors").write_bytes(b"")
    expected = {"name": "city", "data": results["data"], "init": results["model"]["init"]}
    assert describe_encoder_run(str(tmp_path)) == expected
    assert describe_encoder_run(str(tmp_path / "model.safetensors")) == expected
    for other in (None, "nvidia/mit-b0", str(tmp_path / "gone.safetensors"), str(Path(__file__).parent)):
        assert describe_encoder_run(other) is None


def test_json_is_strict_and_whole(tmp_path):
    write_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, "x", None)}, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": [1, "x", None]}
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == text


def test_table_of_a_launch():
    result = {
        "recipe": {"name": "mine"},
        "model": {"parameters": 3_714_915},
        "train": {"epochs": 30.0, "seconds": 630.0},
        "validation": {"mean_iou": None},
        "test": {"mean_iou": 0.55574, "overall_accuracy": 0.79452},
    }
    lines = format_table([result, result | {"recipe": {"name": "a longer name"}}]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "mine", "0.5557", "0.7945", "–", "3.71 M", "30", "10.5"
    ]  # fmt: skip
