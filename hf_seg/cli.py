"""The `hf-seg` command. Training has its own launcher: `accelerate launch hf_seg/train.py recipes/x.json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_seg.problem import RecipeError
from hf_seg.recipe import json_schema, load_recipes
from hf_seg.text import prepare_output, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-seg`.

    Args:
        argv (`Sequence[str]`, *optional*): arguments; the process's own when None.

    Returns:
        `int`: exit status; 1 when a recipe or its data is not in order, a photograph could not be read, an exported
        model does not compute what PyTorch computes, or two trainings differ; 2 when nothing could be done at all.
    """
    prepare_output()
    # Neither parser abbreviates: `--help` is the only option here, and a recipe's overrides must be spelt out.
    parser = argparse.ArgumentParser(prog="hf-seg", description="Semantic segmentation recipes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    schema = commands.add_parser("schema", help="print the JSON Schema of recipes, for editors", allow_abbrev=False)
    schema.set_defaults(run=_schema)
    check = commands.add_parser(
        "check",
        help="check recipes and print the order in which they would be trained",
        usage="hf-seg check RECIPE [RECIPE ...] [--section.key value ...]",
        allow_abbrev=False,
    )
    # All that follows: argparse would otherwise take an override's value for a recipe, or the other way round.
    check.add_argument("rest", nargs=argparse.REMAINDER, metavar="RECIPE", help="recipe files, then overrides")
    check.set_defaults(run=_check)
    predict = commands.add_parser("predict", help="segment photographs", allow_abbrev=False)
    predict.add_argument("model", metavar="MODEL", help="a run's folder or a Hub id")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders of them, patterns")
    predict.add_argument(
        "--out", required=True, metavar="DIR", help="folder for masks, overlays and predictions.jsonl"
    )
    predict.add_argument("--size", choices=("native", "model"), default="native", help="size of the masks")
    predict.add_argument("--tta", choices=("flip",), help="average with the mirror image")
    predict.add_argument("--tile", type=int, metavar="PIXELS", help="slide a window of this side over large images")
    predict.add_argument("--batch_size", type=int, default=32)
    predict.add_argument("--device", help="such as cpu or cuda:1; by default the accelerator if there is one")
    predict.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    predict.set_defaults(run=_predict)
    _add_init(commands)
    _add_doctor(commands)
    _add_compare(commands)
    _add_repro(commands)
    _add_push(commands)
    _add_export(commands)
    _add_demo(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def _add_init(commands) -> None:
    init = commands.add_parser("init", help="write a recipe for your own photographs and masks", allow_abbrev=False)
    init.add_argument(
        "source",
        metavar="DIR",
        help="folder with images/ and masks/, or train/, validation/ and test/; or with Parquet files; or a Hub id",
    )
    init.add_argument("--arch", choices=("segformer", "fcn"), default="segformer")
    init.add_argument("--overwrite", action="store_true", help="write recipe.json and preview.png again")
    init.add_argument("--out", metavar="DIR", help="folder to write to; a data set on the Hub needs one")
    init.add_argument("--revision", help="of a data set on the Hub: commit, tag or branch")
    init.add_argument("--config_name", help="of a data set with several configurations")
    init.add_argument("--image_column", help="of a table, when it is not found by itself")
    init.add_argument("--mask_column", help="of a table, when it is not found by itself")
    init.set_defaults(run=_init)


def _add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="find what would hurt a training run, in its data and on this machine",
        usage="hf-seg doctor [--json] [--all] [--deep] RECIPE|DIR [RECIPE|DIR ...] [--section.key value ...]",
        allow_abbrev=False,
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--all", action="store_true", help="name all files, not ten of a kind")
    doctor.add_argument("--deep", action="store_true", help="compare the caches of resized pairs with the files")
    doctor.add_argument("rest", nargs=argparse.REMAINDER, metavar="RECIPE|DIR", help="and overrides")
    doctor.set_defaults(run=_doctor, refuse=doctor.error)


def _add_compare(commands) -> None:
    compare = commands.add_parser("compare", help="put finished runs side by side, with intervals", allow_abbrev=False)
    compare.add_argument(
        "run_dirs", nargs="+", type=Path, metavar="RUN", help="runs' folders; NAME-seed0, NAME-seed1, … are one arm"
    )
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="write the report there with its pictures, instead of printing it"
    )
    compare.set_defaults(run=_compare)


def _add_repro(commands) -> None:
    repro = commands.add_parser(
        "repro", help="train the first steps of a run twice, and compare the bits", allow_abbrev=False
    )
    repro.add_argument(
        "run_dir", type=Path, metavar="RUN", help="a finished run's folder, such as runs/quickstart-fcn"
    )
    repro.add_argument("--steps", type=int, default=5, help="how many (default: 5)")
    repro.add_argument("--data_root", metavar="DIR", help="where the data is here, when it is not where it was")
    repro.add_argument("--json", action="store_true", help="print one JSON object")
    repro.set_defaults(run=_repro)


def _add_push(commands) -> None:
    push = commands.add_parser("push", help="upload a finished run to the Hugging Face Hub", allow_abbrev=False)
    push.add_argument("run_dir", type=Path, metavar="RUN", help="a run's folder, such as runs/quickstart-fcn")
    push.add_argument("--repo", metavar="ORG/NAME", help="by default as in the recipe, else the run's name")
    push.add_argument("--private", action="store_true", help="make the repository private when it is created")
    push.add_argument("--revision", help="branch to push to; main by default")
    push.set_defaults(run=_push)


def _add_export(commands) -> None:
    export = commands.add_parser("export", help="write a model for other runtimes, and compare", allow_abbrev=False)
    export.add_argument("model", metavar="MODEL", help="a run's folder or a Hub id")
    export.add_argument("--format", choices=("onnx",), default="onnx")
    export.add_argument("--out", type=Path, metavar="FILE", help="by default model.onnx in the run's folder")
    export.add_argument(
        "--images", nargs="+", metavar="PATH", help="photographs to compare on; generated ones if none"
    )
    export.set_defaults(run=_export)


def _add_demo(commands) -> None:
    demo = commands.add_parser("demo", help="serve a page to try models on, or push it as a Space", allow_abbrev=False)
    demo.add_argument("models", nargs="+", metavar="MODEL", help="a run's folder or a Hub id; two stand side by side")
    demo.add_argument("--host", default="127.0.0.1")
    demo.add_argument("--port", type=int, default=7860)
    demo.add_argument("--space", metavar="ORG/NAME", help="push the page as this Space instead of serving it")
    demo.add_argument("--private", action="store_true", help="make the Space private when it is created")
    demo.set_defaults(run=_demo)


def _schema(arguments: argparse.Namespace) -> int:
    say(json.dumps(json_schema(), indent=2), keep="\n")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    try:
        recipes = load_recipes(*_split(arguments.rest))
    except RecipeError as error:
        say(error, file=sys.stderr, keep="\n")
        return 1
    for number, recipe in enumerate(recipes, 1):
        encoder = f", encoder of {recipe.encoder_recipe}" if recipe.encoder_recipe else ""
        say(f"{number}. {recipe.name} ({recipe.path}{encoder})")
    say("not tried: data, weights, the Hub, and a step of training (`hf-seg doctor` and a launch try the step)")
    return 0


def _split(rest: list[str]) -> tuple[list[str], list[str]]:
    """Paths, and the overrides that follow them."""
    first_flag = next((number for number, word in enumerate(rest) if word.startswith("-")), len(rest))
    return rest[:first_flag], rest[first_flag:]


def _doctor(arguments: argparse.Namespace) -> int:
    from hf_seg.doctor.doctor import as_json, as_text, diagnose

    # the options may stand anywhere, and the parser gives all that follows the first path as it is
    machine, everything, deep = (
        getattr(arguments, option) or f"--{option}" in arguments.rest for option in ("json", "all", "deep")
    )
    paths, overrides = _split([word for word in arguments.rest if word not in ("--json", "--all", "--deep")])
    if not paths:
        arguments.refuse("name a recipe or a folder")
    report = diagnose(paths, overrides, deep=deep, disable_bar=None if machine else False)
    say(as_json(report) if machine else as_text(report, show_all=everything), keep="\n")
    return 0 if report.would_start else 1


def _compare(arguments: argparse.Namespace) -> int:
    from hf_seg.compare import compare
    from hf_seg.compare.report import as_markdown, build_sections, write_report

    try:
        comparison = compare(arguments.run_dirs)
    except RecipeError as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    if arguments.out is None:
        say(as_markdown(build_sections(comparison), pictures=False), keep="\n")
    else:
        write_report(comparison, arguments.out)
        say(arguments.out / "comparison.html")
    return 0


def _repro(arguments: argparse.Namespace) -> int:
    from hf_seg.problem import Refusal
    from hf_seg.training.repro import as_json, as_text, reproduce

    try:
        report = reproduce(arguments.run_dir, steps=arguments.steps, data_root=arguments.data_root)
    except Refusal as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    say(as_json(report) if arguments.json else as_text(report), keep="\n")
    return 0 if report.same else 1


def _predict(arguments: argparse.Namespace) -> int:
    # these take seconds to import, which the other commands need not
    from hf_seg.inference.predict import PredictError
    from hf_seg.inference.write import predict_to_folder

    options = {key: getattr(arguments, key) for key in ("size", "tile", "batch_size", "device", "dtype")}
    try:
        unreadable = predict_to_folder(
            arguments.model, arguments.paths, arguments.out, flip=arguments.tta == "flip", **options
        )
    except PredictError as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    for file in unreadable:
        say(f"{file.path}: left out: {file.reason}", file=sys.stderr)
    return 1 if unreadable else 0


def _init(arguments: argparse.Namespace) -> int:
    from hf_seg.doctor.init import init
    from hf_seg.problem import DataError

    try:
        options = ("out", "arch", "overwrite", "revision", "config_name", "image_column", "mask_column")
        complete = init(arguments.source, **{option: getattr(arguments, option) for option in options})
    except DataError as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    return 0 if complete else 1


def _push(arguments: argparse.Namespace) -> int:
    from hf_seg.hub.push import push_run
    from hf_seg.problem import HubError

    try:
        url = push_run(
            arguments.run_dir, repo=arguments.repo, private=arguments.private or None, revision=arguments.revision
        )
    except (HubError, RecipeError) as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    say(url)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from hf_seg.inference.demo import DemoError, push_space, serve
    from hf_seg.inference.predict import PredictError
    from hf_seg.problem import HubError

    try:
        if arguments.space:
            say(push_space(arguments.models, arguments.space, private=arguments.private))
        else:
            serve(arguments.models, host=arguments.host, port=arguments.port)
    except (DemoError, HubError, PredictError) as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 2
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from hf_seg.inference.export import OPSET, DisagreementError, ExportError, export_onnx

    out = arguments.out or Path(arguments.model) / "model.onnx"
    try:
        if arguments.out is None and not Path(arguments.model).is_dir():
            raise ExportError(f"{arguments.model}: is no folder here, so say by --out where the file goes")
        comparison = export_onnx(arguments.model, out, images=arguments.images)
    except ExportError as error:
        say(f"error: {error}", file=sys.stderr, keep="\n")
        return 1 if isinstance(error, DisagreementError) else 2
    for file in comparison.unreadable:
        say(f"{file.path}: left out: {file.reason}", file=sys.stderr)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, ONNX opset {OPSET}")
    say(f"agrees with PyTorch on {comparison}")
    return 1 if comparison.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
