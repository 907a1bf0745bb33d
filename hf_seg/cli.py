"""The `hf-seg` command."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from hf_seg.problem import Problem, Refusal, disk_remedy, one_line
from hf_seg.recipe import json_schema, load_recipes
from hf_seg.text import prepare_output, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-seg`, by default with the arguments of the process.

    Returns:
        `int`: exit status; 1 when a check finds an error in a recipe or its data, a photograph could not be read, an
        exported model does not compute what PyTorch computes, or two trainings differ; 2 when a command could do
        nothing at all. `hf-seg train` has the statuses of [`hf_seg.train.main`].
    """
    prepare_output()
    try:
        app(argv, prog_name="hf-seg")
    except Refusal as error:
        say(f"error: {error}", sys.stderr, keep="\n")
        return error.exit_status
    except OSError as error:
        if not (remedy := disk_remedy(error)):
            raise
        say(f"error: {Refusal(error.filename or '', one_line(error.strerror), remedy)}", sys.stderr)
        return 2
    except SystemExit as ended:  # typer raises it when a command ends
        return ended.code


# Each command returns its exit status, and imports its modules only when it runs: importing torch takes seconds.
app = typer.Typer(
    help="Train, compare and ship semantic segmentation models, from one JSON recipe each.",
    result_callback=sys.exit,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Overrides such as --training.seed are not options that typer knows.
WITH_OVERRIDES = {"ignore_unknown_options": True}

Model = Annotated[str, Argument(metavar="MODEL", help="a run's folder or a Hub id")]
RunFolder = Annotated[Path, Argument(metavar="RUN", help="a finished run's folder, such as runs/quickstart-fcn")]
Json = Annotated[bool, Option("--json", help="print one JSON object")]
RECIPES = "recipe files, or names of shipped recipes such as quickstart-fcn; then overrides: --section.key value"


def _split(rest: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into paths and the overrides that follow them."""
    first_flag = next((number for number, word in enumerate(rest) if word.startswith("-")), len(rest))
    return rest[:first_flag], rest[first_flag:]


def _say_left_out(problems: Sequence[Problem]) -> int:
    for problem in problems:
        say(f"{problem.place}: left out: {problem.what}. {problem.remedy}", sys.stderr)
    return 1 if problems else 0


@app.command(context_settings=WITH_OVERRIDES, add_help_option=False)
def train(
    arguments: Annotated[list[str] | None, Argument(metavar="RECIPE", help=RECIPES)] = None,
    num_processes: Annotated[int, Option("--num_processes", min=1, help="one per GPU, or all on the CPU")] = 1,
) -> int:
    """Train recipes, one after the other."""
    if num_processes > 1:
        from hf_seg.training.launcher import launch_processes

        return launch_processes(num_processes, arguments or [])
    from hf_seg.train import main

    return main(arguments or [], "hf-seg train")


@app.command(context_settings=WITH_OVERRIDES)
def check(rest: Annotated[list[str], Argument(metavar="RECIPE", help=RECIPES)]) -> int:
    """Validate recipes without training."""
    try:
        recipes = load_recipes(*_split(rest))
    except Refusal as error:
        say(f"error: {error}", sys.stderr, keep="\n")
        return 1
    for number, recipe in enumerate(recipes, 1):
        encoder = f", encoder of {recipe.encoder_recipe}" if recipe.encoder_recipe else ""
        say(f"{number}. {recipe.name} ({recipe.path}{encoder})")
    say("not checked: data, weights, the Hub, and a training step (`hf-seg doctor` and a launch try the step)")
    return 0


@app.command()
def schema() -> int:
    """Print the JSON Schema of recipes, for editors."""
    say(json.dumps(json_schema(), indent=2), keep="\n")
    return 0


@app.command()
def init(
    source: Annotated[
        str,
        Argument(
            metavar="DIR",
            help="export of an annotation tool, folder with images/ and masks/, folder of Parquet files, or Hub id",
        ),
    ],
    arch: Literal["segformer", "fcn"] = "segformer",
    overwrite: Annotated[bool, Option("--overwrite", help="replace recipe.json and preview.png")] = False,
    out: Annotated[
        str | None,
        Option(metavar="DIR", help="folder to write to, for tables and polygons; required for a data set on the Hub"),
    ] = None,
    revision: Annotated[str | None, Option(help="commit, tag or branch of a data set on the Hub")] = None,
    config_name: Annotated[str | None, Option(help="configuration of a data set that has several")] = None,
    image_column: Annotated[str | None, Option(help="for a table, if hf_seg does not find it")] = None,
    mask_column: Annotated[str | None, Option(help="for a table, if hf_seg does not find it")] = None,
    layout: Annotated[str | None, Option(help="for a folder that matches several: a name from the message")] = None,
    images: Annotated[
        str | None, Option(metavar="PATTERN", help="images of a folder that matches none, such as 'rgb/SPLIT/*.jpg'")
    ] = None,
    masks: Annotated[str | None, Option(metavar="PATTERN", help="the masks, such as 'truth/SPLIT/*_gt.png'")] = None,
) -> int:
    """Write a recipe for your own photographs and masks."""
    from hf_seg.doctor.init import init

    if (images is None) != (masks is None) or (images and layout):
        what = "--images and --masks must be given together, and without --layout"
        raise Refusal("hf-seg init", what, "name both patterns, or the layout", code="usage")
    layout = f"{images} + {masks}" if images else layout
    columns = {"image_column": image_column, "mask_column": mask_column}
    options = {"arch": arch, "overwrite": overwrite, "out": out, "layout": layout}
    done = init(source, **options, revision=revision, config_name=config_name, **columns)
    return 0 if done else 1


@app.command(context_settings=WITH_OVERRIDES)
def doctor(
    rest: Annotated[list[str], Argument(metavar="RECIPE|DIR", help=f"data folders; {RECIPES}")],
    as_json: Json = False,
    show_all: Annotated[bool, Option("--all", help="list all files, not only ten of a kind")] = False,
    deep: Annotated[bool, Option("--deep", help="compare the caches of resized pairs with the files")] = False,
) -> int:
    """Find what would hurt a training run."""
    from hf_seg.doctor import doctor

    paths, overrides = _split(rest)
    if not paths:
        raise Refusal("hf-seg doctor", "has nothing to examine", "name a recipe or a folder", code="usage")
    report = doctor.diagnose(paths, overrides, deep=deep)
    say(doctor.as_json(report) if as_json else doctor.as_text(report, show_all=show_all), keep="\n")
    return 0 if report.would_start else 1


@app.command()
def predict(
    model: Model,
    paths: Annotated[list[str], Argument(metavar="PATH", help="image files, folders of images, or patterns")],
    out: Annotated[str, Option(metavar="DIR", help="folder for masks, overlays and predictions.jsonl")],
    size: Annotated[Literal["native", "model"], Option(help="size of the masks")] = "native",
    tta: Annotated[Literal["flip"] | None, Option(help="average with the prediction for the mirrored image")] = None,
    tile: Annotated[int | None, Option(metavar="PIXELS", help="window size for large images")] = None,
    batch_size: int = 32,
    device: Annotated[str | None, Option(help="such as cpu or cuda:1; by default the GPU if there is one")] = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> int:
    """Segment photographs."""
    from hf_seg.inference.write import predict_to_folder

    options = {"size": size, "flip": tta == "flip", "tile": tile, "batch_size": batch_size}
    return _say_left_out(predict_to_folder(model, paths, out, device=device, dtype=dtype, **options))


@app.command()
def evaluate(
    model: Annotated[str, Argument(metavar="MODEL", help="a run's folder, a Hub id, or a file from `hf-seg export`")],
    data: Annotated[
        str, Argument(metavar="RECIPE|DIR", help="a recipe, whose data is used; or the folder of a run or of data")
    ],
    out: Annotated[Path, Option(metavar="DIR", help="new folder for the results")],
    label_map: Annotated[
        list[str] | None,
        Option("--label_map", "--label-map", metavar="MODEL_CLASS=DATA_CLASS", help="for classes whose names differ"),
    ] = None,
) -> int:
    """Score any model on the test pictures of any data."""
    from hf_seg.inference.exported import load_model
    from hf_seg.training.evaluate import describe_scores, evaluate

    results = evaluate(model, load_model, data, out, label_map or ())
    say(describe_scores(results, out), keep="\n")
    return 0


@app.command()
def errors(
    run_dir: Annotated[Path, Argument(metavar="RUN", help="a finished run's folder, or one from `hf-seg evaluate`")],
    out: Annotated[
        Path | None, Option(metavar="DIR", help="folder for errors.html; by default RUN", show_default=False)
    ] = None,
    count: Annotated[int, Option(min=1, help="number of worst pictures, and of masks that may be wrong")] = 8,
) -> int:
    """Write a page with the test pictures that a model gets wrong."""
    from hf_seg.inference.exported import load_model
    from hf_seg.training.errors import write_errors

    say(write_errors(run_dir, load_model, out, count))
    return 0


@app.command()
def compare(
    run_dirs: Annotated[
        list[Path], Argument(metavar="RUN", help="runs' folders; NAME-seed0, NAME-seed1, … are one arm")
    ],
    out: Annotated[
        Path | None, Option(metavar="DIR", help="write the report and its pictures there, instead of printing it")
    ] = None,
) -> int:
    """Compare finished runs, with confidence intervals."""
    from hf_seg.compare import compare
    from hf_seg.compare.report import build_report, check_out, write_report

    if out is not None:
        check_out(out)
    comparison = compare(run_dirs)
    if out is None:
        say(build_report(comparison), keep="\n")
    else:
        write_report(comparison, out)
        say(out / "comparison.html")
    return 0


@app.command()
def repro(
    run_dir: RunFolder,
    steps: Annotated[int, Option(help="number of steps")] = 5,
    data_root: Annotated[
        str | None, Option(metavar="DIR", help="folder of the data on this machine, if it has moved")
    ] = None,
    as_json: Json = False,
) -> int:
    """Train a run's first steps twice, and compare the results bit by bit."""
    from hf_seg.training import repro

    report = repro.reproduce(run_dir, steps=steps, data_root=data_root)
    say(repro.as_json(report) if as_json else repro.as_text(report), keep="\n")
    return 0 if report.same else 1


@app.command()
def push(
    run_dir: RunFolder,
    repo: Annotated[
        str | None, Option(metavar="ORG/NAME", help="by default the one in the recipe, or else the run's name")
    ] = None,
    private: Annotated[bool, Option("--private", help="make the repository private when it is created")] = False,
    revision: Annotated[str | None, Option(help="branch to push to; main by default")] = None,
) -> int:
    """Upload a finished run to the Hugging Face Hub."""
    from hf_seg.hub.push import push_run

    say(push_run(run_dir, repo=repo, private=private or None, revision=revision))
    return 0


@app.command()
def export(
    model: Model,
    images: Annotated[
        list[str] | None, Argument(metavar="IMAGE", help="photographs to compare on; by default generated ones")
    ] = None,
    kind: Annotated[Literal["onnx", "openvino"], Option("--format", help="format of the file")] = "onnx",
    int8: Annotated[
        bool, Option("--int8", help="use 8 bits, with ranges from the photographs; a run is then tested with the file")
    ] = False,
    out: Annotated[
        Path | None,
        Option(metavar="FILE", help="by default model.onnx or model.xml in the run's folder", show_default=False),
    ] = None,
) -> int:
    """Write a model as ONNX or OpenVINO, and compare it with PyTorch."""
    from hf_seg.inference.export import FILES, export_model
    from hf_seg.inference.exported import load_model

    if out is None and not Path(model).is_dir():
        raise Refusal(model, "is not a folder; name the output file with --out", code="export")
    name = Path(FILES[kind])
    out = out or Path(model) / (f"{name.stem}-int8{name.suffix}" if int8 else name)
    comparison = export_model(model, out, kind=kind, images=images or None, int8=int8)
    status = _say_left_out(comparison.unreadable)
    files = [out, out.with_suffix(".bin")] if kind == "openvino" else [out]
    say(f"{out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
    say(f"{'compared' if int8 else 'agrees'} with PyTorch on {comparison}")
    if int8:
        from hf_seg.training.evaluate import describe_export

        say(describe_export(model, out, load_model))
    return status


@app.command()
def demo(
    models: Annotated[list[str], Argument(metavar="MODEL", help="a run's folder or a Hub id; two are compared")],
    host: str = "127.0.0.1",
    port: int = 7860,
    space: Annotated[
        str | None, Option(metavar="ORG/NAME", help="push the page as this Space instead of serving it")
    ] = None,
    private: Annotated[bool, Option("--private", help="make the Space private when it is created")] = False,
) -> int:
    """Serve a page to try models on, or push it as a Space."""
    from hf_seg.inference.demo import push_space, serve

    if space:
        say(push_space(models, space, private=private))
    else:
        serve(models, host=host, port=port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
