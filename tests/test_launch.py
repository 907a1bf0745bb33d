"""What a launch and the doctor find before anything trains, by building all that training will build."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from transformers import Trainer
from transformers.utils import logging

from hf_seg import cli, launch, train
from hf_seg.data.sources.synthetic import PET_SPEC
from hf_seg.launch import estimate, smallest_batch, try_out
from hf_seg.problem import RecipeError, Refusal
from hf_seg.processes import start_processes
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import TrainingRecipe
from hf_seg.runs.folder import Run, hold_runs, open_run
from hf_seg.training.arguments import build_training_arguments
from hf_seg.training.trainer import SegTrainer

COUNTS = {"train": 32, "validation": 10, "test": 10}
ODD = COUNTS | {"train": 33}  # in batches of 8, the last has one image
POOLING = {  # and batch norm after it
    "arch": "auto",
    "path": "mobilevit",
    "init": "scratch",
    "config": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
        "aspp_out_channels": 16,
    },
}
DPT = {
    "arch": "auto",
    "path": "dpt",
    "init": "scratch",
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 16,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 16, 16, 16],
        "fusion_hidden_size": 16,
    },
}


@pytest.fixture
def read(write_recipe):
    """A tiny recipe, as a launch has it."""

    def make(**sections):
        return load_recipes([write_recipe("a", **sections)])[-1]

    return make


@pytest.fixture
def problems(read):
    def find(counts=COUNTS, **sections):
        with pytest.raises(Refusal) as refused:
            try_out(read(**sections), PET_SPEC, counts)
        return [str(problem) for problem in refused.value.problems]

    return find


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type", "One of min_lr or min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type", "'num_decay_steps'"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
            "lr_scheduler_kwargs",
            "unexpected keyword argument 'min_lr'",
        ),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor", "--dataloader_num_workers > 0"),
        (
            {"dataloader_drop_last": True, "global_train_batch_size": 64},
            "dataloader_drop_last",
            "32 train pairs",
        ),
        ({"compile": True, "torch_compile_backend": "inductr"}, "torch_compile_backend", "INDUCTR"),
        ({"debug": "underflow"}, "debug", "underflow"),
        pytest.param(
            {"tf32": True},
            "tf32",
            "Ampere",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it"),
        ),
    ],
)
def test_arguments_that_only_a_trainer_finds_wrong(problems, keys, where, words):
    (problem,) = problems(training=keys)
    place, what = problem.split(": ", 1)
    assert f"training.{where}" in place.split(", ") and words in what and "; " in what


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has them")
def test_graphs_without_a_gpu(problems):
    (problem,) = problems(training={"cuda_graphs": True})
    assert problem.startswith("training.cuda_graphs: they need one GPU")


def test_a_model_that_cannot_be_captured(problems, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    monkeypatch.setattr("hf_seg.training.trainer.use_cuda_graphs", lambda training, *_: training.cuda_graphs is True)
    (problem,) = problems(training={"cuda_graphs": True})
    assert problem.startswith("training.cuda_graphs: operation not permitted when stream is capturing; ")


def test_class_weights_that_are_not_as_many_as_the_classes(problems):
    assert problems(training={"class_weights": [1, 2]}) == [
        "training.class_weights: has 2 weights, but the data has 3 classes: foreground, background, boundary; give "
        "one weight for each class, in this order"
    ]


def test_a_trial_counts_no_pixels(read, monkeypatch):
    monkeypatch.setattr("hf_seg.data.prepared.CachedPairs.count_labels", lambda _: pytest.fail("of made-up masks"))
    assert try_out(read(training={"class_weights": "balanced"}), PET_SPEC, COUNTS) == []


def test_a_model_that_does_not_checkpoint_its_activations(problems):
    key = "activation_checkpointing"
    (problem,) = problems(arch="fcn", training={key: True})
    assert problem.startswith(f"training.{key}: FCNForSemanticSegmentation does not support")
    assert problem.endswith("; correct it, or leave it out")


def test_all_problems_of_one_recipe_come_at_once(problems):
    found = problems(
        training={"dataloader_prefetch_factor": 2, "lr_scheduler_type": "cosine_with_min_lr", "debug": "underflow"}
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        "training.debug",
        "training.dataloader_prefetch_factor",
        "training.lr_scheduler_type",
    ]


def test_a_last_batch_of_one_that_batch_norm_cannot_take(problems, read):
    (problem,) = problems(ODD, model=POOLING)
    assert problem.startswith("training.global_train_batch_size: of 33 train pairs in batches of 8, the last batch")
    assert problem.endswith("; set it to 6, 7, 9 or the like, or training.dataloader_drop_last to true")
    for batch in (6, 7, 9):
        try_out(read(model=POOLING, training={"global_train_batch_size": batch}), PET_SPEC, ODD)
    try_out(read(model=POOLING, training={"dataloader_drop_last": True}), PET_SPEC, ODD)
    try_out(read(arch="segformer"), PET_SPEC, ODD)  # has batch norm, too, but over pixels

    (problem,) = problems(model=POOLING, training={"gradient_accumulation_steps": 8})
    assert "is trained on one image at a time" in problem and problem.endswith("; set it to 16, 24 or the like")


@pytest.mark.parametrize(
    ("pairs", "ranks", "keys", "images"),
    [
        (32, 1, {}, 8),
        (33, 1, {}, 1),
        (5, 1, {}, 5),
        (34, 1, {"gradient_accumulation_steps": 2}, 2),
        (33, 1, {"gradient_accumulation_steps": 8}, 1),
        (33, 2, {}, 4),
        (33, 1, {"arguments": {"dataloader_drop_last": True}}, 8),
    ],
)
def test_the_smallest_batch_is_that_of_the_loader(pairs, ranks, keys, images):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    training = TrainingRecipe(global_train_batch_size=8, **keys)
    assert smallest_batch(training, pairs, ranks) == images
    batch = 8 // ranks // training.gradient_accumulation_steps
    sampler = BatchSampler(range(pairs), batch, "dataloader_drop_last" in training.arguments)
    shards = [BatchSamplerShard(sampler, ranks, rank) for rank in range(ranks)] if ranks > 1 else [sampler]
    assert min(len(indices) for shard in shards for indices in shard) == images


@pytest.mark.parametrize(("model", "count"), [(DPT, 6), ({}, 0)])
def test_parameters_that_get_no_gradient(read, model, count):
    unused = try_out(read(model=model), PET_SPEC, COUNTS)
    assert len(unused) == count
    for known, finds in ((unused, bool(count)), (None, True)):
        run = Run(read(model=model), Path("run"), without_gradient=known)
        assert build_training_arguments(run, 3).ddp_find_unused_parameters is finds
    chosen = read(model=model, training={"ddp_find_unused_parameters": True})
    run = Run(chosen, Path("run"), without_gradient=[])
    assert build_training_arguments(run, 3).ddp_find_unused_parameters is True


@pytest.mark.slow
def test_two_ranks_train_a_model_of_which_parameters_get_no_gradient(write_recipe, launch):
    # without DDP's search for them, step 2 would fail; the trial before the first step finds them
    few = {"max_train_samples": 16, "max_validation_samples": 2, "max_test_samples": 2}
    path = write_recipe("a", model=DPT, data=few, training={"num_train_epochs": 1})
    assert "a: 6 parameters are not trained, such as " in launch(path, processes=2).stdout


def set_for_the_process():
    return (
        dict(os.environ),
        dict(PartialState()._shared_state),
        logging.get_verbosity(),
        torch.are_deterministic_algorithms_enabled(),
        (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.fp32_precision),
    )


def test_a_trial_leaves_nothing_behind(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    recipe = read(training={"full_determinism": True, "log_level": "error"})
    before = set_for_the_process(), sorted(tmp_path.rglob("*"))
    try_out(recipe, PET_SPEC, COUNTS)
    estimate(recipe, PET_SPEC, COUNTS)
    assert (set_for_the_process(), sorted(tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(("seconds", "measured"), [([1.0, 0.5], 2), ([3.0], 1)])
def test_an_epoch_is_its_batches_times_the_faster_step(read, monkeypatch, seconds, measured):
    clock = iter([moment for number, step in enumerate(seconds) for moment in (10 * number, 10 * number + step)])
    monkeypatch.setattr(launch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    tried = []
    monkeypatch.setattr(SegTrainer, "try_step", lambda self, images: tried.append(images))
    took, megabytes = estimate(read(), PET_SPEC, ODD)
    assert tried == [8] * measured and took == 5 * seconds[-1]
    assert megabytes is None or megabytes > 50


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_run_sets_for_the_process_ends_with_it(write_recipe, run, monkeypatch, fails):
    keys = {"full_determinism": True, "log_level": "error"}
    first = write_recipe("a", training=keys | {"num_train_epochs": 1})
    second = write_recipe("b", training={"num_train_epochs": 1})
    seen, changed = [], []
    original, build = train.run, train.build_trainer

    def watch(*arguments):
        seen.append(set_for_the_process())
        return original(*arguments)

    def build_and_watch(run, *arguments):
        trainer = build(run, *arguments)
        changed.append(set_for_the_process() != seen[-1])
        if fails and run.recipe.name == "a":
            raise RecipeError("training", "that is enough")
        return trainer

    monkeypatch.setattr(train, "run", watch)
    monkeypatch.setattr(train, "build_trainer", build_and_watch)
    assert run(first, second)[0] == (1 if fails else 0)
    assert seen[0] == seen[1] and changed[0]


def test_another_launch_at_work_is_met_before_the_data_is_read(write_recipe, run, monkeypatch):
    recipe = write_recipe("a")
    monkeypatch.setattr(launch, "load_data", lambda data: pytest.fail("the data was read"))
    with hold_runs([Run(load_recipes([recipe])[0], Path("runs/a"))]):
        status, _, err = run(recipe)
    assert status == 2 and "runs/a: another launch is using it" in err and not Path("runs").exists()


def test_every_recipe_of_a_launch_is_tried_and_nothing_is_started(write_recipe, run):
    good = write_recipe("a-good")
    keys = {
        "b-lr": {"lr_scheduler_type": "cosine_with_min_lr"},
        "b-pre": {"dataloader_prefetch_factor": 2},
        "b-div": {"global_train_batch_size": 7, "gradient_accumulation_steps": 7, "dataloader_prefetch_factor": 2},
    }
    bad = [write_recipe(name, training=training) for name, training in keys.items()]
    status, _, err = run(good, *bad)
    assert status == 2 and "Traceback" not in err and not Path("runs").exists()
    assert "error: b-lr: training.lr_scheduler_type: One of min_lr" in err
    assert "\nb-pre, b-div: training.dataloader_prefetch_factor: " in err  # the same is said once
    (corrected,) = load_recipes([write_recipe("b-lr")])
    assert open_run(Run(corrected, Path("runs/b-lr"))) == "new"  # and not a run of another recipe


def test_a_launch_over_seeds_is_tried_once_and_a_finished_run_not_at_all(write_recipe, tmp_path, monkeypatch):
    from hf_seg.recipe import over_seeds

    tried = []
    monkeypatch.setattr(launch, "try_out", lambda recipe, *_: tried.append(recipe.name) or ["head"])
    recipes = over_seeds(load_recipes([write_recipe("a")]), {"a"}, [0, 1, 2])
    (b,) = load_recipes([write_recipe("b", training={"learning_rate": 0.1})])
    runs = [Run(recipe, tmp_path / "runs" / recipe.name) for recipe in (*recipes, b)]
    launch.check(runs)
    assert tried == ["a-seed0", "b"]
    assert [run.without_gradient for run in runs] == [["head"]] * 4
    finished = Run(b, tmp_path / "runs" / "b")
    monkeypatch.setattr(launch, "open_run", lambda run: setattr(run, "state", "finished"))
    launch.check([finished])
    assert finished.without_gradient is None and len(tried) == 2


def test_an_encoder_that_is_not_trained_yet(write_recipe, tmp_path):
    city = write_recipe("city")
    model = {"init": "checkpoint", "encoder_weights": "city"}
    pet = write_recipe("pet", model=model, training={"dataloader_prefetch_factor": 2})
    runs = [Run(recipe, tmp_path / "runs" / recipe.name) for recipe in load_recipes([city, pet])]
    with pytest.raises(Refusal, match=r"^pet: training\.dataloader_prefetch_factor") as refused:
        launch.check(runs)
    (problem,) = refused.value.problems
    assert (problem.code, problem.place) == ("trial-step", "training.dataloader_prefetch_factor")
    assert problem.what.startswith("--dataloader_prefetch_factor") and problem.remedy == "correct it, or leave it out"


def test_a_trial_draws_nothing_from_the_run_that_follows(write_recipe, monkeypatch, run):
    begun = []

    def begin(run, data, model, callbacks):
        begun.append([*(tensor.clone() for tensor in model.state_dict().values()), torch.get_rng_state()])
        raise RecipeError("that is enough")

    recipe = write_recipe("a")
    monkeypatch.setattr(train, "build_trainer", begin)
    assert run(recipe)[0] == 1
    monkeypatch.setattr(launch, "try_out", lambda *_: [])
    assert run(recipe)[0] == 1
    assert all(map(torch.equal, *begun))


def test_out_of_memory_is_explained(problems, monkeypatch):
    def step(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Trainer, "training_step", step)
    (problem,) = problems(training={"gradient_accumulation_steps": 2})
    assert problem == (
        "cpu is out of memory in training, with 4 images of 64×64 pixels at a time; set "
        "training.gradient_accumulation_steps to 4, for 2 at a time, or lower data.image_size"
    )


def test_the_doctor_tries_the_step_too(write_recipe, capsys):
    bad = write_recipe("bad", training={"dataloader_prefetch_factor": 2})
    dpt = write_recipe("dpt", model=DPT)
    assert cli.main(["doctor", "--json", str(bad), str(dpt)]) == 1
    findings = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["place"] in (str(bad), str(dpt))]
    assert [(f["level"], f["code"], f["place"]) for f in findings] == [
        ("error", "trial-step", str(bad)),
        ("note", "no-gradient", str(dpt)),
    ]
    assert findings[0]["what"].startswith("training.dataloader_prefetch_factor: ") and findings[0]["remedy"]
    assert findings[1]["what"].startswith("6 parameters get no gradient, such as ")


@pytest.mark.parametrize("program", [["-m", "hf_seg.train"], [str(Path(train.__file__))]])
@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(program, chosen, tmp_path):
    # the policy is read when torch is loaded, so it has to be there before
    spy = "import os, sys; print(os.environ.get('OMP_WAIT_POLICY')); sys.exit()"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(spy)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"} | (
        {"OMP_WAIT_POLICY": chosen} if chosen else {}
    )
    done = subprocess.run([sys.executable, *program], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{chosen or 'PASSIVE'}\n", done.stderr


def test_a_home_that_the_shell_has_not_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    assert launch.parse_arguments(["a.json", "--output_dir=~/runs"], None).output_dir == "/home/user/runs"


def test_a_finished_encoder_without_weights_is_found_before_anything_trains(write_recipe, tmp_path, monkeypatch):
    city, pet = write_recipe("city"), write_recipe("pet", model={"init": "checkpoint", "encoder_weights": "city"})
    runs = [Run(recipe, tmp_path / "runs" / recipe.name) for recipe in load_recipes([city, pet])]
    (tmp_path / "runs" / "city").mkdir(parents=True)
    states = {"city": "finished", "pet": "new"}
    monkeypatch.setattr(launch, "open_run", lambda run: setattr(run, "state", states[run.recipe.name]))
    with pytest.raises(Refusal, match=r"city is a folder without model\.safetensors"):
        launch.check(runs)


def test_precision_and_compilation_of_the_launcher_are_not_used(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    start_processes()
    said = "accelerate's mixed_precision bf16 is not used: bf16, fp16 and compile of the recipe decide\n"
    assert capsys.readouterr().err == said
    assert not {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"} & {*os.environ}
