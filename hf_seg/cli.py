"""The `hf-seg` command. Training has its own launcher: `accelerate launch hf_seg/train.py recipes/x.json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from hf_seg.recipe import RecipeError, json_schema, load_recipes


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-seg`.

    Args:
        argv (`Sequence[str]`, *optional*): arguments; the process's own when None.

    Returns:
        `int`: exit status; 1 when a recipe is not in order or a photograph could not be read, 2 when nothing could be
        predicted at all.
    """
    # Neither parser abbreviates: `--help` is the only option here, and a recipe's overrides must be spelt out.
    parser = argparse.ArgumentParser(prog="hf-seg", description="Semantic segmentation recipes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("schema", help="print the JSON Schema of recipes, for editors", allow_abbrev=False)
    check = commands.add_parser(
        "check",
        help="check recipes and print the order in which they would be trained",
        usage="hf-seg check RECIPE [RECIPE ...] [--section.key value ...]",
        allow_abbrev=False,
    )
    # All that follows: argparse would otherwise take an override's value for a recipe, or the other way round.
    check.add_argument("rest", nargs=argparse.REMAINDER, metavar="RECIPE", help="recipe files, then overrides")
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
    arguments = parser.parse_args(argv)
    if arguments.command == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    return _check(arguments.rest) if arguments.command == "check" else _predict(arguments)


def _check(rest: Sequence[str]) -> int:
    first_flag = next((number for number, word in enumerate(rest) if word.startswith("-")), len(rest))
    try:
        recipes = load_recipes(rest[:first_flag], rest[first_flag:])
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    for number, recipe in enumerate(recipes, 1):
        encoder = f", encoder of {recipe.encoder_recipe}" if recipe.encoder_recipe else ""
        print(f"{number}. {recipe.name} ({recipe.path}{encoder})")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    # these take seconds to import, which the other commands need not
    from hf_seg.predict import PredictError
    from hf_seg.predict_files import predict_to_folder

    options = {key: getattr(arguments, key) for key in ("size", "tile", "batch_size", "device", "dtype")}
    try:
        unreadable = predict_to_folder(
            arguments.model, arguments.paths, arguments.out, flip=arguments.tta == "flip", **options
        )
    except PredictError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in unreadable:
        print(f"{file.path}: left out, it cannot be read ({file.reason})", file=sys.stderr)
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
