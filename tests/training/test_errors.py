"""`hf-seg errors`: which pictures are shown and why, what they show, and the page."""

import base64
import io
import json
import shutil

import numpy as np
import torch
from PIL import Image

from hf_seg import cli
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.runs.folder import _strangers
from hf_seg.runs.page import generator
from hf_seg.runs.record import load_results
from hf_seg.scoring.confusion import mean_iou
from hf_seg.training import errors
from hf_seg.training.errors import (
    RED,
    _short_name,
    choose,
    describe_confusions,
    disagreement,
    draw_differences,
    measure_disagreement,
)
from hf_seg.training.evaluate import examine, find_data


def test_choice():
    confusion = np.zeros((5, 3, 3), int)
    confusion[0] = np.diag([4, 4, 0])
    confusion[1, 0, 1] = 8  # all of class 0 is missed
    confusion[2] = [[3, 1, 0], [1, 3, 0], [0, 0, 0]]
    confusion[3, 0, 1] = 2  # as in 1, but less of it
    # nothing is labelled in 4
    worst, first, second, suspicious = choose(confusion, np.array([0, 0.2, 0.5, 0, 0.3]), ["a", "b", "c"], count=3)
    assert worst == {"kind": "worst", "title": "Worst pictures", "class": None, "chosen": worst["chosen"]}
    assert worst["chosen"] == [(1, "mIoU 0.00"), (3, "mIoU 0.00"), (2, "mIoU 0.60")]
    assert (first["kind"], first["title"], first["class"]) == ("class", "a", 0)
    assert first["chosen"] == [(1, "IoU 0.00"), (3, "IoU 0.00"), (2, "IoU 0.60"), (0, "IoU 1.00")]
    assert second["chosen"] == [(2, "IoU 0.60"), (0, "IoU 1.00")]  # in 1 and 3 it is not in the truth
    assert suspicious["kind"] == "suspicious"
    assert [index for index, _ in suspicious["chosen"]] == [2, 4, 1]
    assert [len(part["chosen"]) for part in choose(confusion, np.zeros(5), ["a", "b", "c"], count=1)] == [1, 4, 2, 0]


def test_confident_disagreement():
    labels = torch.tensor([[[0, 1], [255, 1]], [[255, 255], [255, 255]]])
    ids = torch.tensor([[[0, 0], [1, 0]], [[0, 0], [0, 0]]])
    confidence = torch.tensor([[[0.9, 0.8], [0.7, 0.6]], [[0.9, 0.9], [0.9, 0.9]]])
    # two of three labelled pixels are wrong, with a mean of 0.7
    torch.testing.assert_close(disagreement(ids, confidence, labels, 255), torch.tensor([2 / 3 * 0.7, 0]))


def test_confusions_in_words():
    matrix = np.array([[50, 20, 0], [8, 10, 0], [11, 0.9, 0.1]])
    names = ["cat", "dog", "sky"]
    assert describe_confusions(matrix, names) == [
        "20% of the pixels: cat taken for dog",
        "11% of the pixels: sky taken for cat",
    ]
    assert describe_confusions(matrix, names, 1)[1] == "8% of the pixels: dog taken for cat"
    assert describe_confusions(matrix, names, 2) == ["11% of the pixels: sky taken for cat"]  # the other is below 1%
    assert describe_confusions(np.zeros((3, 3)), names) == [] and matrix[0, 0] == 50


def test_map_of_differences():
    grey, wrong = np.full((1, 4), 100), np.array([[False, True, True, True]])
    drawn = draw_differences(grey, wrong, np.array([[1, 0, 1, 1]]), np.array([[False, False, False, True]]))
    assert (drawn[0, 2] == RED).all() and len({*drawn[0, 0]}) == 1 and len({*drawn[0, 3]}) == 1
    redness = drawn[0, :, 0] - drawn[0, :, 1]
    assert redness[0] == 0 < redness[1] < redness[2]


def test_names_of_files(tmp_path):
    file = str(tmp_path / "photos" / "city" / "a.jpg")
    assert _short_name(file, str(tmp_path / "photos")) == "city/a.jpg"
    assert _short_name(file, None) == _short_name(file, str(tmp_path / "other")) == "a.jpg"
    assert _short_name("test[3], image", None) == "test[3], image"


def test_disagreement_of_a_run(finished, tmp_path):
    segmenter = load_segmenter(finished, device="cpu")
    trainer = examine("run", segmenter, find_data(finished), tmp_path, load_results(finished), {}).trainer
    expected = []
    for index in range(6):
        batch = trainer.eval_transform.finish(trainer.data.prepared["test"].__getitems__([index]))
        scores = torch.nn.functional.interpolate(segmenter.scores(batch["pixel_values"]), (64, 64), mode="bilinear")
        probability, ids = scores.softmax(dim=1).max(dim=1)
        labelled = batch["labels"] != 255
        wrong = labelled & (ids != batch["labels"])
        expected.append(float(probability[wrong].mean() * wrong.sum() / labelled.sum()))
    found = measure_disagreement(trainer)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert 0 < found.min() < found.max() < 1


def decode(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def test_page_of_a_run(finished, again, browser, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "results.json").read_text())
    record["recipe"]["name"] = "<b>it"
    (run / "results.json").write_text(json.dumps(record))
    assert cli.main(["errors", str(run), "--count", "2"]) == 0
    assert capsys.readouterr().out == f"6 test pictures, fp32\n{run / 'errors.html'}\n"
    assert not _strangers(run)  # `--overwrite` may remove it with the run

    page, asked = browser.new_page(viewport={"width": 400, "height": 800}), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((run / "errors.html").as_uri())
    assert {url.partition(":")[0] for url in asked[1:]} <= {"data"} and page.locator("b").count() == 0
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("h1").inner_text() == "Errors of <b>it"
    assert page.locator("h2").all_inner_texts() == [
        "Worst pictures", "Hard pictures of each class", "Masks that may be wrong"
    ]  # fmt: skip
    assert page.locator("h3").all_inner_texts() == [
        f"{name} (IoU {value:.4f} over all pictures)" for name, value in record["test"]["per_category_iou"].items()
    ]
    articles = page.locator("article")
    assert articles.count() == 2 + 3 * 4 + 2
    with np.load(finished / "test_confusion.npz") as file:
        scores = mean_iou(file["confusion"])
    worst = int(np.argmin(scores))
    assert articles.first.locator("h4").inner_text() == f"test[{worst}], image mIoU {scores[worst]:.2f}"
    assert articles.first.locator("figcaption").all_inner_texts() == [
        "photograph", "truth", "prediction", "differences"
    ]  # fmt: skip
    addresses = articles.first.locator("img").evaluate_all("images => images.map(image => image.src)")
    photograph, truth, prediction, differences = map(decode, addresses)
    assert photograph.shape == truth.shape == (96, 96, 3)
    same, red = (truth == prediction).all(axis=2), differences[..., 0] > differences[..., 1]
    assert (red == ~same).all() and red.any() and not red.all()

    # the folder of an evaluation has the same page, but for the name
    assert cli.main(["errors", str(again[0]), "--count", "2", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "errors.html").read_text(encoding="utf-8")
    assert text.replace("again", "&lt;b&gt;it") == (run / "errors.html").read_text(encoding="utf-8")


def test_out_of_memory(finished, tmp_path, monkeypatch, capsys):
    def fail(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(errors, "measure_disagreement", fail)
    assert cli.main(["errors", str(finished), "--out", str(tmp_path)]) == 2
    assert "error: cpu is out of memory in evaluation, with " in capsys.readouterr().err


def test_refused(finished, tmp_path, capsys):
    (tmp_path / "errors.html").write_text("mine")
    assert cli.main(["errors", str(finished), "--out", str(tmp_path / "errors.html")]) == 2
    assert "errors.html: is not a folder, so nothing can be written to" in capsys.readouterr().err
    assert cli.main(["errors", str(finished), "--out", str(tmp_path)]) == 2
    assert "exists, and `hf-seg errors` did not write it; name another --out" in capsys.readouterr().err
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "results.json").read_text())
    record["data"]["fingerprint"] = "0" * 16
    (run / "results.json").write_text(json.dumps(record))
    (run / "errors.html").write_text(generator("errors"))
    assert cli.main(["errors", str(run)]) == 2
    assert "its data is not what it was tested on (the fingerprints differ)" in capsys.readouterr().err
    record["data"]["class_names"][0] = "cat"  # as if classes.json had another name since
    (run / "results.json").write_text(json.dumps(record))
    assert cli.main(["errors", str(run)]) == 2
    assert "the classes of its data were cat, background, boundary when it was tested" in capsys.readouterr().err
    record["recipe"]["data"]["root"] = "/gone"
    (run / "results.json").write_text(json.dumps(record))
    assert cli.main(["errors", str(run)]) == 2
    said = capsys.readouterr().err
    assert (
        f"{run}: its data was in /gone, which does not exist; test it with `hf-seg evaluate` on the data where" in said
    )
    record["recipe"]["data"] |= {"root": None, "resize": "maybe"}
    (run / "results.json").write_text(json.dumps(record))
    assert cli.main(["errors", str(run)]) == 2
    assert "results.json: recipe.data.resize is damaged: it must be" in capsys.readouterr().err
    (run / "test_confusion.npz").unlink()
    assert cli.main(["errors", str(run)]) == 2
    assert "holds no test_confusion.npz; test it again with `hf-seg evaluate`" in capsys.readouterr().err
    assert (run / "errors.html").read_text() == generator("errors")
