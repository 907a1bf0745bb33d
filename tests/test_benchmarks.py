"""The benchmark programs run and print their tables; how long things take is not for tests to say."""

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from hf_seg import cli

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROGRAMS = (
    *("data", "first_day", "gpu", "head", "inference", "metric", "mirrored", "peers", "scale", "step_time"),
    "train_step",
)
NUMBER = re.compile(r"\d+(\.\d+)?")


@pytest.fixture
def program(monkeypatch):
    """A program as a module, to be run by its `main` with the given arguments, in this process alone."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str, *arguments: str):
        specification = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        if hasattr(module, "in_own_process"):
            monkeypatch.setattr(module, "in_own_process", lambda function, *values: function(*values))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        return module

    return load


def table(text: str) -> list[list[str]]:
    """The rows of the only table of a text; each has as many cells as the first."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {len(rows[0])} and set(rows[1]) == {"---"}
    return [[cell.strip() for cell in row] for row in (rows[0], *rows[2:])]


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_explains_itself(program, capsys, name):
    with pytest.raises(SystemExit) as end:
        program(name, "--help").main()
    assert end.value.code == 0
    assert f"python benchmarks/{name}.py" in " ".join(capsys.readouterr().out.split())


def test_metric(program, capsys):
    program("metric", "--maps", "3", "--repeats", "1").main()  # and compares the scores of the two ways
    text = capsys.readouterr().out
    assert "torch" in text.splitlines()[0]
    head, *rows = table(text)
    assert head == ["maps", "evaluate, s", "SegMetric, s", "ratio", "evaluate, MB", "SegMetric, MB"]
    assert [row[0] for row in rows] == [
        "Oxford-IIIT Pet, test: 3 of 64×64, 3 classes",
        "Cityscapes, test: 3 of 1024×2048, 19 classes",
    ]
    assert all(NUMBER.fullmatch(cell) for row in rows for cell in row[1:])


def test_metric_finds_scores_that_differ(program, monkeypatch, tmp_path):
    module = program("metric", "--maps", "2", "--repeats", "1", "--script", str(tmp_path / "wrong.py"))
    script = (BENCHMARKS / "mean_iou.py").read_text().replace("float(np.nanmean(iou))", "float(np.nanmean(iou)) / 2")
    (tmp_path / "wrong.py").write_text(script)
    monkeypatch.setattr(module, "SETS", {"small": (2, 32, 32, 3, 2)})
    with pytest.raises(AssertionError, match="small: mean_iou"):
        module.main()


def test_data(program, capsys, monkeypatch):
    module = program("data", "--pairs", "9", "--repeats", "1")
    monkeypatch.setattr(module, "CORES", 0)  # no workers
    monkeypatch.setattr(module, "LATER_SECONDS", 0.01)
    for name in ("oxford_pet", "cityscapes"):
        monkeypatch.setitem(sys.modules["original_size"].DRAWN, name, ((100, 80), 2))
    module.main()
    head, *rows = table(capsys.readouterr().out)
    assert head[1:6] == ["datasets + PIL, images/s", "first pass", "ratio", "later passes", "ratio"]
    assert [row[0] for row in rows] == ["oxford_pet, 9 pairs", "cityscapes, 9 pairs"]
    assert all(NUMBER.fullmatch(cell) for row in rows for cell in row[1:])


@pytest.mark.parametrize("name", ["oxford_pet", "cityscapes"])
def test_a_root_of_links_has_the_pairs_that_were_asked_for(program, monkeypatch, tmp_path, name):
    from hf_seg.data import load_splits
    from hf_seg.recipe.keys import DataRecipe

    program("data")
    original_size = sys.modules["original_size"]
    monkeypatch.setitem(original_size.DRAWN, name, ((100, 80), 2))
    root, counts = original_size.build_root(name, tmp_path / "drawn", None, 20)
    splits = load_splits(DataRecipe(name=name, root=str(root)))
    assert {split: len(rows) for split, rows in splits.items()} == counts and counts["train"] == 20
    assert splits["train"][19]["image"].size == splits["train"][19]["mask"].size == (100, 80)
    # and from files at hand in the official layout, such as these
    again, counts = original_size.build_root(name, tmp_path / "linked", root, 30)
    assert len(load_splits(DataRecipe(name=name, root=str(again)))["train"]) == counts["train"] == 30


@pytest.mark.parametrize("bf16", [True, False])
def test_head(program, monkeypatch, capsys, tiny_models, bf16):
    module = program("head", "--device", "cpu", "--models", "B0", "--pixels", "64", "--repeats", "1")
    monkeypatch.setitem(
        module.MODELS, "B0", module.SegformerConfig(num_labels=3, **tiny_models["segformer"]["config"])
    )
    monkeypatch.setitem(module.BATCHES, 64, 2)
    monkeypatch.setattr(module, "precision_of", lambda *_: "bf16" if bf16 else "fp32")
    module.main()
    text = capsys.readouterr().out
    assert ("bf16" in text.splitlines()[0]) != bf16  # says that it is left out
    head, *rows = table(text)
    assert head[4:] == ["precision", "stock, ms", "hf_seg, ms", "ratio"]
    precisions = ["fp32", "bf16"] if bf16 else ["fp32"]
    assert [row[:5] for row in rows] == [
        ["B0", "64×64", "2", what, precision] for what in ("step", "inference") for precision in precisions
    ]
    for row in rows:
        stock, fast, ratio = map(float, row[5:])
        assert ratio == pytest.approx(stock / fast, rel=0.1)


def test_head_compares_two_models(program):
    """That one of them is the stock model and the other ours, or the ratio would say nothing."""
    module, seen = program("head"), []

    def build(model, *_):
        seen.append({type(part).__name__ for part in model.modules()})
        return lambda: None

    for name, own in (("B0", "FastDecodeHead"), ("FCN-Lite0", "FastDepthwise")):
        seen.clear()
        module.compare(build, name, torch.rand(1, 3, 64, 64), False, 1)
        assert [own in parts for parts in seen] == [False, True]


@pytest.mark.slow
def test_mirrored(program, run, write_recipe, tmp_path, capsys):
    status, _, errors = run(write_recipe("a"))
    assert status == 0, errors
    folder = tmp_path / "runs" / "a"
    program("mirrored", str(folder)).main()
    head, row = table(capsys.readouterr().out)
    assert head == ["run", "test mIoU", "with the mirrored image"] and row[0] == "a"
    scored = json.loads((folder / "results.json").read_text())["test"]["mean_iou"]
    assert float(row[1]) == pytest.approx(scored, abs=0.01)  # a run's own score may be of bf16
    assert 0 < float(row[2]) < 1


def test_what_is_mirrored_comes_back_to_its_place(program):
    module = program("mirrored")
    model = torch.nn.Module()
    model.device = torch.device("cpu")
    model.forward = lambda pixel_values: SimpleNamespace(logits=pixel_values)  # each pixel says its class
    images = torch.rand(2, 3, 8, 8)
    plain, averaged = module.probabilities(SimpleNamespace(model=model), images, (8, 8))
    torch.testing.assert_close(averaged, plain)


GPU_HEAD = ["model", "batch", "precision", "way", "ms a step", "images/s", "of the peak", "start, s"]


@pytest.fixture
def gpu(program, monkeypatch, tiny_models):
    """`gpu.py` with a tiny SegFormer."""
    module = program("gpu")
    build_recipe = module.build_recipe

    def tiny(**arguments):
        recipe = build_recipe(**arguments)
        recipe.model.config = tiny_models["segformer"]["config"]
        return recipe

    monkeypatch.setattr(module, "build_recipe", tiny)

    def start(*arguments: str):
        fixed = [
            "--device",
            "cpu",
            "--models",
            "SegFormer-B0",
            "--steps",
            "1",
            "--repeats",
            "1",
            "--trainer_steps",
            "1",
        ]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *fixed, *arguments])
        module.main()

    return SimpleNamespace(module=module, main=start)


def test_gpu_on_a_cpu_has_eager_rows(gpu, capsys):
    gpu.main("--batches", "2", "64")
    head, *rows = table(capsys.readouterr().out)
    assert head == [*GPU_HEAD, "SegTrainer ÷ bare loop"]
    assert [row[:4] for row in rows] == [
        ["SegFormer-B0", batch, precision, "eager"] for precision in ("bf16", "fp32") for batch in ("2", "64")
    ]
    for row in rows:
        step, images, share, start, ratio = row[4:]
        assert NUMBER.fullmatch(step) and NUMBER.fullmatch(images.replace(",", "")) and NUMBER.fullmatch(start)
        assert float(images.replace(",", "")) == pytest.approx(int(row[1]) / float(step) * 1000, rel=0.1)
        assert share == "–"  # a peak is assumed of cards that are named only
        assert bool(NUMBER.fullmatch(ratio)) == (row[1:3] == ["64", "fp32"])


def test_gpu_says_why_a_row_has_no_number(gpu, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no | such\nkernel")

    monkeypatch.setitem(gpu.module.WAYS, "eager", fail)
    gpu.main("--batches", "2")
    assert [row[4] for row in table(capsys.readouterr().out)[1:]] == ["failed: RuntimeError: no / such"] * 2
    gpu.main("--batches", "2", "--seconds", "0")
    assert [row[4] for row in table(capsys.readouterr().out)[1:]] == ["not measured: the time is over"] * 2


@mock.patch.dict(os.environ)  # where TrainingArguments leaves the backend for later trainers
@pytest.mark.parametrize("way", ["CUDA graphs", "compile"])
def test_gpu_launches_the_trainer_and_the_bare_loops_in_the_same_way(gpu, monkeypatch, way):
    launched = []
    graph, build = torch.cuda, sys.modules["train_step"].build_quiet_trainer
    monkeypatch.setattr(
        graph, "make_graphed_callables", lambda model, *_, **__: launched.append("CUDA graphs") or model
    )
    monkeypatch.setattr(torch, "compile", lambda model, **_: launched.append("compile") or model)
    monkeypatch.setattr("hf_seg.training.trainer.use_cuda_graphs", lambda training, *_: training.cuda_graphs)
    monkeypatch.setattr(
        sys.modules["train_step"], "build_quiet_trainer", lambda *a: launched.append("trainer") or build(*a)
    )
    options = SimpleNamespace(steps=1, repeats=1, trainer_steps=1)
    cells = gpu.module.row_of("SegFormer-B0", 64, "fp32", way, torch.device("cpu"), options)
    assert launched == [way, "trainer", way, way] and NUMBER.fullmatch(cells[-1])


def test_gpu_stops_a_row_that_takes_too_long(gpu, monkeypatch, capsys):
    monkeypatch.setitem(gpu.module.WAYS, "eager", lambda *_: time.sleep(60))
    gpu.main("--batches", "2", "--seconds", "1")
    assert [row[4] for row in table(capsys.readouterr().out)[1:]] == ["not measured: the time is over"] * 2


def test_gpu_share_of_the_peak(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert gpu.module.peak_of(torch.device("cuda"), "tf32") == 494
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert gpu.module.peak_of(torch.device("cuda"), "tf32") is None


def test_the_exports_of_first_day_are_recognised(program, tmp_path, capsys):
    layouts = {"CVAT": "(Pascal VOC)", "Roboflow": "(Roboflow)", "labelme": "drawn", "COCO": "drawn"}
    for name, export in program("first_day").EXPORTS.items():
        export(tmp_path / name, 5)
        assert cli.main(["init", str(tmp_path / name)]) == 0
        assert f"{layouts[name]}\n" in capsys.readouterr().out
        classes = json.loads((tmp_path / name / "classes.json").read_text())["classes"]
        assert [entry["name"] for entry in classes] == ["background", "leaf", "stone"]
