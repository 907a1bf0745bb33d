import numpy as np
import pytest
import torch

from hf_seg.scoring.confusion import confusion_matrix, confusion_per_image, region_scores, scores_from_confusion
from hf_seg.scoring.metrics import SecondOpinion, SegMetric


def reference_mean_iou(predictions, references, num_labels, ignore_index):
    """`mean_iou` from its definition, by sets of pixels: nothing shared with the code under test."""
    intersection, union, area = (np.zeros(num_labels) for _ in range(3))
    for prediction, reference in zip(predictions, references, strict=True):
        valid = reference != ignore_index
        for c in range(num_labels):
            p, r = (prediction == c) & valid, (reference == c) & valid
            intersection[c] += (p & r).sum()
            union[c] += (p | r).sum()
            area[c] += r.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = intersection / union, intersection / area
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": intersection.sum() / area.sum(),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def assert_same_scores(ours, reference):
    assert ours.keys() == reference.keys()
    for key in ours:
        np.testing.assert_allclose(ours[key], reference[key], atol=1e-9, rtol=0, equal_nan=True, err_msg=key)


def random_maps(seed=0, images=7, num_labels=6, size=(13, 17)):
    rng = np.random.default_rng(seed)
    references = rng.integers(0, num_labels - 1, (images, *size))  # the last class never occurs
    predictions = np.where(rng.random(references.shape) < 0.6, references, rng.integers(0, num_labels - 1, (1,)))
    references[rng.random(references.shape) < 0.1] = 255
    predictions[predictions == 255] = 0
    return predictions, references


def test_documented_example_of_mean_iou():
    # the example in the documentation of evaluate's mean_iou, and the numbers that it prints there
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    scores = SegMetric(num_labels=10).compute(predictions=predictions, references=references)
    assert scores["mean_iou"] == pytest.approx(0.4775, abs=1e-9)
    assert scores["mean_accuracy"] == pytest.approx(0.5916666666666666, abs=1e-9)
    assert scores["overall_accuracy"] == pytest.approx(0.5263157894736842, abs=1e-9)


@pytest.mark.parametrize("ignore_index", [255, 0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed, ignore_index):
    predictions, references = random_maps(seed)
    if ignore_index == 0:
        references[references == 255] = 0
    metric = SegMetric(num_labels=6, ignore_index=ignore_index)
    for start in range(0, 7, 3):  # 3, 3, 1: an uneven last batch
        metric.add_batch(predictions=predictions[start : start + 3], references=references[start : start + 3])
    assert_same_scores(metric.compute(), reference_mean_iou(predictions, references, 6, ignore_index))


def test_perfect_and_worst():
    maps = np.array([[[0, 1], [1, 2]]])
    assert SegMetric(num_labels=3).compute(predictions=maps, references=maps)["mean_iou"] == 1.0
    assert SegMetric(num_labels=3).compute(predictions=(maps + 1) % 3, references=maps)["mean_iou"] == 0.0


def test_absent_class_is_nan_and_left_out_of_the_mean():
    maps = np.zeros((1, 4, 4), dtype=np.int64)
    scores = SegMetric(num_labels=3).compute(predictions=maps, references=maps)
    assert np.isnan(scores["per_category_iou"][1:]).all() and scores["mean_iou"] == 1.0


def test_predictions_under_ignored_pixels_do_not_count():
    references = np.array([[[0, 255]]])
    same = SegMetric(num_labels=2)
    for wrong in (0, 1):
        assert same.compute(predictions=np.array([[[0, wrong]]]), references=references)["mean_iou"] == 1.0


def test_memory_does_not_grow_and_compute_starts_afresh():
    metric = SegMetric(num_labels=6)
    predictions, references = random_maps()
    for _ in range(5):
        metric.add_batch(predictions=predictions, references=references)
    assert metric.confusion.shape == (6, 6) and metric.confusion.dtype == torch.int64
    assert int(metric.confusion.sum()) == 5 * (references != 255).sum()
    metric.compute()
    assert int(metric.confusion.sum()) == 0


def test_tensors_arrays_and_lists_of_differing_sizes_agree():
    predictions, references = random_maps()
    expected = SegMetric(num_labels=6).compute(predictions=predictions, references=references)
    tensors = SegMetric(num_labels=6)
    tensors.add_batch(
        predictions=torch.from_numpy(predictions).to(torch.uint8), references=torch.from_numpy(references)
    )
    assert_same_scores(tensors.compute(), expected)
    lists = SegMetric(num_labels=6)
    lists.add_batch(
        predictions=[predictions[0], *predictions[1:, :5].tolist(), *predictions[1:, 5:].tolist()],
        references=[references[0], *references[1:, :5].tolist(), *references[1:, 5:].tolist()],
    )
    assert_same_scores(lists.compute(), expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 3]], [[0, 1]], "predictions hold ids from 0 to 3, but there are 3 classes"),
        ([[0, 1]], [[0, 7]], "references hold ids from 0 to 7, but there are 3 classes"),
        ([[0, -1]], [[0, 1]], "predictions hold ids from -1 to 0"),
        ([[0, 1]], [[0, 1, 1]], r"predictions have shape \(1, 2\) and references \(1, 3\)"),
    ],
)
def test_bad_ids_and_shapes_are_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        SegMetric(num_labels=3).add(prediction=prediction, reference=reference)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_counting_in_chunks_changes_nothing(monkeypatch, dtype):
    predictions, references = (torch.from_numpy(maps).to(dtype) for maps in random_maps())
    expected = confusion_matrix(predictions, references, 6)
    monkeypatch.setattr("hf_seg.scoring.confusion.CHUNK", 100)  # 1,547 pixels: the last chunk is a short one
    assert torch.equal(confusion_matrix(predictions, references, 6), expected)
    assert int(expected.sum()) == int((references != 255).sum())


@pytest.mark.parametrize(("num_labels", "ignore_index"), [(6, 255), (6, -100), (6, 1000), (300, 255), (300, 1000)])
def test_ids_beyond_8_bits_count_alike(num_labels, ignore_index):
    predictions, references = random_maps(num_labels=num_labels)
    references[references == 255] = ignore_index
    predictions[references == ignore_index] = -7  # whatever is predicted there
    scores = SegMetric(num_labels, ignore_index).compute(predictions=predictions, references=references)
    assert_same_scores(scores, reference_mean_iou(predictions, references, num_labels, ignore_index))


def test_scores_of_ids_that_are_views_of_a_batch():
    predictions, references = (torch.from_numpy(maps) for maps in random_maps())
    expected = confusion_matrix(predictions[:, ::2].clone(), references[:, ::2].clone(), 6)
    assert torch.equal(confusion_matrix(predictions[:, ::2], references[:, ::2], 6), expected)


def test_confusion_rows_are_true_classes():
    counts = confusion_matrix(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 0, 255]]), 2)
    assert counts.tolist() == [[0, 2], [0, 0]]


def test_each_image_of_a_batch_is_counted_apart():
    predictions, references = (torch.from_numpy(maps) for maps in random_maps())
    counted = confusion_per_image(predictions.to(torch.uint8), references, 6)
    assert counted.shape == (7, 6, 6)
    for image, matrix in enumerate(counted):
        assert torch.equal(matrix.long(), confusion_matrix(predictions[image], references[image], 6))


def test_dice_precision_and_frequency_weighted_iou_by_hand():
    # "cat" is never predicted, "cow" occurs in the prediction alone, and "yak" nowhere
    confusion = np.array([[6, 0, 2, 0], [3, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # of dog, cat, cow, yak
    scores = region_scores(confusion)
    np.testing.assert_allclose(scores["per_category_dice"], [12 / 17, 0, 0, np.nan])
    np.testing.assert_allclose(scores["per_category_precision"], [6 / 9, 0, 0, np.nan])
    assert scores["mean_dice"] == pytest.approx(12 / 17 / 3) and scores["mean_precision"] == pytest.approx(2 / 9)
    assert scores["frequency_weighted_iou"] == pytest.approx(8 / 12 * 6 / 11)


def test_dice_is_the_harmonic_mean_of_precision_and_recall():
    predictions, references = (torch.from_numpy(maps) for maps in random_maps())
    confusion = confusion_matrix(predictions, references, 6).numpy()
    ours, theirs = region_scores(confusion), scores_from_confusion(confusion)
    precision, recall = ours["per_category_precision"], theirs["per_category_accuracy"]
    np.testing.assert_allclose(ours["per_category_dice"], 2 * precision * recall / (precision + recall))
    iou = theirs["per_category_iou"]
    np.testing.assert_allclose(ours["per_category_dice"], 2 * iou / (1 + iou))


def test_scores_of_nothing_are_nan():
    scores = scores_from_confusion(np.zeros((2, 2), dtype=np.int64))
    assert all(np.isnan(scores[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy"))
    assert all(np.all(np.isnan(value)) for value in region_scores(np.zeros((2, 2), dtype=np.int64)).values())


def second_opinion(script):
    predictions, references = (torch.from_numpy(maps) for maps in random_maps())
    opinion, metric = SecondOpinion(6, script=script), SegMetric(num_labels=6)
    for start in range(0, 7, 3):
        batch = {"predictions": predictions[start : start + 3], "references": references[start : start + 3]}
        opinion.add_batch(**batch)
        metric.add_batch(**batch)
    scores = metric.compute()
    return opinion.compare(scores), scores


def test_second_opinion_of_a_local_script(tmp_path, write_mean_iou):
    verdict, scores = second_opinion(write_mean_iou(tmp_path / "mean_iou.py"))
    assert verdict["available"] is True and verdict["largest_difference"] < 1e-9
    assert verdict["mean_iou"] == pytest.approx(scores["mean_iou"], abs=1e-9)


def test_second_opinion_finds_a_difference(tmp_path, write_mean_iou):
    verdict, _ = second_opinion(write_mean_iou(tmp_path / "mean_iou.py", "iou[2] += 0.25"))
    assert 0.25 - 1e-9 <= verdict["largest_difference"] < 0.26
    verdict, _ = second_opinion(write_mean_iou(tmp_path / "mean_iou_nan.py", "iou[5] = 0"))
    assert verdict["largest_difference"] == float("inf")  # an absent class must be nan, not 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [(None, "not asked for"), ("1 / 0", "could not be loaded"), ("late", "mean_iou failed")],
)
def test_second_opinion_that_fails_says_why(tmp_path, write_mean_iou, monkeypatch, script, reason):
    if script is None:
        monkeypatch.setattr("evaluate.load", lambda *_: pytest.fail("a script would be fetched and run"))
    if script is not None:
        path = tmp_path / "mean_iou.py"
        script = write_mean_iou(path, "1 / 0") if script == "late" else str(path)
        if not path.exists():
            path.write_text("1 / 0")
    verdict, _ = second_opinion(script)
    assert verdict["available"] is False and reason in verdict["reason"]
