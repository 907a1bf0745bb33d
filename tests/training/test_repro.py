"""`hf-seg repro`: the first steps of a run, twice, and what has changed since the run."""

import json
import shutil
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

from hf_seg import cli
from hf_seg.scoring.loss import SegLoss
from hf_seg.training import repro, setup


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / "a")


@pytest.fixture
def ask(capsys):
    """`ask(run, ...)`: exit status, lines of stdout, stderr."""

    def ask(*arguments):
        capsys.readouterr()
        status = cli.main(["repro", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err

    return ask


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bits_twice(run, ask):
    before = contents(run)
    status, lines, _ = ask(run)
    assert status == 0
    assert lines[0].startswith(f"{run}: trained 3 steps twice, with ")
    assert lines[1] == "environment, data and first weights: as in the record"
    assert [line.partition(":")[0] for line in lines[2:5]] == ["step 1", "step 2", "step 3"]
    assert all(line.endswith(", same") for line in lines[2:5])
    assert lines[5].startswith("weights: same, SHA-256 ")
    assert lines[-1] == "same: both trainings gave the same bits"
    # the run's only epoch ends with the third step: its logged mean is that of the three losses
    history = json.loads((run / "results.json").read_text())["train"]["history"]
    (logged,) = [entry["loss"] for entry in history if "loss" in entry]
    assert lines[6] == f"logged at step 3: loss {logged!r} then, {logged!r} now"
    losses = [float(line.split()[3].rstrip(",")) for line in lines[2:5]]
    assert sum(losses) / 3 == pytest.approx(logged, abs=1e-4)
    assert contents(run) == before


def test_what_has_changed_is_reported(run, ask):
    def change(results):
        results["environment"]["torch"] = "1.0"
        results["data"]["fingerprint"] = "0123456789abcdef"
        results["train"]["precision"] = "bf16"

    edit(run / "results.json", change)
    status, lines, _ = ask(run, "--steps", 1)
    assert status == 0 and lines[0].startswith(f"{run}: trained 1 steps twice") and lines[-1].startswith("same: ")
    assert f"changed: torch: 1.0 then, {version('torch')} now" in lines
    assert "changed: precision: bf16 then, fp32 now" in lines
    (data,) = [line for line in lines if line.startswith("changed: data fingerprint: 0123456789abcdef then, ")]
    assert len([line for line in lines if line.startswith("changed: ")]) == 3
    # an epoch's mean cannot be compared with the first of its steps
    assert not [line for line in lines if line.startswith("logged")]


def test_other_bits_are_found(run, ask, monkeypatch):
    seeds = iter([0, 1])
    monkeypatch.setattr(setup, "set_seed", lambda seed: torch.manual_seed(next(seeds)))
    status, lines, _ = ask(run, "--steps", 2)
    assert status == 1
    assert [line for line in lines if line.startswith("step 1: loss ") and line.endswith(": DIFFERENT")]
    (weights,) = [line for line in lines if line.startswith("weights: ")]
    assert weights.startswith("weights: DIFFERENT in ") and weights.endswith(
        ".stages.0.patch_embeddings.proj.weight"
    ), weights
    assert lines[-1] == "DIFFERENT: see above"


def test_one_bit_of_one_tensor(run, ask, monkeypatch):
    trainings = []
    genuine = repro._train

    def flip(*arguments):
        trainings.append(genuine(*arguments))
        if len(trainings) == 2:
            trainings[1].weights["decode_head.classifier.bias"].view(torch.int32)[1] ^= 1
        return trainings[-1]

    monkeypatch.setattr(repro, "_train", flip)
    status, lines, _ = ask(run, "--steps", 1, "--json")
    report = json.loads("\n".join(lines))
    assert status == 1 and report["same"] is False
    assert report["tensors"] == ["decode_head.classifier.bias"]
    assert report["losses"][0][0] == report["losses"][0][1] and report["weights"][0] != report["weights"][1]


def test_refused(run, ask, tmp_path):
    assert ask(run, "--steps", 0)[0] == 2
    (tmp_path / "empty").mkdir()
    status, lines, error = ask(tmp_path / "empty")
    assert status == 2 and not lines
    assert (
        error
        == f"error: {tmp_path / 'empty'}: holds no results.json, so it is not a finished run; name another folder\n"
    )
    record = (run / "run.json").read_text()
    (run / "run.json").write_text("{")
    status, _, error = ask(run)
    assert status == 2 and error.startswith(f"error: {run / 'run.json'}: cannot be read (is not JSON")
    (run / "run.json").write_text(record)
    edit(run / "run.json", lambda record: record["recipe"]["data"].update(name="oxford_pet"))
    status, _, error = ask(run, "--data-root", tmp_path / "nowhere")
    assert status == 2 and error.startswith("error: ") and "nowhere" in error
    edit(run / "results.json", lambda results: results["recipe"]["data"].update(root="/gone"))
    status, _, error = ask(run)
    assert status == 2 and "its data was in /gone, which does not exist; name its folder with --data-" in error
    (run / "results.json").write_text("{}")
    status, _, error = ask(run)
    assert status == 2 and "results.json: is not the record of a finished run (format is missing)" in error


def test_the_encoder_of_another_run(run, ask):
    other = shutil.copytree(run, run.parent / "b")
    for path in (other / "run.json", other / "results.json"):
        edit(path, lambda c: c["recipe"]["model"].update(init="checkpoint", encoder_weights="a"))
    edit(other / "results.json", lambda c: c["model"]["init"]["encoder"].update(source="a"))
    status, lines, _ = ask(other, "--steps", 1)
    assert status == 0
    assert [line for line in lines if line.startswith("changed: encoder's first weights: None then, ")]
    shutil.rmtree(run)
    status, _, error = ask(other)
    assert status == 2 and "starts from the encoder of the run a, which is not in the same folder" in error


def test_the_loss_over_rows_is_the_loss(monkeypatch):
    logits = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(3 * 16 * 24).reshape(3, 16, 24) % 5
    labels[1] = 255
    results = []
    for deterministic in (False, True):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda value=deterministic: value)
        loss = SegLoss({"cross_entropy": 1, "focal": 1})(SimpleNamespace(logits=logits), labels)
        results.append((loss, *torch.autograd.grad(loss, logits)))
    torch.testing.assert_close(*results)
