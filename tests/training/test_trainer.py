from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_seg.data import load_data
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.problem import RecipeError, Refusal
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import TrainingRecipe
from hf_seg.runs.folder import Run
from hf_seg.scoring.confusion import mean_iou
from hf_seg.training import arguments
from hf_seg.training.arguments import (
    build_training_arguments,
    checkpoints_kept,
    count_steps,
    eval_batch_size,
    per_device_batch_size,
    precision_of,
    use_channels_last,
    use_cuda_graphs,
    use_sync_batch_norm,
)
from hf_seg.training.checkpoints import load_weights
from hf_seg.training.setup import build_initial_model, build_trainer


def tiny(arch, seed):
    torch.manual_seed(seed)
    if arch == "fcn":
        return FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", num_labels=3))
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32}
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes))


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_load_weights_loads_every_tensor(arch, tmp_path, capsys):
    saved, model = tiny(arch, 0), tiny(arch, 1)
    saved.save_pretrained(tmp_path)
    capsys.readouterr()
    load_weights(model, str(tmp_path))
    assert not capsys.readouterr().err  # no bar of transformers
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_load_weights_refuses_what_is_not_whole(arch, tmp_path):
    saved = tiny(arch, 0)
    state = saved.state_dict()
    missing = next(name for name in state if name.endswith("classifier.weight") or name == "classifier.4.weight")
    saved.save_pretrained(tmp_path, state_dict={name: t for name, t in state.items() if name != missing})
    with pytest.raises(Refusal, match=f"incomplete .*missing_keys.*{missing}"):
        load_weights(tiny(arch, 1), str(tmp_path))


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_load_weights_refuses_another_model(arch, tmp_path):
    tiny(arch, 0).save_pretrained(tmp_path)
    other = tiny("segformer" if arch == "fcn" else "fcn", 1)
    with pytest.raises(Refusal, match="is a checkpoint with model_type .* --overwrite"):
        load_weights(other, str(tmp_path))
    model = tiny(arch, 1)
    model.config.num_labels = 19
    with pytest.raises(Refusal, match="is a checkpoint with num_labels 3, but the recipe's model has 19"):
        load_weights(model, str(tmp_path))


@pytest.mark.parametrize(
    "bf16, fp16, with_bf16, without",
    [
        ("auto", "auto", "bf16", "fp16"),  # without: a T4 or a V100
        ("auto", False, "bf16", "fp32"),
        (False, "auto", "fp32", "fp32"),
        (True, "auto", "bf16", "bf16"),
        ("auto", True, "fp16", "fp16"),
        (False, True, "fp16", "fp16"),
    ],
)
def test_precision_follows_the_recipe_and_the_device(monkeypatch, bf16, fp16, with_bf16, without):
    training, flags = TrainingRecipe(bf16=bf16, fp16=fp16), torch.cpu.get_capabilities()
    for there, expected in ((True, with_bf16), (False, without)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        assert precision_of(training, torch.device("cuda")) == expected
    if fp16 is True:
        with pytest.raises(RecipeError, match="training.fp16: loss scaling needs a GPU, but this launch .* cpu; set"):
            precision_of(training, torch.device("cpu"))
        return
    own = "bf16" if bf16 is True or bf16 and (flags.get("avx512_bf16") or flags.get("amx_bf16")) else "fp32"
    assert precision_of(training, torch.device("cpu")) == own
    assert precision_of(training, torch.device("mps")) == ("bf16" if bf16 is True else "fp32")


def test_memory_layout_follows_the_recipe_and_the_device():
    cpu = torch.device("cpu")
    for wanted in (True, False):
        assert use_channels_last(TrainingRecipe(channels_last=wanted), cpu) is wanted
    assert use_channels_last(TrainingRecipe(), cpu) is True
    assert use_channels_last(TrainingRecipe(), torch.device("mps")) is False


def test_batch_norm_is_synchronised_where_ranks_have_few_images():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    auto = TrainingRecipe(global_train_batch_size=64)
    assert [use_sync_batch_norm(auto, ranks, gpu) for ranks in (1, 2, 4, 8)] == [False, False, False, True]
    assert use_sync_batch_norm(TrainingRecipe(gradient_accumulation_steps=4), 2, gpu) is True
    assert use_sync_batch_norm(TrainingRecipe(sync_batch_norm=True), 2, gpu) is True
    assert use_sync_batch_norm(TrainingRecipe(sync_batch_norm=False), 8, gpu) is False
    assert use_sync_batch_norm(auto, 8, cpu) is False
    assert use_sync_batch_norm(TrainingRecipe(sync_batch_norm=True), 1, cpu) is False
    with pytest.raises(
        RecipeError, match="sync_batch_norm: PyTorch supports it only on GPUs, .* 2 processes on cpu; set"
    ):
        use_sync_batch_norm(TrainingRecipe(sync_batch_norm=True), 2, cpu)


def test_cuda_graphs_need_one_gpu_and_one_process():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    graphs = TrainingRecipe(cuda_graphs=True)
    assert use_cuda_graphs(graphs, 1, gpu) is True
    assert use_cuda_graphs(TrainingRecipe(), 1, gpu) is use_cuda_graphs(TrainingRecipe(), 2, cpu) is False
    for processes, device, here in ((1, cpu, "computes on cpu"), (2, gpu, "has 2 processes")):
        with pytest.raises(RecipeError, match=f"cuda_graphs: they need one GPU and one process, .* {here}; set"):
            use_cuda_graphs(graphs, processes, device)


@pytest.mark.parametrize("graphs", [False, True])
def test_no_thread_pins_memory_while_a_graph_is_captured(write_recipe, monkeypatch, tmp_path, graphs):
    (recipe,) = load_recipes([write_recipe("a", training={"cuda_graphs": graphs, "fp16": False})])
    gpu = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    monkeypatch.setattr(arguments, "PartialState", lambda: gpu)
    assert build_training_arguments(Run(recipe, tmp_path / "run"), 3).dataloader_pin_memory is not graphs


@pytest.mark.parametrize("installed, trackers", [(["tensorboard", "trackio"], ["tensorboard"]), (["trackio"], [])])
def test_curves_stay_on_this_machine_unless_the_recipe_names_a_tracker(
    write_recipe, monkeypatch, tmp_path, installed, trackers
):
    (recipe,) = load_recipes([write_recipe("a", training={"report_to": "auto"})])
    finder = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name in installed))
    monkeypatch.setattr(arguments, "importlib", finder)
    built = build_training_arguments(Run(recipe, tmp_path / "run"), 3)
    assert built.report_to == trackers and built.run_name == "a"


@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_synchronised_batch_norm_keeps_the_tensors_of_a_model(arch):
    model = tiny(arch, 0)
    before, norms = model.state_dict(), [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    converted = convert_sync_batchnorm(model)
    assert converted is model and norms
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == len(norms)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name].data_ptr(), name


def test_fewer_images_are_evaluated_at_a_time_where_there_are_many_classes_and_pixels():
    # training batch, classes, image size
    assert eval_batch_size(64, 3, (64, 64)) == eval_batch_size(8, 19, (64, 64)) == 64  # as the study's recipes have it
    assert eval_batch_size(1, 100, (128, 128)) == 5
    assert eval_batch_size(8, 150, (512, 512)) == 8  # what can be trained on can be evaluated
    assert eval_batch_size(1, 150, (2048, 2048)) == 1
    assert eval_batch_size(256, 3, (64, 64)) == 64


def test_all_checkpoints_are_kept_when_there_is_no_limit():
    assert checkpoints_kept(TrainingRecipe()) == 2
    assert checkpoints_kept(TrainingRecipe(arguments={"save_total_limit": 1})) == 2  # the newest one and the best one
    assert checkpoints_kept(TrainingRecipe(arguments={"save_total_limit": 5})) == 5
    every = TrainingRecipe(num_train_epochs=5, eval_every_epochs=2, arguments={"save_total_limit": None})
    assert checkpoints_kept(every) == 3


@pytest.fixture
def trainer(write_recipe, tmp_path):
    (recipe,) = load_recipes([write_recipe("a", training={"per_device_eval_batch_size": 4})])
    run, data = Run(recipe, tmp_path / "run"), load_data(recipe.data)
    model, _ = build_initial_model(run, data.spec)
    return build_trainer(run, data, model)


def test_the_size_of_the_batches_does_not_change_the_scores(trainer):
    small = trainer.validate()
    trainer.args.per_device_eval_batch_size = 64
    large = trainer.validate()
    assert small["confusion_matrix"] == large["confusion_matrix"] and small["mean_iou"] == large["mean_iou"]
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-6)


def test_workers_score_the_pictures_of_each_split_and_all_of_them(write_recipe, tmp_path):
    """Trainer has validation's loader for both as long as its workers live, and drops the last batch of each."""
    training = {"dataloader_num_workers": 1, "dataloader_drop_last": True, "per_device_eval_batch_size": 4}
    data = {"image_size": 32, "max_train_samples": 10, "max_validation_samples": 6}
    (recipe,) = load_recipes([write_recipe("a", data=data, training=training)])
    run, data = Run(recipe, tmp_path / "run"), load_data(recipe.data)
    trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0])
    for name, scores in (("validation", trainer.validate()), ("test", trainer.test())):
        labels = data.prepared[name].count_labels()[:3]
        assert [sum(row) for row in scores["confusion_matrix"]] == labels.tolist(), name
    assert len(trainer.get_train_dataloader()) == 1 and trainer.args.dataloader_drop_last
    of_validation = trainer.get_eval_dataloader()
    assert of_validation is trainer.get_eval_dataloader(trainer.eval_dataset)  # as each validation asks for it
    native = trainer.scores["native_per_image"].sum(axis=0)
    assert trainer.scores["native"]["mean_iou"] == pytest.approx(mean_iou(native))


def test_native_scores_take_as_many_pictures_at_a_time_as_an_evaluation(trainer, monkeypatch):
    seen, predict = [], trainer.predict_logits
    monkeypatch.setattr(trainer, "predict_logits", lambda images: seen.append(len(images)) or predict(images))
    trainer.test()
    assert max(seen) == 4 and sum(seen) == 20  # those of the evaluation, too


@pytest.mark.parametrize(
    ("keys", "arguments", "expected"),
    [
        ({}, {}, 9),
        ({"gradient_accumulation_steps": 4}, {}, 9),
        ({"gradient_accumulation_steps": 4}, {"dataloader_drop_last": True}, 6),  # as without accumulation
        ({}, {"dataloader_drop_last": True}, 6),
        ({"global_train_batch_size": 64}, {"dataloader_drop_last": False}, 3),
        ({}, {"max_steps": 3}, 3),
    ],
)
def test_steps_are_counted_as_trainer_does(trainer, keys, arguments, expected):
    training = replace(TrainingRecipe(num_train_epochs=3, global_train_batch_size=12, arguments=arguments), **keys)
    args = trainer.args
    args.num_train_epochs, args.max_steps = training.num_train_epochs, arguments.get("max_steps", -1)
    args.per_device_train_batch_size = per_device_batch_size(training, 1)
    args.gradient_accumulation_steps = training.gradient_accumulation_steps
    trainer.run.recipe = replace(trainer.run.recipe, training=training)
    trainer._train_batch_size = args.train_batch_size
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    assert count_steps(training, 32) == steps == expected


def test_balanced_class_weights_are_counted_from_the_training_masks_and_recorded(write_recipe, tmp_path):
    training = {"class_weights": "balanced", "num_train_epochs": 1, "max_steps": 1}
    (recipe,) = load_recipes([write_recipe("a", training=training)])
    data = load_data(recipe.data)
    run = Run(recipe, tmp_path / "run")
    trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0])
    labels = data.prepared["train"].labels
    counts = [(labels == index).sum() for index in range(3)]
    weights = {name: sum(counts) / 3 / count for name, count in zip(data.spec.class_names, counts, strict=True)}
    trainer.train()
    assert trainer.summary()["class_weights"] == pytest.approx(weights)


@pytest.mark.parametrize("where", ["prediction_step", "compute_metrics", "_score_native"])
def test_an_evaluation_that_is_out_of_memory(trainer, monkeypatch, where):
    def take(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer, where, take)
    with pytest.raises(Refusal, match="cpu is out of memory in evaluation, .* set training.per_device_eval_batch"):
        trainer.test()


@pytest.mark.parametrize("own", [{}, {"lr_scheduler_kwargs": {"patience": 0}}])
def test_a_schedule_that_follows_the_score_knows_that_more_is_better(write_recipe, tmp_path, own):
    (recipe,) = load_recipes([write_recipe("a", training={"lr_scheduler_type": "reduce_lr_on_plateau"} | own)])
    kwargs = build_training_arguments(Run(recipe, tmp_path / "run"), 3).lr_scheduler_kwargs
    assert kwargs == {"mode": "max"} | own.get("lr_scheduler_kwargs", {})
