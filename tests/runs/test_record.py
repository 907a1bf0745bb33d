from pathlib import Path

import pytest
from records import as_evaluation, made_up

from hf_seg.files import write_json
from hf_seg.problem import Refusal
from hf_seg.runs.record import describe_encoder_run, format_table, load_results


def change_of(place, value):
    """What a record is like after one value has been replaced, or (with "gone") taken out."""

    def change(record):
        *above, key = place.split(".")
        for section in above:
            record = record[section]
        record[key] = value
        if value == "gone":
            del record[key]

    return change


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        ("recipe.name", "gone", "recipe.name is missing"),
        ("recipe.data.name", "gone", "recipe.data.name is missing"),
        ("test", None, "test is not an object"),
        ("test", [], "test is not an object"),
        ("test.mean_iou", "0.5", 'test.mean_iou is "0.5"'),
        ("test.mean_iou", True, "test.mean_iou is true"),
        ("test.per_category_iou.sky", {}, r"test.per_category_iou.sky is \{\}"),
        ("data.class_names", "sky", "data.class_names is not a list"),
        ("data.class_names", ["sky", 2, "boat"], r"data.class_names\[1\] is 2"),
        ("data.class_names", ["sky"], "a confusion_matrix does not have 1 classes"),
        ("validation.confusion_matrix", [[1, 2, 3]], "a confusion_matrix does not have 3 classes"),
        ("model.parameters", None, "model.parameters is null"),
        ("train.history", [{"step": 3}], r"train.history\[0\].epoch is missing"),
        ("data.publish_images", 1, "data.publish_images is 1"),
        ("environment", "gone", "environment is missing"),
        ("format", "gone", "format is missing"),
    ],
)
def test_a_record_that_lacks_something(tmp_path, place, value, fault):
    record = made_up("mine")
    write_json(record, tmp_path / "results.json")
    assert load_results(tmp_path) == record
    change_of(place, value)(record)
    write_json(record, tmp_path / "results.json")
    with pytest.raises(Refusal, match=rf"results.json: is not the record of a finished run \({fault}\); pass"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        ("evaluation", "gone", "evaluation is missing"),
        ("evaluation.precision", None, "evaluation.precision is null"),
        ("model.parameters", "many", 'model.parameters is "many"'),
        ("train", {}, "train.epochs is missing"),
        ("test", None, "test is not an object"),
        ("test.confusion_matrix", [[1, 2, 3]], "a confusion_matrix does not have 3 classes"),
    ],
)
def test_the_record_of_an_evaluation(tmp_path, place, value, fault):
    record = made_up("mine")
    as_evaluation(record)
    write_json(record, tmp_path / "results.json")
    assert load_results(tmp_path, or_evaluation=True) == record
    with pytest.raises(
        Refusal, match="results.json: is from an evaluation, and the folder has no model; name the run"
    ):
        load_results(tmp_path)
    change_of(place, value)(record)
    write_json(record, tmp_path / "results.json")
    with pytest.raises(Refusal, match=rf"is not the record of an evaluation \({fault}\); evaluate the model again"):
        load_results(tmp_path, or_evaluation=True)


def test_a_key_that_is_newer_than_the_record_has_its_default(tmp_path):
    record = made_up("mine")
    change_of("recipe.data.resize", "gone")(record)
    write_json(record, tmp_path / "results.json")
    assert load_results(tmp_path)["recipe"]["data"]["resize"] == "stretch"


def test_results_that_cannot_be_read(tmp_path):
    with pytest.raises(Refusal, match="holds no results.json, so it is not a finished run"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text('{"status"')
    with pytest.raises(Refusal, match="results.json: cannot be read .* --overwrite"):
        load_results(tmp_path)
    write_json(made_up("mine") | {"format": 2}, tmp_path / "results.json")
    with pytest.raises(Refusal, match=r"another version of hf_seg \(format 2; this version has 1\); pass"):
        load_results(tmp_path)


def test_scores_that_there_are_none_of(tmp_path):
    record = made_up("mine")
    change_of("test.mean_iou", None)(record)
    write_json(record, tmp_path / "results.json")
    assert "| – " in format_table([load_results(tmp_path)])


def test_what_is_said_of_the_run_that_gave_the_encoder(tmp_path):
    results = made_up("city")
    write_json(results, tmp_path / "results.json")
    (tmp_path / "model.safetensors").write_bytes(b"")
    expected = {"name": "city", "data": results["data"], "init": results["model"]["init"]}
    assert describe_encoder_run(str(tmp_path)) == expected
    assert describe_encoder_run(str(tmp_path / "model.safetensors")) == expected
    for other in (None, "nvidia/mit-b0", str(tmp_path / "gone.safetensors"), str(Path(__file__).parents[1])):
        assert describe_encoder_run(other) is None
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(Refusal, match="is not the record of a finished run"):
        describe_encoder_run(str(tmp_path))


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
