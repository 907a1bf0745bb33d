"""`hf-seg evaluate`: the digits of a run, models of others, classes by name, and what `hf-seg compare` makes of it."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from own_folders import write_folder
from PIL import Image
from query_models import save_query_model
from torch import nn
from transformers import AutoImageProcessor, MobileViTImageProcessor

from hf_seg import cli
from hf_seg.data import load_data
from hf_seg.inference.export import export_model
from hf_seg.inference.exported import load_model
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.problem import Refusal
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import NORMALIZATIONS
from hf_seg.runs.folder import Run
from hf_seg.runs.record import load_results
from hf_seg.scoring.confusion import confusion_per_image
from hf_seg.training.evaluate import (
    DataClasses,
    describe_export,
    examine,
    find_data,
    match_classes,
    parse_label_map,
    pixels_of,
)
from hf_seg.training.setup import build_initial_model, build_trainer

PETS = ["foreground", "background", "boundary"]
LEFT = {"test_confusion.npz", "test_roc.npz", "test_samples.npz", "results.json", "plots"}


@pytest.fixture
def evaluate(capsys):
    """`evaluate(model, data, out, ...)`: exit status, stdout, stderr."""

    def call(model, data, out, *more):
        capsys.readouterr()
        status = cli.main(["evaluate", str(model), str(data), "--out", str(out), *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def arrays(folder, name="test_confusion"):
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def test_a_run_on_its_own_recipe_has_its_digits(finished, again, evaluate):
    out, said = again
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (finished, out))
    assert after["test"] == before["test"] and after["data"] == before["data"] and after["model"] == before["model"]
    for name in ("test_confusion", "test_roc", "test_samples"):
        for key, values in arrays(finished, name).items():
            np.testing.assert_array_equal(arrays(out, name)[key], values)
    assert {path.name for path in out.iterdir()} == LEFT  # no card, and nothing of a training
    assert {path.name for path in (out / "plots").iterdir()} == {"confusion.png", "roc.png", "samples.png"}
    assert after["status"] == "evaluated" and after["train"] is after["validation"] is None
    assert after["recipe"] == before["recipe"] | {"name": "again"}
    lines = said.splitlines()
    assert lines[0].split() == ["data", "model"] and [line.split() for line in lines[1:4]] == [[n, n] for n in PETS]
    assert lines[4] == "6 test pictures of Generated pets; 64×64 pixels by stretch, fp32"
    assert lines[5].startswith(f"test mIoU {after['test']['mean_iou']:.4f}, ") and lines[5].endswith(str(out))

    status, _, error = evaluate(finished, finished, out)
    assert status == 2 and error.startswith(f"error: {out}: exists and is not an empty folder; name another")
    status, _, error = evaluate(finished, finished, out / "results.json" / "out")
    assert status == 2 and "results.json: is not a folder, so nothing can be written to" in error
    with pytest.raises(Refusal, match="is from an evaluation, and the folder has no model; name the run's own folder"):
        load_results(out)


@pytest.mark.parametrize("resize", ["letterbox", "crop"])
def test_the_digits_of_other_framings_and_precisions(write_recipe, tmp_path, resize):
    data = {"image_size": [32, 64], "resize": resize, "normalize": "imagenet"}
    data |= {f"max_{split}_samples": count for split, count in (("train", 1), ("validation", 1), ("test", 4))}
    model, training = {"encoder": "test_resnet"}, {"bf16": resize == "crop"}
    training |= {} if resize == "crop" else {"per_device_eval_batch_size": 3}
    (recipe,) = load_recipes([write_recipe("framed", arch="fcn", model=model, data=data, training=training)])
    own, loaded = Run(recipe, tmp_path / "run"), load_data(recipe.data)
    trainer = build_trainer(own, loaded, build_initial_model(own, loaded.spec)[0], quiet=True)
    trainer.save_model()
    recorded = {"recipe": recipe.to_dict(), "train": {"precision": "bf16" if resize == "crop" else "fp32"}}
    segmenter = load_segmenter(own.folder, device="cpu")
    examination = examine("run", segmenter, recipe.data, tmp_path / "out", recorded, {})
    assert (examination.size, examination.resize, examination.normalized) == ((32, 64), resize, "imagenet")
    assert examination.trainer.precision == trainer.precision == recorded["train"]["precision"]
    batches = (each.args.per_device_eval_batch_size for each in (trainer, examination.trainer))
    assert [*batches] == [1 if resize == "crop" else 3] * 2
    expected, found = trainer.test(), examination.trainer.test()
    for name in ("per_image", "native_per_image"):
        np.testing.assert_array_equal(found.pop(name), expected.pop(name))
    assert expected["native"].pop("pipeline")["pictures"] == 4  # of a run only
    assert found == expected


@pytest.fixture(scope="module")
def query_model(tmp_path_factory):
    names = {0: "Background", 1: "foreground", 2: "tree"}
    return save_query_model(tmp_path_factory.mktemp("mask2former"), "mask2former", names, height=64, width=64)


@pytest.fixture(scope="module")
def of_queries(query_model, finished, tmp_path_factory):
    """Its evaluation on the pictures of the run."""
    out = tmp_path_factory.mktemp("queries") / "out"
    assert cli.main(["evaluate", str(query_model), str(finished), "--out", str(out)]) == 0
    return out


def test_a_mask2former_gives_the_masks_of_its_image_processor(query_model, finished, of_queries):
    segmenter = load_segmenter(query_model, device="cpu")
    test = load_data(find_data(finished)).splits["test"]
    predicted, true = [], []
    for pair in test:
        with torch.inference_mode():
            outputs = segmenter.model(**segmenter.image_processor(pair["image"], return_tensors="pt"))
        post_process = segmenter.image_processor.post_process_semantic_segmentation
        (scored,) = post_process(outputs, target_sizes=[(64, 64)], return_segmentation_scores=True)
        # background is its class 0, foreground its class 1, "tree" is none of the data
        predicted.append(scored["segmentation_scores"][[1, 0]].argmax(dim=0))
        true.append(torch.from_numpy(np.array(pair["mask"].resize((64, 64), Image.Resampling.NEAREST))))
    true = torch.stack(true).long() - 1
    expected = confusion_per_image(torch.stack(predicted), true, 3).numpy()
    found = arrays(of_queries)["confusion"]
    assert found.shape == expected.shape and found[..., 2].sum() == 0 and (found[..., :2].sum(axis=(0, 1)) > 0).all()
    assert np.abs(found - expected).sum() <= 0.001 * found.sum()  # a batch rounds otherwise than a single image

    results = load_results(of_queries, or_evaluation=True)
    assert results["evaluation"]["classes"] == {
        "foreground": ["foreground"],
        "background": ["Background"],
        "boundary": [],
    }
    assert results["evaluation"]["left_out"] == ["tree"] and results["test"]["loss"] is None
    assert results["test"]["per_category_iou"]["boundary"] == 0
    assert results["model"]["multiply_adds"] is None and results["model"]["parameters"] > 1000
    assert results["recipe"]["training"] is None and results["recipe"]["data"]["normalize"] == "imagenet"


def test_an_input_that_follows_from_the_picture(query_model, finished, tmp_path):
    model = shutil.copytree(query_model, tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(model)
    processor.size = {"shortest_edge": 50, "longest_edge": 70}
    processor.save_pretrained(model)
    segmenter = load_segmenter(model, device="cpu")
    examination = examine("model", segmenter, find_data(finished), tmp_path / "out", None, {})
    # the first picture is square and becomes 50 pixels wide, which is padded to a multiple of 32
    assert (examination.size, examination.resize) == ((64, 64), "letterbox")
    assert examination.trainer.args.per_device_eval_batch_size == 64 and examination.trainer.precision == "fp32"


def test_classes_that_are_called_otherwise(finished, evaluate, tmp_path):
    write_folder(tmp_path / "photos", "ids", 6)
    assert cli.main(["init", str(tmp_path / "photos")]) == 0
    classes = [entry["name"] for entry in json.loads((tmp_path / "photos" / "classes.json").read_text())["classes"]]
    status, _, error = evaluate(finished, tmp_path / "photos", tmp_path / "out")
    assert status == 2 and "(foreground, background, boundary)" in error and f"({', '.join(classes)})" in error
    assert "--label_map MODEL_CLASS=DATA_CLASS" in error and not (tmp_path / "out").exists()
    given = [f"--label_map=foreground={classes[1]}", f"--label_map=boundary={classes[1]}"]
    model = tmp_path / "model"  # without the record of a run
    model.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(finished / name, model)
    status, said, _ = evaluate(model, tmp_path / "photos", tmp_path / "out", *given)
    assert status == 0
    assert re.search(rf"^{classes[1]} +foreground, boundary$", said, re.MULTILINE)
    assert re.search(rf"^{classes[0]} +– \(the model has none: it is never predicted\)$", said, re.MULTILINE)
    assert "left out of the prediction: background\n" in said
    results = load_results(tmp_path / "out", or_evaluation=True)
    assert results["model"]["arch"] == "segformer" and results["model"]["multiply_adds"] > 0
    # all pixels are of the only class that is left
    assert arrays(tmp_path / "out")["confusion"][..., [0, *range(2, len(classes))]].sum() == 0


def test_matching():
    assert match_classes(["Sky", "tree", "sky", "car"], ["tree", "sky"], {}) == [[1], [0, 2]]
    assert match_classes(["cat", "Cat"], ["Cat", "cat"], {}) == [[1], [0]]  # in its own case first
    assert match_classes(["tree", "car"], ["tree", "bus"], {"tree": "bus"}) == [[], [0]]
    assert parse_label_map(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    for wrong, message in (
        ({"tre": "bus"}, "the model has no class 'tre'; did you mean \"tree\""),
        ({"tree": "buss"}, "the data has no class 'buss'; did you mean \"bus\""),
        ({}, r"no class of the model \(tree, car\) has the same name as one of the data \(bus\)"),
    ):
        with pytest.raises(Refusal, match=message):
            match_classes(["tree", "car"], ["bus"], wrong)
    for text in ("a", "=b", "a="):
        with pytest.raises(Refusal, match="is not MODEL_CLASS=DATA_CLASS"):
            parse_label_map([text])
    with pytest.raises(Refusal, match="names the model's class 'a' twice"):
        parse_label_map(["a=b", "c=d", "a=e"])


class Fixed:
    """A segmenter with the same scores whatever it sees, which it keeps."""

    has_queries = False

    def __init__(self, scores):
        self.model, self.given = nn.Identity(), scores

    def scores(self, pixel_values):
        self.seen = pixel_values
        return self.given


def test_several_classes_are_one_by_their_probabilities():
    scores = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    logits = DataClasses(Fixed(scores), [[2], [0, 3], [], [1]])(torch.zeros(2, 3, 3, 3)).logits
    probabilities, own = logits.softmax(dim=1), scores.softmax(dim=1)
    torch.testing.assert_close(probabilities[:, 1], own[:, 0] + own[:, 3])
    torch.testing.assert_close(probabilities[:, [0, 3]], own[:, [2, 1]])
    assert not probabilities[:, 2].any() and torch.equal(logits[:, 3], scores[:, 1])


def test_pixels_are_those_of_the_image_processor(finished):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    own = AutoImageProcessor.from_pretrained(finished)
    own.do_resize, own.do_normalize = False, True
    own.image_mean, own.image_std, own.rescale_factor = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 1 / 128
    flipped = MobileViTImageProcessor(do_resize=False, do_center_crop=False)
    flipped.do_normalize = False
    for processor in (own, flipped):
        fixed = Fixed(torch.zeros(1, 1, 1, 1))
        DataClasses(fixed, [[0]], pixels_of(processor))(pixels)
        torch.testing.assert_close(fixed.seen, processor(picture, return_tensors="pt")["pixel_values"])
    own.image_mean, own.image_std, own.rescale_factor = *NORMALIZATIONS["imagenet"], 1 / 255
    assert pixels_of(own) == (*NORMALIZATIONS["imagenet"], False)


def test_data_of_a_folder(finished, tmp_path):
    assert find_data(finished).max_test_samples == find_data(finished.parents[1] / "a.json").max_test_samples == 6
    assert find_data("quickstart-fcn").name == "synthetic_pet"
    (tmp_path / "images").mkdir()
    assert (find_data(tmp_path).name, find_data(tmp_path).root) == ("folder", str(tmp_path))


def test_a_data_folder_that_was_moved_with_its_recipe(tmp_path):
    recipe = {"model": {"arch": "fcn"}, "data": {"name": "folder", "root": "/gone"}, "training": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(Refusal, match=f"^{tmp_path}/recipe.json: its data was in /gone, .*; correct data.root there"):
        find_data(tmp_path)


def test_files_that_are_no_model(tmp_path, evaluate):
    status, _, error = evaluate(tmp_path / "a.xml", "quickstart-fcn", tmp_path / "out")
    assert status == 2 and f"{tmp_path / 'a.xml'}: there is no such file" in error
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    status, _, error = evaluate(tmp_path / "a.onnx", "quickstart-fcn", tmp_path / "out")
    assert status == 2 and "a.onnx: cannot be read as a file exported by hf_seg" in error and error.count("\n") == 1


@pytest.mark.slow
def test_what_an_exported_file_loses(finished, tmp_path, monkeypatch):
    file = tmp_path / "model.onnx"
    export_model(finished, file)
    own, said = load_results(finished)["test"]["mean_iou"], describe_export(str(finished), file, load_model)
    form = r"test mIoU (.*), (.*) (?:below|above) the run's own .* \((?:bf16|fp32)\)"
    found, change = map(float, re.fullmatch(form, said).groups())
    assert found == pytest.approx(own, abs=2e-3) and change == pytest.approx(abs(found - own), abs=1e-4)

    def gone(_):
        raise Refusal("photographs", "are gone")

    monkeypatch.setattr("hf_seg.training.evaluate.find_data", gone)
    assert describe_export(str(finished), file, load_model) == "not tested: photographs: are gone"


def test_a_comparison_with_a_run(finished, again, of_queries, tmp_path):
    folders = [finished, again[0], of_queries]
    assert cli.main(["compare", *map(str, folders), "--out", str(tmp_path / "report")]) == 0
    report = re.sub(" +", " ", (tmp_path / "report" / "comparison.md").read_text())
    assert re.search("Scores of (again, out|out, again) come from `hf-seg evaluate`", report)
    score = load_results(finished)["test"]["mean_iou"]
    assert f"| a | 0 | {score:.4f} |" in report and f"| again | 0 | {score:.4f} |" in report
    assert re.search(r"\| out \| – \| 0\.\d{4} \|.*\| – \|\n", report)  # neither seed nor validation
    assert "How out was trained is not known." in report
    # its normalisation is known, and differs; nothing else does
    assert re.search(r"\| run \| normalize \|\n", report) and "| out | imagenet |\n" in report
    assert re.search(r"\| out \| \d\.\d\d M \| – \| – \| – \| – \| – \|", report)
    assert "| out | not known | not known | not known |" in report
    assert not (tmp_path / "report" / "cost.png").exists() and (tmp_path / "report" / "learning.png").exists()
