"""The `hf-seg` command. Training has its own launcher: `accelerate launch hf_seg/train.py recipes/x.json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_seg.problem import Problem, Refusal
from hf_seg.recipe import json_schema, load_recipes
from hf_seg.text import prepare_output, say

COMMANDS: list[tuple[Callable[..., int], dict[str, Any], Sequence[tuple]]] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-seg`, by default with the process's own arguments.

    Returns:
        `int`: exit status; 1 when a recipe or its data is not in order, a photograph could not be read, an exported
        model does not compute what PyTorch computes, or two trainings differ; 2 when nothing could be done at all.
    """
    prepare_output()
    # No parser abbreviates: a recipe's overrides must be spelt out.
    parser = argparse.ArgumentParser(prog="hf-seg", description="Semantic segmentation recipes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for function, options, arguments in COMMANDS:
        command = commands.add_parser(function.__name__, allow_abbrev=False, **options)
        for names, settings in arguments:
            command.add_argument(*names, **settings)
        command.set_defaults(command=function)
    values = vars(parser.parse_args(argv))
    run = values.pop("command")
    try:
        return run(**values)
    except Refusal as error:
        say(f"error: {error}", sys.stderr, keep="\n")
        return 1 if run is check else error.exit_status


def _command(help: str, *arguments: tuple, **options: str) -> Callable[[Callable], Callable]:
    """Make a command of a function, which gets the arguments by their names and returns the exit status."""

    def add(function: Callable[..., int]) -> Callable[..., int]:
        COMMANDS.append((function, {"help": help, **options}, arguments))
        return function

    return add


def _argument(*names: str, **settings: Any) -> tuple[Sequence[str], dict[str, Any]]:
    return names, settings


# Recipes, then overrides, as they are: argparse would take an override's value for a recipe, or the other way round.
_REST = {"nargs": argparse.REMAINDER, "help": "recipe files, then overrides"}
_MODEL = _argument("model", metavar="MODEL", help="a run's folder or a Hub id")


def _split(rest: list[str]) -> tuple[list[str], list[str]]:
    """Paths, and the overrides that follow them."""
    first_flag = next((number for number, word in enumerate(rest) if word.startswith("-")), len(rest))
    return rest[:first_flag], rest[first_flag:]


@_command("print the JSON Schema of recipes, for editors")
def schema() -> int:
    say(json.dumps(json_schema(), indent=2), keep="\n")
    return 0


@_command(
    "check recipes and print the order in which they would be trained",
    _argument("rest", metavar="RECIPE", **_REST),
    usage="hf-seg check RECIPE [RECIPE ...] [--section.key value ...]",
)
def check(rest: list[str]) -> int:
    for number, recipe in enumerate(load_recipes(*_split(rest)), 1):
        encoder = f", encoder of {recipe.encoder_recipe}" if recipe.encoder_recipe else ""
        say(f"{number}. {recipe.name} ({recipe.path}{encoder})")
    say("not tried: data, weights, the Hub, and a step of training (`hf-seg doctor` and a launch try the step)")
    return 0


@_command(
    "segment photographs",
    _MODEL,
    _argument("paths", nargs="+", metavar="PATH", help="image files, folders of them, patterns"),
    _argument("--out", required=True, metavar="DIR", help="folder for masks, overlays and predictions.jsonl"),
    _argument("--size", choices=("native", "model"), default="native", help="size of the masks"),
    _argument("--tta", choices=("flip",), help="average with the mirror image"),
    _argument("--tile", type=int, metavar="PIXELS", help="slide a window of this side over large images"),
    _argument("--batch_size", type=int, default=32),
    _argument("--device", help="such as cpu or cuda:1; by default the accelerator if there is one"),
    _argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32"),
)
def predict(model: str, paths: list[str], out: str, tta: str | None, **options: Any) -> int:
    from hf_seg.inference.write import predict_to_folder  # takes seconds, which the other commands need not

    return _say_left_out(predict_to_folder(model, paths, out, flip=tta == "flip", **options))


def _say_left_out(problems: Sequence[Problem]) -> int:
    for problem in problems:
        say(f"{problem.place}: left out: {problem.what}. {problem.remedy}", sys.stderr)
    return 1 if problems else 0


@_command(
    "write a recipe for your own photographs and masks",
    _argument(
        "source",
        metavar="DIR",
        help="folder with images/ and masks/, or train/, validation/ and test/; or with Parquet files; or a Hub id",
    ),
    _argument("--arch", choices=("segformer", "fcn"), default="segformer"),
    _argument("--overwrite", action="store_true", help="write recipe.json and preview.png again"),
    _argument("--out", metavar="DIR", help="folder to write to; a data set on the Hub needs one"),
    _argument("--revision", help="of a data set on the Hub: commit, tag or branch"),
    _argument("--config_name", help="of a data set with several configurations"),
    _argument("--image_column", help="of a table, when it is not found by itself"),
    _argument("--mask_column", help="of a table, when it is not found by itself"),
)
def init(source: str, **options: Any) -> int:
    from hf_seg.doctor.init import init

    return 0 if init(source, **options) else 1


@_command(
    "find what would hurt a training run, in its data and on this machine",
    _argument("--json", action="store_true", help="print one JSON object"),
    _argument("--all", action="store_true", help="name all files, not ten of a kind"),
    _argument("--deep", action="store_true", help="compare the caches of resized pairs with the files"),
    _argument("rest", metavar="RECIPE|DIR", **_REST),
    usage="hf-seg doctor [--json] [--all] [--deep] RECIPE|DIR [RECIPE|DIR ...] [--section.key value ...]",
)
def doctor(rest: list[str], **options: bool) -> int:
    from hf_seg.doctor.doctor import as_json, as_text, diagnose

    # the options may stand anywhere, and the parser gives all that follows the first path as it is
    flags = {f"--{option}": option for option in options}
    options |= {option: True for flag, option in flags.items() if flag in rest}
    paths, overrides = _split([word for word in rest if word not in flags])
    if not paths:
        raise Refusal("hf-seg doctor", "has nothing to examine", "name a recipe or a folder", code="usage")
    report = diagnose(paths, overrides, deep=options["deep"], disable_bar=None if options["json"] else False)
    say(as_json(report) if options["json"] else as_text(report, show_all=options["all"]), keep="\n")
    return 0 if report.would_start else 1


@_command(
    "put finished runs side by side, with intervals",
    _argument(
        "run_dirs", nargs="+", type=Path, metavar="RUN", help="runs' folders; NAME-seed0, NAME-seed1, … are one arm"
    ),
    _argument("--out", type=Path, metavar="DIR", help="write the report there with its pictures, and print nothing"),
)
def compare(run_dirs: list[Path], out: Path | None) -> int:
    from hf_seg.compare import compare
    from hf_seg.compare.report import build_report, write_report

    comparison = compare(run_dirs)
    if out is None:
        say(build_report(comparison), keep="\n")
    else:
        write_report(comparison, out)
        say(out / "comparison.html")
    return 0


@_command(
    "train the first steps of a run twice, and compare the bits",
    _argument("run_dir", type=Path, metavar="RUN", help="a finished run's folder, such as runs/quickstart-fcn"),
    _argument("--steps", type=int, default=5, help="how many (default: 5)"),
    _argument("--data_root", metavar="DIR", help="where the data is here, when it is not where it was"),
    _argument("--json", action="store_true", help="print one JSON object"),
)
def repro(run_dir: Path, json: bool, **options: Any) -> int:
    from hf_seg.training.repro import as_json, as_text, reproduce

    report = reproduce(run_dir, **options)
    say(as_json(report) if json else as_text(report), keep="\n")
    return 0 if report.same else 1


@_command(
    "upload a finished run to the Hugging Face Hub",
    _argument("run_dir", type=Path, metavar="RUN", help="a run's folder, such as runs/quickstart-fcn"),
    _argument("--repo", metavar="ORG/NAME", help="by default as in the recipe, else the run's name"),
    _argument("--private", action="store_true", help="make the repository private when it is created"),
    _argument("--revision", help="branch to push to; main by default"),
)
def push(run_dir: Path, private: bool, **options: str | None) -> int:
    from hf_seg.hub.push import push_run

    say(push_run(run_dir, private=private or None, **options))
    return 0


@_command(
    "write a model for other runtimes, and compare",
    _MODEL,
    _argument("--format", choices=("onnx",), default="onnx"),
    _argument("--out", type=Path, metavar="FILE", help="by default model.onnx in the run's folder"),
    _argument("--images", nargs="+", metavar="PATH", help="photographs to compare on; generated ones if none"),
)
def export(model: str, format: str, out: Path | None, images: list[str] | None) -> int:
    from hf_seg.inference.export import OPSET, export_onnx

    if out is None and not Path(model).is_dir():
        raise Refusal(model, "is no folder here, so say by --out where the file goes", code="export")
    out = out or Path(model) / "model.onnx"
    comparison = export_onnx(model, out, images=images)
    status = _say_left_out(comparison.unreadable)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, ONNX opset {OPSET}")
    say(f"agrees with PyTorch on {comparison}")
    return status


@_command(
    "serve a page to try models on, or push it as a Space",
    _argument("models", nargs="+", metavar="MODEL", help="a run's folder or a Hub id; two stand side by side"),
    _argument("--host", default="127.0.0.1"),
    _argument("--port", type=int, default=7860),
    _argument("--space", metavar="ORG/NAME", help="push the page as this Space instead of serving it"),
    _argument("--private", action="store_true", help="make the Space private when it is created"),
)
def demo(models: list[str], host: str, port: int, space: str | None, private: bool) -> int:
    from hf_seg.inference.demo import push_space, serve

    if space:
        say(push_space(models, space, private=private))
    else:
        serve(models, host=host, port=port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
