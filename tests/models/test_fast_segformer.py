"""The fast SegFormer computes what transformers' does: each test compares the two, of the same weights."""

import copy
import json
import pickle
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerDropPath

from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models.build import build_image_processor, build_model, check_model
from hf_seg.models.fast_segformer import FastDecodeHead, FastDropout, make_fast
from hf_seg.problem import RecipeError
from hf_seg.recipe.keys import ModelRecipe

TINY = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 80, 128], "decoder_hidden_size": 48}
NO_DROPOUT = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
SPEC = DatasetSpec(
    name="three",
    class_names=("pet", "background", "boundary"),
    palette=((255, 0, 0), (0, 0, 0), (255, 255, 255)),
    label_table=build_label_table({1: 0, 2: 1, 3: 2}),
)


def stock_and_fast(seed=0, **config):
    """Two models of the same weights, with every one of them drawn, biases and the statistics of the norm too."""
    torch.manual_seed(seed)
    stock = SegformerForSemanticSegmentation(SegformerConfig(**{"num_labels": 3} | TINY | NO_DROPOUT | config))
    for name, tensor in stock.state_dict().items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            nn.init.normal_(tensor, float(name.endswith("norm.weight")), 0.2)
        elif name.startswith("decode_head") and tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor)  # as trained ones, so that logits are not all alike
    fast = copy.deepcopy(stock)
    make_fast(fast)
    assert is_fast(fast) and not is_fast(stock)
    return stock, fast


def is_fast(model):
    return type(model.decode_head) is FastDecodeHead


def batch(size, count=2, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, *size, generator=generator)
    return images, torch.randint(0, classes, (count, *size), generator=generator)


def assert_near(ours, theirs, tolerance, what=""):
    """The largest difference as a share of the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    difference, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert difference <= tolerance * largest, f"{what}: {difference:.1e} of {largest:.1e}"


def gradients(model, images, labels):
    model.zero_grad()
    logits = model(pixel_values=images).logits
    enlarged = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    F.cross_entropy(enlarged, labels).backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(ours, theirs, tolerance):
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # in training mode the norm takes its mean off again: what reaches biases before it is rounding alone
        rounding = tolerance / 100 * largest
        assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max() + rounding, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((64, 64), {}),
        (
            (128, 128),
            {"reshape_last_stage": False, "hidden_sizes": [16, 32, 80, 16], "num_attention_heads": [1, 2, 5, 1]},
        ),
        ((64, 64), {"strides": [2, 2, 2, 2]}),
        ((32, 32), {}),  # last map 1×1
        ((100, 164), {}),  # patches of 8×8 do not fill 25×41
        (
            (64, 64),
            {"depths": [1, 1], "hidden_sizes": [16, 32], "num_encoder_blocks": 2}
            | {key: [1, 2] for key in ("num_attention_heads", "sr_ratios", "mlp_ratios")}
            | {"patch_sizes": [7, 3], "strides": [4, 2]},
        ),
    ],
    ids=["64", "last stage not reshaped", "stride 2", "32", "odd sizes", "two stages"],
)
def test_logits_and_gradients(size, config, training):
    stock, fast = (model.train(training) for model in stock_and_fast(**config))
    images, labels = batch(size)
    ours, theirs = (model(images).logits for model in (fast, stock))
    assert_near(ours, theirs, 1e-5)
    # In 32 bits, now and then a value near zero is rounded to the other side of ReLU, and gradients differ by 1e-3, of
    # stock in 32 and in 64 bits as well.
    _, their_gradients = gradients(stock.double(), images.double(), labels)
    _, our_gradients = gradients(fast.double(), images.double(), labels)
    assert_same_gradients(our_gradients, their_gradients, 1e-9)
    assert ours.std() > 0.1


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    first_stride=st.sampled_from([2, 3, 4]),
    classes=st.integers(1, 20),
    decoder=st.sampled_from([8, 48]),
    count=st.integers(1, 3),
    channels_last=st.booleans(),
    training=st.booleans(),
)
def test_any_size_stride_and_number_of_classes(
    seed, height, width, first_stride, classes, decoder, count, channels_last, training
):
    config = {"strides": [first_stride, 2, 2, 2], "num_labels": classes, "decoder_hidden_size": decoder}
    stock, fast = (model.train(training) for model in stock_and_fast(seed, **config))
    if channels_last:
        fast.to(memory_format=torch.channels_last)
    images, labels = batch((height, width), count, classes, seed)
    theirs, their_gradients = gradients(stock.double(), images.double(), labels)
    ours, our_gradients = gradients(fast.double(), images.double(), labels)
    assert_near(ours, theirs, 1e-12)
    assert_same_gradients(our_gradients, their_gradients, 1e-9)


def test_statistics_of_the_norm_after_three_steps():
    models = [model.train() for model in stock_and_fast()]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(3):
            gradients(model, *batch((64, 64), 4, seed=step))
            optimizer.step()
    (theirs, ours) = (dict(model.decode_head.batch_norm.named_buffers()) for model in models)
    assert ours["num_batches_tracked"] == theirs["num_batches_tracked"] == 3
    assert_near(ours["running_mean"], theirs["running_mean"], 1e-5)
    assert_near(ours["running_var"], theirs["running_var"], 1e-5)


def test_weights_that_change_after_an_evaluation_count():
    stock, fast = (model.eval() for model in stock_and_fast())
    images, _ = batch((64, 64))
    with torch.no_grad():
        before = fast(images).logits
        for model in (stock, fast):
            model.decode_head.linear_fuse.weight.data.mul_(2)
            model.decode_head.batch_norm.running_var.mul_(3)
        theirs, ours = (model(images).logits for model in (stock, fast))
    assert_near(ours, theirs, 1e-5)
    assert (ours - before).abs().max() > 0.1


def test_under_autocast_no_further_from_the_truth_than_stock():
    stock, fast = (model.eval() for model in stock_and_fast())
    images, _ = batch((64, 64), 8)
    with torch.no_grad():
        truth = stock(images).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs, ours = (model(images).logits for model in (stock, fast))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    errors = [(logits - truth).square().mean().sqrt() for logits in (ours, theirs)]
    assert 0 < errors[0] <= 1.5 * errors[1], errors


def test_products_of_weights_are_of_fp32_under_autocast():
    _, fast = stock_and_fast()
    head = fast.decode_head.eval()
    parts = head.linear_fuse.weight.flatten(1).split(48, 1)
    # F P is zero but for what 16 bits cannot tell apart: rounded factors would give logits of another size
    with torch.no_grad():
        for part, each in zip(parts[::-1], head.linear_projections, strict=True):
            each.proj.weight[1::2] = each.proj.weight[::2]
            each.proj.bias.zero_()
            part[:, 1::2] = -part[:, ::2] * (1 + 1e-4)
        maps = [
            torch.rand(1, channels, side, side)
            for channels, side in zip(TINY["hidden_sizes"], (16, 8, 4, 2), strict=True)
        ]
        scale = head.batch_norm.weight * (head.batch_norm.running_var + head.batch_norm.eps).rsqrt()
        head.batch_norm.bias.copy_(head.batch_norm.running_mean * scale)  # nothing else is added
        head.classifier.bias.zero_()
        truth = head(maps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = head(maps)
    assert_near(rounded.float(), truth, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits(dtype):
    stock, fast = (model.eval() for model in stock_and_fast())
    images, _ = batch((64, 64), 4)
    with torch.no_grad():
        truth = stock(images).logits
        theirs, ours = (model.to(dtype)(images.to(dtype)).logits for model in (stock, fast))
    assert ours.dtype == dtype
    errors = [(logits - truth).square().mean().sqrt() for logits in (ours, theirs)]
    assert 0 < errors[0] <= 1.5 * errors[1], errors


def test_what_is_saved_is_stock(tmp_path):
    stock, fast = stock_and_fast()
    stock.save_pretrained(tmp_path / "stock")
    fast.save_pretrained(tmp_path / "fast")
    theirs, ours = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("stock", "fast"))
    assert ours == theirs and ours["architectures"] == ["SegformerForSemanticSegmentation"]
    assert [path.name for path in sorted((tmp_path / "fast").iterdir())] == ["config.json", "model.safetensors"]
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "fast"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(fast.state_dict()) == list(stock.state_dict())
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "fast").eval()
    images, _ = batch((64, 64))
    with torch.no_grad():
        assert_near(fast.eval()(images).logits, loaded(images).logits, 1e-5)


def test_copies_and_pickles_are_fast_too():
    _, fast = stock_and_fast()
    images, _ = batch((64, 64))
    fast.eval()
    copies = copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))
    for copied in copies:
        assert is_fast(copied) and torch.equal(copied(images).logits, fast(images).logits)


def test_gradient_checkpointing():
    _, fast = stock_and_fast(classifier_dropout_prob=0.1, hidden_dropout_prob=0.1, drop_path_rate=0.1)
    fast = fast.double()
    images, labels = batch((64, 64))
    images = images.double()
    torch.manual_seed(5)
    _, expected = gradients(fast.train(), images, labels)
    fast.gradient_checkpointing_enable()
    torch.manual_seed(5)
    _, found = gradients(fast, images, labels)
    assert_same_gradients(found, expected, 1e-9)


def test_torch_export_with_any_batch():
    stock, fast = (model.eval() for model in stock_and_fast())
    program = torch.export.export(
        fast, (), {"pixel_values": batch((64, 64))[0]}, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    for count in (1, 5):
        images, _ = batch((64, 64), count)
        with torch.no_grad():
            assert_near(program.module()(pixel_values=images).logits, stock(images).logits, 1e-5)


# -- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.001, 0.999])
def test_dropout_has_the_probability_that_it_should(p):
    torch.manual_seed(0)
    layer, count = FastDropout(p), 4_000_001
    kept = layer(torch.ones(count))
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    drawn = (kept == 0).double()
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs(drawn.mean() - p) < 4.5 * deviation
    # neighbours, and the eight elements of one draw, know nothing of each other
    for distance in (1, 7, 8):
        together = (drawn[distance:] * drawn[:-distance]).mean()
        assert abs(together - p * p) < 4.5 * (p * p * (1 - p * p) / count * 3) ** 0.5, distance
    for position in range(8):
        assert abs(drawn[position::8].mean() - p) < 5 * deviation * 8**0.5, position


def test_the_remainder_of_the_probability_counts():
    # 0.999 of 1/256: without the second draw nothing, or 1 in 256, would be dropped
    torch.manual_seed(0)
    drawn = (FastDropout(0.25 / 256)(torch.ones(8_000_000)) == 0).double().mean().item()
    assert drawn == pytest.approx(0.25 / 256, rel=0.05)


def test_dropout_follows_the_seed_and_the_state_of_torch():
    layer, ones = FastDropout(0.3), torch.ones(4, 8, 5, 5)
    torch.manual_seed(3)
    first, state = layer(ones), torch.get_rng_state()
    second = layer(ones)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(layer(ones), second)
    torch.manual_seed(3)
    assert torch.equal(layer(ones), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dropout_scales_values_and_gradients(dtype, channels_last):
    values = torch.rand(3, 8, 5, 7, dtype=dtype) + 1
    if channels_last:
        values = values.to(memory_format=torch.channels_last)
    values.requires_grad_()
    dropped = FastDropout(0.5)(values)
    dropped.sum().backward()
    kept = dropped != 0
    assert dropped.dtype == dtype and dropped.stride() == values.stride() and kept.any() and not kept.all()
    assert torch.equal(dropped[kept], 2 * values[kept]) and torch.equal(values.grad, 2.0 * kept.to(dtype))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(p):
    values = torch.rand(10)
    assert torch.equal(FastDropout(p)(values), values * (1 - p))
    assert torch.equal(FastDropout(p).eval()(values), values)


# -- where it is on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [{"arch": "segformer"}, {"arch": "auto", "path": "segformer"}])
def test_the_key(section):
    for fast in (True, False):
        torch.manual_seed(0)
        built, _ = build_model(ModelRecipe(**section, config=TINY, fast_head=fast), SPEC)
        assert is_fast(built) == fast and type(built) is SegformerForSemanticSegmentation
    assert is_fast(build_model(ModelRecipe(**section, config=TINY), SPEC)[0])


def test_the_key_is_refused_for_others():
    with pytest.raises(RecipeError, match="model.fast_head: is for SegFormer only, and mobilevit is a model of type"):
        check_model(ModelRecipe(arch="auto", path="mobilevit", fast_head=False))


def test_a_model_that_was_trained_elsewhere_is_fast_in_inference(tmp_path):
    stock, _ = stock_and_fast()
    stock.save_pretrained(tmp_path)
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(tmp_path)
    segmenter = load_segmenter(tmp_path, device="cpu")
    assert is_fast(segmenter.model)
    images, _ = batch((64, 64))
    with torch.no_grad():
        assert_near(segmenter.scores(images), stock.eval()(images).logits, 1e-5)


# -- several processes ------------------------------------------------------------------------------------------------


def rank_gradients(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        _, fast = stock_and_fast()
        images, labels = batch((64, 64), 4)
        half = slice(2 * rank, 2 * rank + 2)
        model = DistributedDataParallel(fast.double().eval())  # so that both halves have the statistics of the whole
        _, found = gradients(model, images[half].double(), labels[half])
        if rank == 0:
            torch.save({name.removeprefix("module."): gradient for name, gradient in found.items()}, folder / "found")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_gradients, (port, tmp_path), nprocs=2)
    stock, _ = stock_and_fast()
    images, labels = batch((64, 64), 4)
    _, expected = gradients(stock.double().eval(), images.double(), labels)
    assert_same_gradients(torch.load(tmp_path / "found"), expected, 1e-9)


def test_drop_path_and_dropout_are_there():
    """That the comparisons above switch off what is random."""
    stock, fast = stock_and_fast(classifier_dropout_prob=0.1, drop_path_rate=0.1)
    assert any(isinstance(module, SegformerDropPath) for module in fast.modules())
    assert type(fast.decode_head.dropout) is FastDropout and type(stock.decode_head.dropout) is nn.Dropout
    assert all(type(module) is not nn.Dropout for module in fast.modules())
