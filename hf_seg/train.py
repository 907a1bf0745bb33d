"""Train, score and save one model per recipe: `accelerate launch hf_seg/train.py recipes/*.json`.

Where to find what: data/stored_image.py opens a picture. data/sources/__init__.py and recipe/keys.py name the data
sources. scoring/evaluation.py turns losses and confusions into scores, and runs/record.py writes them to results.json.
runs/folder.py decides whether a run is finished. All advice is the `remedy` of a `Problem` (problem.py), written where
the problem is found: in the functions that training calls, doctor/survey.py or doctor/environment.py.
"""

import hf_seg  # noqa: F401 (sets how threads wait, before torch is loaded)  # isort: skip
import sys
from typing import Any

from accelerate import PartialState

from hf_seg.data import load_data
from hf_seg.hub.push import Uploads, is_unpushed
from hf_seg.launch import check, parse_arguments, plan, run_all
from hf_seg.problem import Refusal
from hf_seg.processes import explain_lost_process, on_main_process, say_once, start_processes
from hf_seg.runs.folder import Run, format_plan, hold_runs, start_run
from hf_seg.runs.record import begin_record, describe_provenance, finish_run, format_table, load_results
from hf_seg.text import prepare_output, say
from hf_seg.training.arguments import checkpoints_kept
from hf_seg.training.callbacks import Interrupted
from hf_seg.training.checkpoints import check_disk, last_checkpoint
from hf_seg.training.setup import build_initial_model, build_trainer


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Load all recipes, refuse what cannot work, then run them one after the other.

    Returns:
        `int`: exit status; 2 when a recipe, its data, its initial weights or its place on the Hub was refused, 1 when
        a run failed or could not be pushed, 130 or 143 when Ctrl-C or SIGTERM stopped a run.
    """
    prepare_output()
    options = parse_arguments(sys.argv[1:] if argv is None else argv, prog)
    try:
        start_processes()
        runs = plan(options)
        with hold_runs(runs), Uploads(check(runs), say_once) as uploads:
            say_once(format_plan(runs), keep="\n")
            results, failed = run_all(runs, lambda each: run(each, uploads))
            if results:
                say_once("\n" + format_table(results), keep="\n")
    except Refusal as error:
        say_once(f"error: {error}", sys.stderr, keep="\n")
        return error.exit_status
    except Interrupted as interruption:
        say_once(f"{interruption}; launch again to continue", sys.stderr)
        return interruption.exit_status
    except KeyboardInterrupt:  # outside a training, or with several processes
        return 130
    except Exception as error:
        if (message := explain_lost_process(error)) is None:
            raise
        say(f"error: {message}", sys.stderr)
        return 1
    PartialState().destroy_process_group()
    return 1 if failed or uploads.unpushed else 0


def run(run: Run, uploads: Uploads) -> dict[str, Any]:
    """Train, score and save one recipe's model, unless its run is finished. Returns the content of `results.json`."""
    recipe, folder = run.recipe, run.folder
    if run.state == "finished":
        return _skip(run)

    data = load_data(recipe.data)
    model, described = build_initial_model(run, data.spec)
    say_once(f"{recipe.name}: {describe_provenance(described['init'])}")
    if unused := run.without_gradient:
        say_once(f"{recipe.name}: {len(unused)} parameters are not trained, such as {unused[0]}")

    record = begin_record(recipe, described, data.describe(), PartialState().device)
    start_run(run)
    check_disk(folder, model, checkpoints_kept(recipe.training), averaged=recipe.training.ema_decay is not None)
    pushes = on_main_process(lambda: uploads.begin(recipe, folder, record)) or []
    trainer = build_trainer(run, data, model, pushes)
    with trainer.stop.listening():
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        # all three use the best checkpoint by validation mIoU, which training loads at its end
        validation, test, samples = trainer.validate(), trainer.test(), trainer.sample()
    trainer.save_model()

    scores = {"train": trainer.summary(), "validation": validation, "test": test}
    results = finish_run(folder, record | scores, samples, data.spec)
    uploads.finish(folder)
    trainer.release()
    PartialState().wait_for_everyone()  # the next recipe may start from this one's encoder
    return results


def _skip(run: Run) -> dict[str, Any]:
    """Return the results of a run that was finished before this launch."""
    if is_unpushed(run.folder, wanted=run.recipe.training.push_to_hub):
        say_once(f"{run.recipe.name}: is not on the Hub yet; `hf-seg push {run.folder}` pushes it")
    return load_results(run.folder)


if __name__ == "__main__":
    sys.exit(main())
