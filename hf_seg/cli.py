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
        `int`: exit status; 1 when a recipe is not in order.
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
    arguments = parser.parse_args(argv)
    if arguments.command == "schema":
        print(json.dumps(json_schema(), indent=2))
        return 0
    return _check(arguments.rest)


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


if __name__ == "__main__":
    sys.exit(main())
