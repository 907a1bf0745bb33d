"""training.ema_decay: what is averaged, what is scored and saved, and a training that goes on from a checkpoint."""

import shutil

import pytest
import torch
from torch import nn
from transformers import SegformerForSemanticSegmentation, TrainerCallback, TrainerState

from hf_seg.data import load_data
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run
from hf_seg.training.average import RAW, WeightAverage
from hf_seg.training.setup import build_initial_model, build_trainer


class Raw(TrainerCallback):
    """Notes the weights after each step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def test_the_rule_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(model, decay=0.4)

    def step(number, weight, mean):
        nn.init.constant_(model[0].weight, weight)
        model[1].running_mean.fill_(mean)
        model[1].num_batches_tracked.fill_(number)
        average.on_step_end(None, TrainerState(global_step=number), None, model=model)
        linear, norm = average.ema.module
        return linear.weight.item(), norm.running_mean.item(), norm.num_batches_tracked.item()

    assert step(1, 8.0, 1.0) == (8.0, 1.0, 1)  # the initial weights are forgotten
    share = 1 - 2 ** (-2 / 3)  # 0.37
    second = share * 8 + (1 - share) * 4, share * 1 + (1 - share) * 3
    assert step(2, 4.0, 3.0) == pytest.approx((*second, 2))
    # 1 - 3^(-2/3) is 0.52, and more than the recipe's
    third = 0.4 * second[0] + 0.6 * 1, 0.4 * second[1] + 0.6 * 2
    assert step(3, 1.0, 2.0) == pytest.approx((*third, 3))

    with pytest.raises(RuntimeError), average.placed_in(model):
        assert (model[0].weight.item(), model[1].running_mean.item()) == pytest.approx(third)
        raise RuntimeError
    assert (model[0].weight.item(), model[1].running_mean.item()) == (1, 2)
    assert average.ema.module[0].weight.item() == pytest.approx(third[0])


@pytest.fixture
def build(write_recipe, tmp_path):
    """A trainer of three epochs of two steps, in a folder of `name`."""

    def start(name, callbacks=(), **training):
        data = {"augment": "standard", "image_size": 32, "max_train_samples": 16, "max_validation_samples": 4}
        training = {"num_train_epochs": 3, "save_total_limit": None, "learning_rate": 0.01} | training
        (recipe,) = load_recipes([write_recipe("a", data=data, training=training)])
        run = Run(recipe, tmp_path / name)
        data = load_data(recipe.data)
        return build_trainer(run, data, build_initial_model(run, data.spec)[0], callbacks, quiet=True)

    return start


def test_the_average_is_scored_and_saved_and_does_not_change_the_training(build, tmp_path):
    plain, raw = build("plain"), Raw()
    plain.train()
    averaged = build("averaged", [raw], ema_decay=0.45)
    averaged.train()

    def losses(trainer):
        return [entry["loss"] for entry in trainer.summary()["history"] if "loss" in entry]

    assert losses(averaged) == losses(plain)

    expected, steps = {}, 0
    for steps, weights in enumerate(raw.steps, 1):
        share = min(0.45, 1 - steps ** (-2 / 3))
        for name, value in weights.items():
            old = expected.get(name, torch.zeros(()))
            expected[name] = share * old + (1 - share) * value.double() if value.is_floating_point() else value

    def weights_in(folder):
        return SegformerForSemanticSegmentation.from_pretrained(folder).state_dict()

    checkpoint = tmp_path / "averaged" / "checkpoint-6"
    saved, kept = weights_in(checkpoint), torch.load(checkpoint / RAW, weights_only=True)
    assert steps == 6 and saved.keys() == expected.keys() == kept.keys()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name].double(), value.double(), rtol=1e-5, atol=1e-7, msg=name)
        assert torch.equal(kept[name], raw.steps[-1][name]), name
    assert not torch.allclose(saved["decode_head.classifier.weight"], kept["decode_head.classifier.weight"], rtol=1e-3)

    # the scores of each validation are those of what its checkpoint holds, and the best one is what the run ends with
    validated = {entry["step"]: entry for entry in averaged.summary()["history"] if "eval_loss" in entry}
    then, now = validated[averaged.state.best_global_step], averaged.validate()
    assert now["loss"] == pytest.approx(then["eval_loss"], rel=1e-6) and now["mean_iou"] == then["eval_mean_iou"]
    best = weights_in(tmp_path / "averaged" / f"checkpoint-{averaged.state.best_global_step}")
    assert all(torch.equal(best[name], value) for name, value in averaged.model.state_dict().items())


def test_a_resumed_training_has_the_bits_of_an_undisturbed_one(build, tmp_path):
    keys = {"ema_decay": 0.9, "encoder_lr_multiplier": 0.5}
    build("whole", **keys).train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    build("resumed", **keys).train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"))
    whole, resumed = (tmp_path / name / "checkpoint-6" for name in ("whole", "resumed"))
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    for name in (RAW, "optimizer.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (whole, resumed))
        torch.testing.assert_close(first, second, rtol=0, atol=0, msg=name)
