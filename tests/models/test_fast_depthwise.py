"""The fast convolutions compute what PyTorch's do: tests compare the two, of the same weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn

from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.models.build import build_model
from hf_seg.models.fast_depthwise import DepthwiseInFp32, DepthwiseSameInFp32, FastDepthwise, fast_class
from hf_seg.models.fast_segformer import make_fast
from hf_seg.recipe.keys import ModelRecipe

SPEC = DatasetSpec(
    name="two",
    class_names=("pet", "rest"),
    palette=((255, 0, 0), (0, 0, 0)),
    label_table=build_label_table({1: 0, 2: 1}),
)


def two_of(stock):
    """A convolution, and a fast one of the same weights."""
    fast = copy.deepcopy(stock)
    fast.__class__ = fast_class(stock)
    return stock, fast


def two_that_keep_the_size(kernel, dilation, channels=4, bias=False):
    torch.manual_seed(0)
    padding = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    options = {"padding": padding, "dilation": dilation, "groups": channels, "bias": bias, "dtype": torch.float64}
    return two_of(nn.Conv2d(channels, channels, kernel, **options))


def results(module, maps):
    """Output, and gradients of the maps and of all parameters."""
    maps = maps.clone().requires_grad_()
    output = module(maps)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return output, *torch.autograd.grad((output * weights).sum(), [maps, *module.parameters()])


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([5, 7])),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    count=st.integers(1, 3),
    bias=st.booleans(),
)
def test_outputs_and_gradients_are_pytorchs(kernel, dilation, size, count, bias):
    stock, fast = two_that_keep_the_size(kernel, dilation, bias=bias)
    maps = torch.randn(count, 4, *size, dtype=torch.float64)
    for ours, theirs in zip(results(fast, maps), results(stock, maps), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_more_images_than_are_multiplied_at_once_add_up(monkeypatch):
    monkeypatch.setattr("hf_seg.models.fast_depthwise.PART", 600)  # two images of 4 × 8 × 8, and a rest of one
    stock, fast = two_that_keep_the_size((5, 5), (1, 1))
    maps = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    for ours, theirs in zip(results(fast, maps), results(stock, maps), strict=True):
        torch.testing.assert_close(ours, theirs)


SLOW_IN_BF16 = {
    "dilated": nn.Conv2d(16, 16, 5, padding=4, dilation=2, groups=16),
    "strided": nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16),
    "strided, padded as in TensorFlow": Conv2dSame(16, 16, 3, stride=2, groups=16),
}


@pytest.mark.parametrize("kind", SLOW_IN_BF16)
def test_under_autocast_its_dtypes_are_pytorchs_and_its_gradients_as_near_to_the_exact_ones(kind):
    torch.manual_seed(0)
    stock, fast = two_of(SLOW_IN_BF16[kind])
    maps = torch.randn(32, 16, 9, 8)
    exact = results(stock, maps)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = results(stock, maps), results(fast, maps)
        with torch.no_grad():
            assert fast(maps).dtype == torch.bfloat16
    for truth, their, our in zip(exact, theirs, ours, strict=True):
        assert our.dtype == their.dtype
        assert (our - truth).abs().max() <= 2 * (their - truth).abs().max()
    for ours, theirs in zip(results(fast, maps), exact, strict=True):  # without it, of fp32
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_frozen_weight_and_maps_without_a_gradient_get_none():
    _, fast = two_that_keep_the_size((3, 3), (2, 2))
    fast.requires_grad_(False)
    maps = torch.randn(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    fast(maps).sum().backward()
    assert maps.grad is not None and fast.weight.grad is None
    fast.requires_grad_(True)
    fast(maps.detach()).sum().backward()
    assert fast.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, FastDepthwise),
        ({"groups": 1}, None),
        ({"groups": 2}, None),
        ({"stride": 2}, DepthwiseInFp32),
        ({"stride": 2, "groups": 1}, None),
        ({"padding": 2}, None),
        ({"padding": "same"}, None),
        ({"padding_mode": "reflect"}, None),
        ({"kernel_size": 4, "padding": 4}, None),
        ({"dilation": 1, "padding": 1}, None),  # of 3×3: oneDNN's gradients are fast
        ({"dilation": 1, "kernel_size": 5, "padding": 2}, FastDepthwise),
    ],
)
def test_which_convolutions_change(options, expected):
    defaults = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 4, "dilation": 4, "groups": 4}
    assert fast_class(nn.Conv2d(**defaults | options)) is expected


def test_subclasses_change_only_if_they_are_known():
    assert fast_class(Conv2dSame(4, 4, 3, stride=2, groups=4)) is DepthwiseSameInFp32
    assert fast_class(Conv2dSame(4, 4, 3, dilation=2, groups=4)) is None  # its padding is not in `padding`
    assert fast_class(nn.ConvTranspose2d(4, 4, 3, dilation=2, groups=4)) is None
    _, fast = two_of(nn.Conv2d(4, 4, 3, stride=2, groups=4))
    assert fast_class(fast) is None


def test_a_model_on_a_dilated_encoder_is_built_with_it_and_computes_the_same():
    built, _ = build_model(ModelRecipe(arch="fcn", encoder="tf_efficientnet_lite0"), SPEC)
    built.double()
    fast = [module for module in built.modules() if type(module) is FastDepthwise]
    assert {module.kernel_size for module in fast} == {(3, 3), (5, 5)}
    assert {module.dilation for module in fast} >= {(2, 2), (4, 4)}
    strided = [module for module in built.modules() if type(module) is DepthwiseSameInFp32]
    assert {module.kernel_size for module in strided} == {(3, 3), (5, 5)}
    stock = copy.deepcopy(built)
    for module in stock.modules():
        if type(module) in (FastDepthwise, DepthwiseSameInFp32):
            module.__class__ = nn.Conv2d if type(module) is FastDepthwise else Conv2dSame
    assert [*stock.state_dict()] == [*built.state_dict()]
    pixel_values = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    losses = []
    for model in (built, stock):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0
        output = model(pixel_values=pixel_values, labels=torch.ones(2, 64, 64, dtype=torch.long))
        output.loss.backward()
        losses.append(output.loss)
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(built.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    make_fast(stock)
    assert [type(module) for module in stock.modules()] == [type(module) for module in built.modules()]
