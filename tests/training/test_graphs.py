"""CUDA graphs without a GPU: `make_graphed_callables` is a stand-in that keeps PyTorch's contract."""

import json
import os
import weakref
from unittest import mock

import pytest
import torch
from helpers import TINY_MODELS
from safetensors import safe_open
from torch import nn
from transformers import SegformerForSemanticSegmentation

from hf_seg.data import load_data
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run
from hf_seg.training import trainer as trainer_module
from hf_seg.training.graphs import GraphedModel
from hf_seg.training.setup import build_initial_model, build_trainer


@pytest.fixture
def captured(monkeypatch):
    """The shapes that were captured, in order. Like the real function, the stand-in warms up by passes that change
    statistics and random numbers, and what it returns takes one shape and keeps input and gradients where they are."""
    shapes = []

    def make(module, sample_args, *, allow_unused_input):
        assert not (torch.is_autocast_enabled() and torch.is_autocast_cache_enabled())
        assert isinstance(module, nn.Module) and not module._forward_hooks and not module._forward_pre_hooks
        (sample,) = sample_args
        forward, surface = module.forward, [p for p in module.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(parameter) for parameter in surface]
        for _ in range(3):
            output = forward(sample)
            torch.autograd.grad(output, surface, torch.rand_like(output), allow_unused=allow_unused_input)
        shapes.append(tuple(sample.shape))
        alive = weakref.ref(module)

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, images, *_):
                assert images.shape == sample.shape and images.dtype == sample.dtype
                sample.copy_(images)
                with torch.enable_grad():
                    ctx.output = forward(sample)
                return ctx.output.detach()

            @staticmethod
            def backward(ctx, gradient):
                found = torch.autograd.grad(ctx.output, surface, gradient, allow_unused=allow_unused_input)
                for static, value in zip(gradients, found, strict=True):
                    static.copy_(value)
                return None, *(static.detach() for static in gradients)

        def replay(images):
            assert alive() is not None and module.training
            return Replay.apply(images, *surface)

        module.forward = replay
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return shapes


def test_batches_of_the_largest_shape_are_graphed_and_the_others_equal(captured):
    torch.manual_seed(0)
    model = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", num_labels=3, dropout=0.5)).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [torch.rand(count, 3, 32, 32) for count in (2, 3, 3, 2, 3)]

    def logits(compute):
        model.load_state_dict(weights)
        torch.manual_seed(1)  # of dropout
        return [compute(pixel_values=batch).logits.detach().clone() for batch in batches]

    eager = logits(model)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    graphed = logits(GraphedModel(model, None))
    assert captured == [(2, 3, 32, 32), (3, 3, 32, 32)]
    assert all(torch.equal(one, other) for one, other in zip(eager, graphed, strict=True))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_autocast_has_no_cache(captured, monkeypatch):
    seen = []

    def forward(self, pixel_values):
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        seen.append((*autocast, torch.is_autocast_cache_enabled()))
        return original(self, pixel_values)

    original = FCNForSemanticSegmentation.forward
    monkeypatch.setattr(FCNForSemanticSegmentation, "forward", forward)
    model = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", num_labels=3))
    logits = GraphedModel(model, torch.bfloat16)(pixel_values=torch.rand(2, 3, 32, 32), num_items_in_batch=1).logits
    assert logits.dtype == torch.float32 and {*seen} == {(True, torch.bfloat16, False)}


@pytest.fixture
def build(tmp_path):
    """A trainer of ten images in batches of four."""

    def make(name: str, arch: str, **training):
        model = {**TINY_MODELS[arch]}
        data = {"name": "synthetic_pet", "image_size": 32, "augment": "flip"}
        data |= {"max_train_samples": 10, "max_validation_samples": 2, "max_test_samples": 2}
        training = {"num_train_epochs": 2, "global_train_batch_size": 4, "eval_every_epochs": 1} | training
        training |= {"bf16": False, "report_to": "none", "disable_tqdm": True}
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": model, "data": data, "training": training}))
        (recipe,) = load_recipes([tmp_path / f"{name}.json"])
        run = Run(recipe, tmp_path / name)
        data = load_data(recipe.data)
        model, _ = build_initial_model(run, data.spec)
        return build_trainer(run, data, model, quiet=True)

    return make


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_a_training_and_one_that_goes_on_have_the_bits_of_an_eager_one(build, captured, monkeypatch, arch):
    eager = build("eager", arch)
    eager.train()
    expected = weights_of(eager)
    assert not captured and eager.summary()["cuda_graphs"] is False
    monkeypatch.setattr(trainer_module, "use_cuda_graphs", lambda *_: True)  # on a GPU, by the recipe
    graphed = build("graphed", arch)
    graphed.train()
    assert captured == [(4, 3, 32, 32)] and graphed.summary()["cuda_graphs"] is True
    again = build("graphed", arch)
    again.train(resume_from_checkpoint=str(again.run.folder / "checkpoint-3"))
    assert len(captured) == 2
    for trained in (graphed, again):
        for name, tensor in weights_of(trained).items():
            assert torch.equal(tensor, expected[name]), name
    again.release()
    assert again.graphs is None


@pytest.mark.slow
@mock.patch.dict(os.environ)  # where TrainingArguments leaves the backend for later trainers
def test_what_a_compiled_training_saves_is_the_models_own(build):
    """With the backend that only traces: code for the CPU takes minutes to compile."""
    options = {"compile": True, "torch_compile_backend": "eager"}
    trainer = build("compiled", "segformer", max_steps=2, save_total_limit=1, **options)
    assert trainer.args.torch_compile_mode == "reduce-overhead"
    trainer.train()
    assert "_orig_mod" in next(iter(trainer.model_wrapped.state_dict()))  # it was compiled
    (folder,) = trainer.run.folder.glob("checkpoint-*")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "_orig_mod" in name]
    stock, report = SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in weights_of(trainer).items():
        assert torch.equal(tensor, stock.state_dict()[name]), name
