"""`hf-seg compare`: intervals against known answers, what is refused, and the numbers of the report."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from hostile_names import NAMES
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from records import CLASSES, as_evaluation, made_up

from hf_seg import cli
from hf_seg.compare import bootstrap, compare, percentile_interval, verdict
from hf_seg.compare.plots import (
    labels,
    plot_cost,
    plot_learning,
    plot_roc_side_by_side,
    plot_same_images,
    use_log_scale,
)
from hf_seg.compare.report import build_report, write_report
from hf_seg.files import write_json
from hf_seg.problem import Refusal
from hf_seg.runs.figure import IGNORED_STRIPES, line_look
from hf_seg.runs.record import PER_IMAGE, ROC, SAMPLES, load_arrays, save_arrays
from hf_seg.scoring.confusion import mean_iou, region_scores, scores_from_confusion
from hf_seg.scoring.roc import ROC_BINS, roc_from_histograms, stack_curves
from hf_seg.text import printable


def matrices(seed, images=200, right=0.7):
    """Confusion matrices of images whose share of right pixels scatters around `right`."""
    random = np.random.default_rng(seed)
    shares = np.clip(random.normal(right, 0.1, images), 0.05, 0.95)
    out = np.zeros((images, 3, 3), np.int32)
    for image, share in enumerate(shares):
        for true in range(3):
            wrong = (1 - share) / 2
            out[image, true] = random.multinomial(100, [share if c == true else wrong for c in range(3)])
    return out


@pytest.fixture
def write_run(tmp_path):
    def write(name, per_image, *, seed=0, native=None, change=None, keep=True, folder=None):
        confusion = per_image.sum(axis=0)
        results, scores = made_up(name), scores_from_confusion(confusion) | region_scores(confusion)
        results["recipe"]["training"]["seed"] = seed
        for split in ("validation", "test"):
            results[split] |= {
                **{key: scores[key] for key in ("mean_iou", "mean_dice", "mean_accuracy", "overall_accuracy")},
                "per_category_iou": dict(zip(CLASSES, scores["per_category_iou"].tolist(), strict=True)),
                "confusion_matrix": confusion.tolist(),
            }
        native = per_image if native is None else native
        of_native = scores_from_confusion(native.sum(axis=0))
        iou = dict(zip(CLASSES, of_native["per_category_iou"].tolist(), strict=True))
        results["test"]["native"] |= {"mean_iou": of_native["mean_iou"], "per_category_iou": iou}
        results["test"]["boundary_iou"]["mean"] = scores["mean_iou"] / 2
        results["train"]["images_per_second"] += seed
        score = results["validation"]["mean_iou"]
        results["train"]["history"] = [
            entry
            for epoch in (1, 2, 3)
            for entry in (
                {"epoch": epoch, "step": epoch, "loss": 1 / epoch},
                {"epoch": epoch, "step": epoch, "eval_mean_iou": score * epoch / 3},
            )
        ]
        if change:
            change(results)
        folder = tmp_path / (folder or name)
        folder.mkdir()
        write_json(results, folder / "results.json")
        if keep:
            save_arrays(folder / PER_IMAGE, confusion=per_image, native=native)
            histograms = np.random.default_rng(seed).integers(0, 9, (3, 2, ROC_BINS))
            histograms[2, 1] = 0  # no boat anywhere
            save_arrays(folder / ROC, **stack_curves(roc_from_histograms(histograms, CLASSES)))
            random = np.random.default_rng(7)  # the same images for all runs
            save_arrays(
                folder / SAMPLES,
                pixel_values=random.integers(0, 256, (4, 3, 16, 16), np.uint8),
                labels=random.choice([0, 1, 2, 255], (4, 16, 16)).astype(np.uint8),
                predictions=np.random.default_rng(len(name)).integers(0, 3, (4, 16, 16), np.uint8),
                palette=np.array([(0, 114, 178), (213, 94, 0), (0, 158, 115)], np.uint8),
            )
        return folder

    return write


def squeeze(table):
    return re.sub(" +", " ", table)


def interval(first, second, **keys):
    one, other = bootstrap([[first], [second]], **keys)
    return percentile_interval(one - other)


def test_the_interval_is_that_of_a_mean_where_the_score_is_one():
    # the share of right pixels is a mean over images of the same size, whose interval is known
    first, second = matrices(0), matrices(1, right=0.65)

    def accuracy(summed):
        return np.trace(summed, axis1=1, axis2=2) / summed.sum(axis=(1, 2))

    per_image = accuracy(first) - accuracy(second)
    error = per_image.std(ddof=1) / np.sqrt(len(per_image))
    low, high = interval(first, second, statistic=accuracy, resamples=10_000)
    assert low == pytest.approx(per_image.mean() - 1.96 * error, abs=0.05 * error)
    assert high == pytest.approx(per_image.mean() + 1.96 * error, abs=0.05 * error)


def test_pairs_are_kept():
    first = matrices(0)
    better = first.copy()  # a pixel more of each image is right: the images scatter, the difference hardly does
    better[:, 0, 0] += 1
    better[:, 0, 1] = np.maximum(better[:, 0, 1] - 1, 0)
    low, high = interval(better, first)
    assert 0 < low < high < 0.01
    unpaired = np.random.default_rng(0).permutation(better)
    assert interval(unpaired, first)[0] < 0
    assert interval(first, first) == (0, 0)
    with pytest.raises(ValueError, match="different shapes"):
        bootstrap([[first], [first[1:]]])


def test_mean_iou_of_many_matrices():
    summed = matrices(0)[:5].astype(float)
    summed[0, 2] = summed[0, :, 2] = 0  # a class that is absent
    expected = [scores_from_confusion(matrix)["mean_iou"] for matrix in summed]
    np.testing.assert_allclose(mean_iou(summed), expected, rtol=1e-12)


def test_seeds_are_one_arm_and_the_best_comes_first(write_run):
    folders = [write_run(f"weak-seed{seed}", matrices(seed, right=0.6), seed=seed) for seed in (1, 0)]
    folders += [write_run(f"strong-seed{seed}", matrices(seed + 5, right=0.8), seed=seed) for seed in (0, 1)]
    report = compare(folders)
    assert [arm.name for arm in report.arms] == ["strong", "weak"]
    assert [run.seed for run in report.arms[1].runs] == [0, 1]
    [difference] = report.differences
    low, high = difference.interval
    assert 0.1 < low < difference.mean < high
    assert "strong scores" in verdict(difference) and "the scores of their seeds do not overlap" in verdict(difference)


def test_what_cannot_be_told_apart_is_called_so(write_run):
    folders = [write_run("a", matrices(0)), write_run("b", matrices(1)), write_run("old", matrices(2), keep=False)]
    by_names = {frozenset((d.first.name, d.second.name)): verdict(d) for d in compare(folders).differences}
    assert "cannot be told apart on these test images" in by_names[frozenset("ab")]
    assert (
        "with a single seed on a side, it is not known whether training again would show the same"
        in by_names[frozenset("ab")]
    )
    assert "there is no interval" in by_names[frozenset(("a", "old"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["data"].update(fingerprint="f" * 16),
            "was not tested like .*a .fingerprint of the data: f{16} here, ",
        ),
        (lambda r: r["data"]["counts"].update(test=7), "number of test images: 7 here, "),
        (lambda r: r["data"].update(class_names=["a", "b", "c"]), "classes: "),
        (
            lambda r: r["test"].update(confusion_matrix=[[0] * 3] * 3),
            "test_confusion.npz: does not belong to the run in",
        ),
        (lambda r: r["test"].update(mean_iou=0.1), "test_confusion.npz: does not belong to the run in"),
    ],
)
def test_runs_that_cannot_be_compared(write_run, change, message):
    folders = [write_run("a", matrices(0)), write_run("b", matrices(1), change=change)]
    with pytest.raises(Refusal, match=message):
        compare(folders)


def test_masks_whose_meaning_has_changed(write_run):
    native = matrices(5)
    native[:, 0] *= 2  # so that the classes are not equally large
    swapped = native[:, [1, 0, 2]][:, :, [1, 0, 2]]
    folders = [write_run(name, matrices(0), native=each) for name, each in (("a", native), ("b", swapped))]
    with pytest.raises(Refusal, match="masks, or their meaning in classes.json, were changed"):
        compare(folders)


def of_size(size, **data):
    def change(results):
        results["recipe"]["data"] |= {"image_size": size} | data
        results["model"]["multiply_adds"] *= (size // 64) ** 2

    return change


def test_inputs_of_different_sizes_are_compared_at_the_pictures_own_size(write_run, tmp_path, monkeypatch):
    # at its own input the small one is better, at the pictures' own size the large one
    sizes = {64: (0.9, 0.5), 128: (0.6, 0.8)}
    folders = [
        write_run(
            *(f"net-seed{seed}", matrices(seed, right=own)),
            seed=seed,
            native=matrices(seed + 5, right=native),
            change=of_size(size),
            folder=f"{size}-{seed}",
        )
        for size, (own, native) in sizes.items()
        for seed in (0, 1)
    ]
    other = write_run("other", matrices(3), native=matrices(4, right=0.65), change=of_size(64, resize="letterbox"))
    found = compare([*folders, other])
    assert [arm.name for arm in found.arms] == ["net 128×128", "other", "net 64×64"]
    best = found.differences[1]
    assert (best.first.name, best.second.name) == ("net 128×128", "net 64×64")
    native = [json.loads((folder / "results.json").read_text())["test"]["native"] for folder in folders]
    means = np.reshape([scores["mean_iou"] for scores in native], (2, 2)).mean(axis=1)
    low, high = best.interval
    assert 0 < low < best.mean < high and best.mean == pytest.approx(means[1] - means[0])
    assert best.by_class["sky"] == pytest.approx(
        np.dot([-0.5, -0.5, 0.5, 0.5], [scores["per_category_iou"]["sky"] for scores in native])
    )
    assert "do not overlap" in verdict(best)

    drawn = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda *args, **keys: drawn.append(subplots(*args, **keys)) or drawn[-1])
    plot_cost(found.arms, tmp_path / "cost.png")
    axes = drawn[0][0, 0]
    assert axes.get_ylabel() == "test mIoU at the photographs' own size"
    line, point = (container.lines[0] for container in axes.containers)
    assert line.get_ydata() == pytest.approx(means) and len(point.get_xdata()) == 1
    assert [text.get_text() for text in axes.texts] == ["64×64", "128×128", "64×64, letterbox"]

    write_report(found, tmp_path / "report")
    report = squeeze((tmp_path / "report" / "comparison.md").read_text())
    assert "**The inputs differ.** Arms are therefore ranked" in report
    assert re.search(rf"\| net 128×128 \| 0, 1 \| {means[1]:.4f} ± ", report)
    assert "| other | 64×64, letterbox | 16×16 |" in report


def test_without_matrices_at_the_own_size_there_is_no_interval(write_run):
    folders = [write_run("a", matrices(0)), write_run("b", matrices(1), change=of_size(128), keep=False)]
    (difference,) = compare(folders).differences
    assert difference.interval is None and difference.mean > 0
    assert "there is no interval" in verdict(difference)


def test_matrices_at_the_own_size_are_those_of_the_run(write_run):
    def change(results):
        results["test"]["native"]["mean_iou"] += 0.01

    folders = [write_run(name, matrices(0), native=matrices(1), change=change) for name in "ab"]
    with pytest.raises(Refusal, match="test_confusion.npz: does not belong to the run in"):
        compare(folders)


def test_only_evaluations(write_run, tmp_path):
    folders = [write_run(name, matrices(seed), change=as_evaluation) for seed, name in enumerate("ab")]
    comparison = compare(folders)
    assert comparison.protocol == {} and all(arm.evaluated for arm in comparison.arms)
    write_report(comparison, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "confusions.png", "roc.png", "same_images.png"
    }  # fmt: skip
    (tmp_path / "more").mkdir()
    twice = shutil.copytree(folders[0], tmp_path / "more" / "a")
    with pytest.raises(
        Refusal, match=r"both named a, but are not one recipe with two seeds \(both are evaluations of one model\)"
    ):
        compare([*folders, twice])


def test_an_evaluation_does_not_differ_in_what_is_not_known(write_run):
    def change(results):
        as_evaluation(results)
        results["recipe"]["data"] |= {"normalize": "inception", "augment": "none"}

    def trained(results):
        results["recipe"]["data"]["augment"] = "flip"

    def trained_otherwise(results):
        results["recipe"]["training"]["learning_rate"] = 0.5

    folders = [
        write_run("a", matrices(0, right=0.9), change=trained),
        write_run("b", matrices(1, right=0.8), change=change),
        write_run("c", matrices(2, right=0.6), change=trained_otherwise),
    ]
    assert compare(folders[:2]).protocol == {"data.normalize": ["none", "inception"]}
    assert compare(folders).protocol == {
        "data.augment": ["flip", None, "none"],
        "data.normalize": ["none", "inception", "none"],
        "training.learning_rate": [0.001, None, 0.5],
    }
    text = squeeze(build_report(compare(folders)))
    assert "| b | – | inception | – |" in text and "How b was trained is not known." in text
    assert "Scores of b come from `hf-seg evaluate`" in text


def test_other_refusals(write_run, tmp_path, capsys):
    one = write_run("a", matrices(0))
    for folders in ([one], [one, one], [one, tmp_path]):
        assert cli.main(["compare", *map(str, folders)]) == 2
    err = capsys.readouterr().err
    assert err.count("name at least two runs") == 2 and "holds no results.json, so it is not a finished run" in err
    other = write_run("a-seed1", matrices(1), change=lambda r: r["recipe"]["training"].update(learning_rate=1))
    with pytest.raises(
        Refusal, match=r"not one recipe with two seeds \(training.learning_rate: 1 there, 0.001 here\)"
    ):
        compare([one, other])
    twice = write_run("a-seed2", matrices(1))
    with pytest.raises(Refusal, match="both have the seed 0"):
        compare([one, twice])


def test_a_report_replaces_no_file_of_others(write_run, tmp_path, capsys):
    folders = [write_run("a", matrices(0)), write_run("b", matrices(1))]
    out = tmp_path / "out"
    out.mkdir()
    (out / "learning.png").write_text("mine")
    for place in (out, folders[0], out / "learning.png"):
        assert cli.main(["compare", *map(str, folders), "--out", str(place)]) == 2
        said = f"error: {place}: exists and holds files other than a report of `hf-seg compare`; name another folder"
        assert said in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["learning.png"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for below in (out / "learning.png", tmp_path / "loop"):
        assert cli.main(["compare", *map(str, folders), "--out", str(below / "report")]) == 2
        assert f"error: {below}: is not a folder, so nothing can be written to" in capsys.readouterr().err

    report = tmp_path / "report"
    assert cli.main(["compare", *map(str, folders), "--out", str(report)]) == 0
    assert (report / "roc.png").exists()
    for folder in folders:
        (folder / ROC).unlink()
    assert cli.main(["compare", *map(str, folders), "--out", str(report)]) == 0
    assert not (report / "roc.png").exists() and (report / "learning.png").exists()


def test_the_folder_of_an_interrupted_report_can_be_used_again(write_run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    found, out = compare([write_run("a", matrices(0)), write_run("b", matrices(1))]), tmp_path / "report"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("hf_seg.compare.report.plot_learning", stop)
        write_report(found, out)
    assert "incomplete" in (out / "comparison.html").read_text() and (out / "confusions.png").exists()
    write_report(found, out)
    assert "incomplete" not in (out / "comparison.html").read_text()


DAMAGED = {
    "results.json": ["", "{}", "[]", "null", '{"format": 1}', '{"format": 2}', b"\xff", "[" * 100_000],
    PER_IMAGE: [b"", b"PK", b"\x93NUMPY", np.zeros(3), {}, {"confusion": np.zeros((200, 3))},
                {"confusion": np.zeros((4, 2, 2), int)}, {"confusion": np.array([{}] * 3)}],
    ROC: [b"", {"fpr": np.zeros((3, 9))}, {"fpr": np.zeros((3, 9)), "tpr": np.zeros((3, 8))}],
    SAMPLES: [b"", {"labels": np.zeros((4, 16, 16), np.uint8)}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, each) for name in DAMAGED for each in DAMAGED[name]])
def test_damaged_files_of_a_run(write_run, capsys, name, content):
    folders = [write_run("a", matrices(0)), write_run("b", matrices(1))]
    path = folders[1] / name
    if isinstance(content, dict):
        save_arrays(path, **content)
    elif isinstance(content, np.ndarray):
        with open(path, "wb") as file:
            np.save(file, content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert cli.main(["compare", *map(str, folders)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ") and "--overwrite" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "place", ["test.mean_iou", "test.native.mean_iou", "test.boundary_iou.mean", "validation.mean_iou"]
)
def test_a_score_that_is_null(write_run, place):
    def change(results):
        *above, key = place.split(".")
        for section in above:
            results = results[section]
        results[key] = None

    folders = [write_run("a", matrices(0)), write_run("b", matrices(1), change=change)]
    with pytest.raises(Refusal, match=f"results.json: {place} is null, so there is nothing to compare"):
        compare(folders)


def test_a_protocol_that_differs_is_said(write_run):
    folders = [
        write_run("a", matrices(0, right=0.9)),
        write_run("b", matrices(1), change=lambda r: r["recipe"]["training"].update(learning_rate=0.5)),
    ]
    report = compare(folders)
    assert report.protocol == {"training.learning_rate": [0.001, 0.5]}
    text = squeeze(build_report(report))
    assert re.search(r"\| run \| learning_rate \|\n\|-+\|-+\|\n\| a \| 0.001 \|\n\| b \| 0.5 \|", text)


def test_every_score_of_the_report_is_in_results_json(write_run, capsys):
    folders = [write_run("a", matrices(0, right=0.9), native=matrices(5, right=0.8)), write_run("b", matrices(1))]
    assert cli.main(["compare", *map(str, folders)]) == 0
    report = squeeze(capsys.readouterr().out)
    known = set()
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        for split in ("validation", "test"):
            scores = {k: v for k, v in results[split].items() if isinstance(v, float)}
            scores |= {"boundary": results["test"]["boundary_iou"]["mean"], "sky": 0.875, "tree": 0.75}
            native = results["test"]["native"]
            scores |= {"native": native["mean_iou"], **native["ceilings"]}
            known |= {f"{value:.4f}" for value in [*scores.values(), *results[split]["per_category_iou"].values()]}
    shown = set(re.findall(r"(?<![+-])0\.\d{4}", report))
    assert len(shown) >= 10 and shown <= known
    records = [json.loads((folder / "results.json").read_text()) for folder in folders]
    first, second = (record["test"]["per_category_iou"] for record in records)
    for name in CLASSES:
        assert f"| {name} | {first[name] - second[name]:+.4f} |" in report
    score, native = records[0]["test"]["mean_iou"], records[0]["test"]["native"]["mean_iou"]
    assert f"| a | 64×64 | 16×16 | {score:.4f} | {native:.4f} |" in report and score != native
    assert "(the first is stored with 500×375 pixels)" in report
    assert "an mIoU of 0.9375 from 64×64, 0.8750 from 32×32, 0.8125 from 16×16, 0.6875 from 8×8." in report
    assert "| boat | – | – |" in report and "| sky | 0.8750 | 0.8750 |" in report
    assert "| a | 3.71 M | 105 M | 37.5 | 10.0 | 1234 | 1 | a computer, fp32 |" in report
    assert "| b | random initialisation | fresh | no |" in report
    assert "![" not in report  # a terminal shows no pictures


def test_the_report_in_a_browser(write_run, browser, tmp_path, capsys):
    awkward = "<b>|a & b"
    folders = [write_run(f"strong-seed{seed}", matrices(seed, right=0.8), seed=seed) for seed in (0, 1)]
    folders += [write_run("weak", matrices(9))]
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        results["data"]["title"] = awkward
        write_json(results, folder / "results.json")
    assert cli.main(["compare", *map(str, folders), "--out", str(tmp_path / "report")]) == 0
    html = tmp_path / "report" / "comparison.html"
    assert capsys.readouterr().out == f"{html}\n"
    page = browser.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    alone = tmp_path / "alone.html"
    html.rename(alone)
    page.goto(alone.as_uri())
    assert not errors and {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert len([url for url in asked if url.startswith("file:")]) == 1  # it needs no other file
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert widths == [1200, 1200, 1200, 1200, 1200]
    assert awkward in page.inner_text("p") and page.locator("b").count() == 0
    shown = page.locator("table").first.locator("tr").nth(1).locator("td").all_inner_texts()
    report = compare(folders)
    arm = report.arms[0]
    scores = [run.results["test"]["mean_iou"] for run in arm.runs]
    assert shown[:3] == ["strong", "0, 1", f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}"]
    dice = [run.results["test"]["mean_dice"] for run in arm.runs]
    assert shown[3] == f"{np.mean(dice):.4f} ± {np.std(dice, ddof=1):.4f}"
    assert shown[4] == f"{np.mean(scores) / 2:.4f} ± {np.std(scores, ddof=1) / 2:.4f}"
    assert page.locator("li").all_inner_texts() == [verdict(difference) for difference in report.differences]
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert "![Test mIoU over multiply-adds" in (tmp_path / "report" / "comparison.md").read_text()


def test_hostile_names_in_a_report(write_run, tmp_path, capsys):
    """As names of classes, of the data set and of runs."""

    def rename(results, names):
        results["recipe"]["name"] = results["recipe"]["name"][0] + names[0]
        results["data"] |= {"class_names": names, "title": "".join(names)}
        for scores in (results["validation"], results["test"]):
            for key in {"per_category_iou", "roc_auc"} & scores.keys():
                scores[key] = dict(zip(names, scores[key].values(), strict=True))

    def check(text):
        assert all(line.isprintable() for line in text.split("\n"))
        page = MarkdownIt("commonmark").enable("table").render(text)
        assert not re.search(r"<(script|img|a|em|code|blockquote)\b", page)
        lines = [line for line in text.split("\n") if line.startswith("|")]
        assert page.count("<tr>") == len(lines) - page.count("<table>")
        for table in re.findall("<table>.*?</table>", page, re.DOTALL):
            assert len({len(re.findall("<t[hd]>", row)) for row in table.split("<tr>")[1:]}) == 1

    hostile = [*NAMES.values()]
    folders = [
        write_run(name, matrices(seed), change=lambda results: rename(results, hostile[:3]))
        for seed, name in enumerate("ab")
    ]
    assert cli.main(["compare", *map(str, folders)]) == 0
    check(capsys.readouterr().out)
    assert cli.main(["compare", *map(str, folders), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "comparison.html").read_text(encoding="utf-8")
    assert printable("".join(hostile[:3])) in unescape(page) and "\x1b" not in page
    comparison = compare(folders)
    for number in range(0, len(hostile), 3):
        for arm in comparison.arms:
            rename(arm.runs[0].results, (hostile + hostile)[number : number + 3])
        arms = tuple(replace(arm, name=arm.runs[0].results["recipe"]["name"]) for arm in comparison.arms)
        differences = [replace(difference, first=arms[0], second=arms[1]) for difference in comparison.differences]
        check(build_report(replace(comparison, arms=arms, differences=differences)))


def test_names_in_pictures_leave_out_what_all_begin_with():
    assert labels(["pet-fcn-best", "pet-fcn-scratch"]) == ["best", "scratch"]
    assert labels(["pet-fcn-best", "pet-fcn-scratch", "pet"])[0] == "pet-fcn-best"


def test_one_epoch_is_a_dot(write_run, monkeypatch, tmp_path):
    def of_one_epoch(results):
        results["train"]["history"] = [{"epoch": 1, "step": 8, "loss": 0.5, "eval_mean_iou": 0.25}]

    arms = compare([write_run(name, matrices(seed), change=of_one_epoch) for seed, name in enumerate("ab")]).arms
    panels = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda *args, **keys: panels.extend(p := subplots(*args, **keys)) or p)
    plot_learning(arms, tmp_path / "learning.png")
    assert [line.get_marker() for axes in panels for line in axes.lines] == ["o"] * 4


def test_a_legend_names_every_arm(write_run, monkeypatch, tmp_path):
    # matplotlib leaves out what begins with "_" where it looks for the labels itself
    arms = compare([write_run(name, matrices(seed)) for seed, name in enumerate(("_x", "__y", "z"))]).arms
    legends = []
    legend = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *args, **keys: legends.append(legend(*args, **keys)) or legends[-1])
    plot_learning(arms, tmp_path / "learning.png")
    plot_cost(arms, tmp_path / "cost.png")
    plot_roc_side_by_side(arms, CLASSES, tmp_path / "roc.png")
    for drawn in legends:
        assert [text.get_text() for text in drawn.get_texts()] == [arm.name for arm in arms]
        colours = [handle.get_color() for handle in drawn.legend_handles]
        assert colours == [line_look(index)["color"] for index in range(3)]
    assert len(legends) == 3 and {arm.name for arm in arms} == {"_x", "__y", "z"}


def test_the_same_images_have_a_column_a_run(write_run, monkeypatch, tmp_path):
    # two of them are named as the columns beside them
    arms = compare([write_run(name, matrices(seed)) for seed, name in enumerate(("image", "truth", "a"))]).arms
    drawn = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda *args, **keys: drawn.append(subplots(*args, **keys)) or drawn[-1])
    plot_same_images(arms, tmp_path / "same_images.png")
    assert drawn[0].shape == (4, 5)
    shown = arms[0].runs[0].samples
    assert drawn[0][0, 1].get_title(loc="left") == "truth (striped:\nignored)"
    truth = drawn[0][0, 1].images[0].get_array()
    assert (truth[shown["labels"][0] == 1] == shown["palette"][1]).all()
    greys = {tuple(colour) for colour in truth[shown["labels"][0] == 255].tolist()}
    assert greys == set(IGNORED_STRIPES)


@pytest.mark.parametrize(("hardware", "panels"), [("a computer", 2), ("another computer", 1)])
def test_speeds_of_different_hardware_are_not_drawn(write_run, monkeypatch, tmp_path, hardware, panels):
    change = {"environment": {"hardware": hardware}}
    folders = [write_run("a", matrices(0)), write_run("b", matrices(1), change=lambda r: r.update(change))]
    drawn = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda *args, **keys: drawn.append(subplots(*args, **keys)) or drawn[-1])
    plot_cost(compare(folders).arms, tmp_path / "cost.png")
    assert drawn[0].size == panels and (tmp_path / "cost.png").exists()


def test_logarithmic_axes_have_no_markup():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1e-3, 1], [0, 1])
    use_log_scale(axes)
    figure.canvas.draw()
    assert {"0.001", "0.01", "0.1", "1"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_arrays_of_a_run_come_back(tmp_path):
    assert load_arrays(tmp_path / PER_IMAGE) is None
    save_arrays(tmp_path / PER_IMAGE, confusion=matrices(3), native=matrices(4))
    assert np.array_equal(load_arrays(tmp_path / PER_IMAGE)["confusion"], matrices(3))
    assert [path.name for path in tmp_path.iterdir()] == ["test_confusion.npz"]
