"""Learning rates of encoder and head, and the schedule."""

import pytest
import torch

from hf_seg.data import load_data
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.weights import encoder_of
from hf_seg.problem import RecipeError
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import TrainingRecipe
from hf_seg.runs.folder import Run
from hf_seg.training import rates
from hf_seg.training.arguments import refuse_sharding
from hf_seg.training.rates import exponential, split_groups
from hf_seg.training.setup import build_initial_model, build_trainer


@pytest.fixture
def build(write_recipe, tmp_path):
    """A trainer of one epoch of four steps."""

    def start(arch, **training):
        data = {"image_size": 32, "max_validation_samples": 2}
        path = write_recipe("a", arch=arch, data=data, training={"num_train_epochs": 1} | training)
        (recipe,) = load_recipes([path])
        run, data = Run(recipe, tmp_path / "run"), load_data(recipe.data)
        return build_trainer(run, data, build_initial_model(run, data.spec)[0], quiet=True)

    return start


def values(trainer, key):
    """The value of each parameter's group."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {names[parameter]: group[key] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_encoder_and_head(build, arch):
    plain, slower = build(arch), build(arch, encoder_lr_multiplier=0.1)
    assert len(plain.create_optimizer().param_groups) == 2  # Trainer's: with and without weight decay
    assert set(values(plain, "lr").values()) == {1e-3}
    prefix = {"fcn": "encoder.", "segformer": "segformer."}[arch]
    expected = {name: 1e-4 if name.startswith(prefix) else 1e-3 for name in values(plain, "lr")}
    assert values(slower, "lr") == pytest.approx(expected) and {*expected.values()} == {1e-4, 1e-3}
    assert values(slower, "weight_decay") == values(plain, "weight_decay")
    slower.create_scheduler(num_training_steps=8)
    for step in range(4):
        assert slower._get_learning_rate() == 1e-3, step  # the head's
        slower.optimizer.step()
        slower.lr_scheduler.step()
    assert slower.lr_scheduler.get_last_lr() == pytest.approx([0.98e-3] * 2 + [0.98e-4] * 2)


def test_a_step_moves_the_encoder_less(build):
    trainer = build("fcn", encoder_lr_multiplier=0.1, weight_decay=0.0, max_steps=1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    encoder = {id(parameter) for parameter in encoder_of(trainer.model).parameters()}
    for name, value in trainer.model.named_parameters():
        # Adam's first step is the rate, or less where the gradient is as small as its epsilon
        moved = (value - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-4 if id(value) in encoder else 1e-3, rel=0.01), name


@pytest.mark.parametrize(
    ("encoder", "powers"),
    [
        # the stem, four stages of one block, and the head in the place of timm's classifier
        ("resnet10t", {"conv1.0.weight": 5, "layer1.0.conv1.weight": 4, "layer4.0.bn2.bias": 1}),
        # stages of 2, 2, 6 and 2 blocks, which timm has flattened: stages.0.blocks is stages_0.blocks
        ("convnext_atto", {"stem_0.weight": 13, "stages_0.blocks.0.conv_dw.weight": 12}),
    ],
)
def test_layers_of_the_encoder(encoder, powers):
    model = FCNForSemanticSegmentation(FCNConfig(encoder=encoder, output_stride=32, num_labels=3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    split_groups(optimizer, model, TrainingRecipe(layer_lr_decay=0.5, encoder_lr_multiplier=3))
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    for name, power in powers.items():
        assert rate[id(parameters[f"encoder.{name}"])] == pytest.approx(0.1 * 3 * 0.5**power), name
    assert optimizer.param_groups[0]["lr"] == rate[id(parameters["classifier.0.weight"])] == 0.1
    assert len(rate) == len(parameters)


def test_an_encoder_without_layers(monkeypatch):
    model = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", num_labels=3))
    monkeypatch.setattr(rates, "_layer_scales", lambda *_: {})
    with pytest.raises(RecipeError, match="training.layer_lr_decay: timm does not say .* of resnet10t its param"):
        split_groups(torch.optim.AdamW(model.parameters()), model, TrainingRecipe(layer_lr_decay=0.5))


def test_a_warm_up_by_hand():
    training = TrainingRecipe(global_train_batch_size=8, lr_decay_per_epoch=0.5)

    def factors(warmup):
        factor = exponential(training, steps_per_epoch=3, warmup=warmup)
        return [factor(step) for step in range(8)]

    assert factors(0) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert factors(4) == [0, 1 / 4, 2 / 4, 3 / 4 * 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_rate_falls_after_each_epoch_though_its_last_batch_is_dropped(build):
    training = {"num_train_epochs": 3, "global_train_batch_size": 12, "lr_decay_per_epoch": 0.5}
    trainer = build("segformer", dataloader_drop_last=True, **training)  # two batches of 12, and 8 pairs
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.summary()["history"] if "loss" in entry]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.25e-3])  # each of the epoch's last step


@pytest.mark.parametrize("warmup", [2, 0.5])  # of four steps
def test_a_training_with_a_warm_up(build, warmup):
    trainer = build("segformer", warmup_steps=warmup, logging_strategy="steps", logging_steps=1)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.summary()["history"] if "loss" in entry]
    assert rates == pytest.approx([0, 0.5e-3, 1e-3, 1e-3])


def test_a_model_that_is_divided_over_the_ranks():
    refuse_sharding(TrainingRecipe(), sharded=True)
    refuse_sharding(TrainingRecipe(ema_decay=0.9), sharded=False)
    for key in ("ema_decay", "encoder_lr_multiplier", "layer_lr_decay"):
        with pytest.raises(RecipeError, match=f"training.{key}: is not tested with FSDP and DeepSpeed; leave it out"):
            refuse_sharding(TrainingRecipe(**{key: 0.5}), sharded=True)
