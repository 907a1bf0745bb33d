"""Train, score and save one model per recipe: `accelerate launch hf_seg/train.py recipes/*.json`."""

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import set_seed

from hf_seg.data.seg_data import load_data
from hf_seg.hub.push import Uploads, is_unpushed
from hf_seg.launch import check, parse_arguments
from hf_seg.models.build import build_model, describe_provenance, measure_forward
from hf_seg.problem import Refusal
from hf_seg.processes import lost_contact, lost_worker, on_main_process, start_processes
from hf_seg.recipe import Recipe, load_recipes, over_seeds
from hf_seg.runs.card import build_card
from hf_seg.runs.folder import CARD, PLOTS, describe_data, hold_runs, open_run, start_run
from hf_seg.runs.plots import plot_confusion, plot_curves, plot_roc, plot_samples
from hf_seg.runs.record import (
    FORMAT,
    PER_IMAGE,
    RESULTS,
    ROC,
    SAMPLES,
    as_bytes,
    describe_encoder_run,
    environment,
    format_table,
    load_results,
    save_arrays,
    write_json,
)
from hf_seg.scoring.native import score_native
from hf_seg.scoring.roc import stack_curves
from hf_seg.text import prepare_output
from hf_seg.text import say as say_here
from hf_seg.training.arguments import checkpoints_kept
from hf_seg.training.callbacks import Interrupted, StopWhenAsked
from hf_seg.training.checkpoints import check_room, last_checkpoint
from hf_seg.training.memory import peak_memory, reset_peak_memory
from hf_seg.training.trainer import SegTrainer


def main(argv: list[str] | None = None) -> int:
    """Load all recipes, refuse what cannot work, then run them one after the other.

    Returns:
        `int`: exit status; 2 when a recipe, its data, its initial weights or its place on the Hub were refused, 1 when
        a run failed or could not be pushed, 130 or 143 when Ctrl-C or SIGTERM stopped a run.
    """
    prepare_output()
    options, overrides = parse_arguments(sys.argv[1:] if argv is None else argv, __doc__)
    named = {Path(path).stem for path in options.recipes}  # not those that are there for their encoder only
    try:
        start_processes()
        recipes = load_recipes(options.recipes, overrides)
        if options.seeds:
            recipes = over_seeds(recipes, named, options.seeds)
            named = {f"{name}-seed{seed}" for name in named for seed in options.seeds}
        overwrite = named if options.overwrite else set()
        checked = check(recipes, options.output_dir, overwrite)
        with (
            Uploads(checked.destinations, say) as uploads,
            hold_runs(recipes, options.output_dir, overwrite),
        ):
            results, failed = run_all(
                recipes, options.output_dir, uploads, checked.without_gradient, overwrite, options.mean_iou_script
            )
            say("\n" + format_table(results), keep="\n")
    except Refusal as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    except Interrupted as interruption:
        say(f"{interruption}; launch again to go on", file=sys.stderr)
        return interruption.exit_status
    except Exception as error:
        if (message := lost_worker(error) or lost_contact(error)) is None:
            raise
        say_here(f"error: {message}", file=sys.stderr)
        return 1
    PartialState().destroy_process_group()
    return 1 if failed or uploads.unpushed else 0


def run_all(
    recipes: list[Recipe],
    output_dir: Path,
    uploads: Uploads,
    without_gradient: dict[str, list[str]],
    overwrite: set[str],
    mean_iou_script: str | None = None,
) -> tuple[list[dict[str, Any]], set[str]]:
    """Run recipe after recipe. Returns the results, and the names of the runs that failed.

    What is wrong with one run need not be with the next. With several processes the first failure ends the launch: the
    others would wait for the rank that failed.
    """
    results: list[dict[str, Any]] = []
    failed: set[str] = set()
    for recipe in recipes:
        if recipe.encoder_recipe in failed:
            say(f"error: {recipe.name}: left out, since {recipe.encoder_recipe} failed", file=sys.stderr)
            failed.add(recipe.name)
            continue
        try:
            unused, replace_it = without_gradient.get(recipe.name), recipe.name in overwrite
            results.append(run(recipe, output_dir, uploads, unused, replace_it, mean_iou_script))
        except Exception as error:
            if PartialState().num_processes > 1 or isinstance(error, Interrupted):
                if isinstance(error, Refusal) and not PartialState().is_main_process:  # who speaks for all in main
                    say_here(f"error: process {PartialState().process_index}: {error}", file=sys.stderr, keep="\n")
                raise
            known = lost_worker(error)
            if not known and not isinstance(error, Refusal):
                say_here(traceback.format_exc(), file=sys.stderr, keep="\n")
            say(f"error: {recipe.name}: {known or error}", file=sys.stderr, keep="\n")
            failed.add(recipe.name)
    return results, failed


def run(
    recipe: Recipe,
    output_dir: Path,
    uploads: Uploads,
    without_gradient: list[str] | None = None,
    overwrite: bool = False,
    mean_iou_script: str | None = None,
) -> dict[str, Any]:
    """One recipe, from data to results. Returns the content of `results.json`."""
    run_dir = output_dir / recipe.name
    state = open_run(recipe, run_dir, overwrite)
    if state == "finished":
        here = describe_data(recipe.data, may_load=False) is not None
        compared = "" if here else "; its data was not compared, since it is in no folder here"
        say(f"{recipe.name}: finished before, in {run_dir} (--overwrite trains it again){compared}")
        if is_unpushed(run_dir):
            say(f"{recipe.name}: is not on the Hub yet; `hf-seg push {run_dir}` does it")
        return load_results(run_dir)

    data = load_data(recipe.data)
    spec, splits = data.spec, data.splits
    set_seed(recipe.training.seed)  # before the model draws its weights
    source = recipe.model
    if recipe.encoder_recipe:
        source = replace(source, encoder_weights=str(output_dir / recipe.encoder_recipe))
    model, provenance = build_model(source, spec, recipe.data.image_size)
    provenance["encoder"]["source"] = recipe.encoder_recipe or provenance["encoder"]["source"]
    provenance["encoder"]["run"] = describe_encoder_run(source.encoder_weights)
    say(f"{recipe.name}: {describe_provenance(provenance)}")
    if without_gradient:
        say(f"{recipe.name}: {len(without_gradient)} parameters are not trained, as {without_gradient[0]}")

    record = {
        "format": FORMAT,
        "recipe": {"name": recipe.name, **recipe.to_dict()},
        "status": "training",
        "model": {
            "arch": recipe.model.arch,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            **measure_forward(model, recipe.data.image_size),
            "init": provenance,
        },
        "data": data.describe(),
        "environment": environment(PartialState().device),
    }
    start_run(recipe, run_dir, state)
    check_room(run_dir, model, kept=checkpoints_kept(recipe.training))
    stop = StopWhenAsked()
    reset_peak_memory(PartialState().device)
    trainer = SegTrainer(
        recipe=recipe,
        run_dir=run_dir,
        model=model,
        data=data,
        without_gradient=without_gradient,
        callbacks=[*(on_main_process(lambda: uploads.begin(recipe, run_dir, record)) or []), stop],
    )
    with stop.listening():
        trained = trainer.train(resume_from_checkpoint=last_checkpoint(run_dir)).metrics
        stop.raise_if_asked()
        # both of the best checkpoint by validation mIoU, which training ends with
        validation, test = trainer.validate(), trainer.test(data.prepared["test"], mean_iou_script)
        samples = trainer.sample(data.prepared["test"])  # on all ranks: a divided model needs each of them
    trainer.save_model()

    roc, per_image = test.pop("roc"), test.pop("per_image")
    results = record | {
        "status": "finished",
        "train": trainer.summary(trained) | {"peak_memory_mb": peak_memory(PartialState().device)},
        "validation": validation,
        "test": test | {"roc_auc": {name: curve["auc"] for name, curve in roc.items()}},
    }
    if trainer.is_world_process_zero():
        sizes = [recipe.data.image_size // part for part in (1, 2, 4, 8)]
        results["test"]["native"] = score_native(
            trainer.predict_logits, splits["test"], data.prepared["test"], data.transforms["test"], sizes
        )
        plots = {name: run_dir / path for name, path in PLOTS.items()}
        plots["curves"].parent.mkdir(exist_ok=True)
        plot_curves(trainer.state.log_history, plots["curves"])
        plot_confusion(np.array(test["confusion_matrix"]), spec.class_names, plots["confusion"])
        plot_roc(roc, plots["roc"])
        plot_samples(*samples, spec.class_names, spec.palette, spec.ignore_index, plots["samples"])
        (run_dir / CARD).write_text(str(build_card(results)), encoding="utf-8")
        save_arrays(run_dir / PER_IMAGE, confusion=per_image)
        save_arrays(run_dir / ROC, **stack_curves(roc))
        save_arrays(run_dir / SAMPLES, **as_bytes(*samples), palette=np.array(spec.palette, np.uint8))
        write_json(results, run_dir / RESULTS)  # last: a run with results is a finished run
        uploads.finish(run_dir)
    trainer.release()
    PartialState().wait_for_everyone()  # the next recipe may start from this one's encoder
    return results


def say(message: str, file=None, keep: str = "") -> None:
    """[`hf_seg.text.say`], from the main process only."""
    if PartialState().is_local_main_process:
        say_here(message, file, keep)


if __name__ == "__main__":
    sys.exit(main())
