import io
import re
import sys

import pytest
from transformers.utils import logging

from hf_seg.data import load_data
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run
from hf_seg.training.setup import build_initial_model, build_trainer
from hf_seg.training.table import COLUMNS, _worst


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def train(write_recipe, tmp_path, monkeypatch):
    """Three epochs of two steps, validated after the second and the third; gives the trainer."""

    monkeypatch.setattr(logging, "_tqdm_active", False)  # as in a launch

    def start(**training):
        training = {"num_train_epochs": 3, "eval_every_epochs": 2} | training
        path = write_recipe("a", data={"max_train_samples": 16, "max_test_samples": 2}, training=training)
        (recipe,) = load_recipes([path])
        run, data = Run(recipe, tmp_path / "run"), load_data(recipe.data)
        trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0])
        trainer.train()
        return trainer

    return start


def test_a_row_an_epoch(train, capsys):
    capsys.readouterr()
    trainer = train(disable_tqdm=False)
    trainer.validate()
    trainer.test()
    out, err = capsys.readouterr()
    assert "0/6" not in err  # no terminal: no bar
    begin, header, *rows = out.splitlines()
    assert re.fullmatch(r"SegFormer, 0\.\d M parameters; Generated pets, 16 pairs; cpu, fp32; batches of 8", begin)
    assert len(header) == 79 and all(len(row) <= 79 for row in rows)

    def cells(row):
        ends = [sum([*COLUMNS.values()][: count + 1]) + count for count in range(len(COLUMNS))]
        parts = [row[end - width : end].strip() for end, width in zip(ends, COLUMNS.values(), strict=True)]
        return dict(zip(COLUMNS, parts, strict=True))

    assert [cells(row)["epoch"] for row in rows] == ["1", "2", "3", "best", "test"]
    history = trainer.summary()["history"]
    assert [cells(row)["train"] for row in rows] == [f"{e['loss']:.4f}" for e in history if "loss" in e] + ["", ""]
    validated = [(f"{e['eval_loss']:.4f}", f"{e['eval_mean_iou']:.4f}") for e in history if "eval_loss" in e]
    shown = [(cells(row)["valid"], cells(row)["mIoU"]) for row in rows]
    assert shown[0] == ("", "") and shown[1:3] == validated and shown[3] in validated
    assert cells(rows[4])["worst two, IoU in %"] == _worst(trainer.scores["per_category_iou"])  # of the test
    assert [cells(row)["left"] != "" for row in rows] == [True, True, True, False, False]
    assert cells(rows[2])["left"] == "0:00:00"
    assert all(float(cells(row)["img/s"]) > 0 for row in rows[:3])

    trainer.log({"validation_loss": 181.54321, "validation_mean_iou": 0.5})  # as of a first epoch from other weights
    (row,) = capsys.readouterr().out.splitlines()
    assert (cells(row)["valid"], cells(row)["mIoU"]) == ("181.54", "0.5000")


def test_rows_of_steps(train, capsys):
    capsys.readouterr()
    train(num_train_epochs=1, logging_strategy="steps", logging_steps=1)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["0.5", "1", "1"]


@pytest.mark.parametrize("off", [False, True])
def test_one_bar_on_a_terminal_unless_the_recipe_has_none(train, monkeypatch, off):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    train(disable_tqdm=off).validate()
    shown = terminal.getvalue()
    assert ("0/6" in shown) is not off
    assert "\n" not in shown and (off or re.search(r"\r +\r$", shown))  # never two lines, and nothing is left


def test_a_failed_step_leaves_no_bar(train, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(ValueError, match="spoilt"):
        monkeypatch.setattr("hf_seg.training.trainer.SegTrainer.check_losses", lambda *_, **__: int("spoilt"))
        train(disable_tqdm=False)
    assert re.search(r"\r +\r$", terminal.getvalue())


def test_the_names_of_the_worst_classes_are_cut_to_the_column():
    assert _worst({"boundary": 0.124, "background": 0.9, "foreground": 0.336}) == "boundary 12, foreground 34"
    assert _worst({"sky": 0.9, "car": 0, "traffic light (all)": 0.1}) == "car 0, traffic light (… 10"
    assert _worst({"one": 1.0}) == "one 100" and _worst({}) == ""


def test_a_warm_up_that_does_not_end_is_said(train, capsys):
    train(max_steps=2, warmup_steps=9)
    assert "\nthe warm-up of 9 steps is longer than this training of 2\n" in capsys.readouterr().out
