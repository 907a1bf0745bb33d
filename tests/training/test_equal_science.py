"""The loss and its gradient do not depend on accumulation steps or on the number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

IN_EVAL_MODE = Path(__file__).parents[1] / "train_in_eval_mode.py"
WAYS = {
    "one process": ((), 1),
    "two accumulation steps": (("--training.gradient_accumulation_steps", "2"), 1),
    "two processes": ((), 2),
    "four processes, two accumulation steps": (("--training.gradient_accumulation_steps", "2"), 4),
}
# 255 is in these masks, unevenly: a mean of means over micro-batches would show.
DATA = {"name": "synthetic_cityscapes", "max_train_samples": 160, "max_validation_samples": 11, "max_test_samples": 7}
# At the usual rate AdamW lets rounding grow: in 20 steps of one image at a time, to 2e-3 of FCN's loss.
TWENTY_STEPS = {"num_train_epochs": 1, "logging_strategy": "steps", "logging_steps": 1, "learning_rate": 1e-5}


def train_each_way(write_recipe, launch, tmp_path, arch, training, ways=tuple(WAYS), **options):
    recipe = write_recipe("steps", arch=arch, data=DATA, training=training)
    results = {}
    for way in ways:
        overrides, processes = WAYS[way]
        runs = tmp_path / way.replace(" ", "-")
        launch(recipe, "--output_dir", runs, *overrides, processes=processes, **options)
        results[way] = json.loads((runs / "steps" / "results.json").read_text())
        assert results[way]["train"]["world_size"] == processes
    return results


def trace(result, key):
    return np.array([entry[key] for entry in result["train"]["history"] if key in entry])


# each of them once, in a sum: one that is not the same would show in it
ALL_LOSSES = {
    "loss": {"cross_entropy": 1, "dice": 1, "lovasz": 1, "focal": 1},
    "class_weights": "balanced",
    "label_smoothing": 0.1,
    "max_steps": 5,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "loss", "ways"),
    [("fcn", {}, WAYS), ("segformer", {}, WAYS), ("segformer", ALL_LOSSES, [*WAYS][:3])],
    ids=["fcn", "segformer", "all losses"],
)
def test_same_trace_of_loss_and_gradient_norm(write_recipe, launch, tmp_path, arch, loss, ways):
    training = TWENTY_STEPS | loss
    results = train_each_way(write_recipe, launch, tmp_path, arch, training, tuple(ways), script=IN_EVAL_MODE)
    reference = results.pop("one process")
    assert len(trace(reference, "loss")) == training.get("max_steps", 20)
    for way, result in results.items():
        for key, rtol in (("loss", 1e-4), ("grad_norm", 1e-3)):
            np.testing.assert_allclose(trace(result, key), trace(reference, key), rtol=rtol, err_msg=f"{way}: {key}")
        # an uneven last batch: 11 and 7 images over two ranks
        for split in ("validation", "test"):
            assert (
                np.array(result[split]["confusion_matrix"]).sum()
                == np.array(reference[split]["confusion_matrix"]).sum()
            )
            assert result[split]["loss"] == pytest.approx(reference[split]["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_in_training_mode_the_first_loss_differs_by_batch_statistics_only(write_recipe, launch, tmp_path, arch):
    # not four processes: each would have one image at a time, and no batch statistics to speak of
    ways = ("one process", "two accumulation steps", "two processes")
    results = train_each_way(write_recipe, launch, tmp_path, arch, TWENTY_STEPS | {"max_steps": 1}, ways)
    first = {way: trace(result, "loss")[0] for way, result in results.items()}
    for way, loss in first.items():
        assert loss == pytest.approx(first["one process"], rel=0.05), first | {"differs": way}


@pytest.mark.slow
def test_same_scores_on_two_and_four_ranks_with_an_uneven_last_batch(write_recipe, launch, tmp_path):
    # a step so small that the weights stay as they are: what is left is the evaluation, of 11 and of 7 images
    still = {"num_train_epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "per_device_eval_batch_size": 4}
    recipe = write_recipe("still", data=DATA | {"max_train_samples": 8}, training=still)
    scores = {}
    for processes in (1, 2, 4):
        runs = tmp_path / str(processes)
        launch(recipe, "--output_dir", runs, script=IN_EVAL_MODE, processes=processes)
        results = json.loads((runs / "still" / "results.json").read_text())
        scores[processes] = {split: results[split] for split in ("validation", "test")}
    one = scores.pop(1)
    assert np.sum(one["test"]["confusion_matrix"]) > 20_000
    for several in scores.values():
        for split, ours in several.items():
            theirs = one[split]
            for key in ("confusion_matrix", "per_category_iou", "mean_iou"):
                assert ours[key] == theirs[key], key
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert several["test"]["roc_auc"] == one["test"]["roc_auc"]
