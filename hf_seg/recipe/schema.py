"""Types of recipe keys: from a Python annotation to a JSON Schema fragment, and from the fragment to a check.

One fragment serves the validator, the schema for editors and the table in docs/recipes.md: the three cannot disagree.
Standard library only. No JSON Schema validator is used: its messages ("50 is not a multiple of 32") name no remedy,
and it takes 64.0 for a whole number.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from typing import Any

_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "dict": "object",
    "list": "array",
    "tuple": "array",
}
_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a string",
    "object": "an object {...}",
    "array": "a list [...]",
    "null": "null",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "not empty",
}


def fragment(annotation: str, enums: Mapping[str, list[str]] | None = None) -> dict[str, Any]:
    """JSON Schema fragment of a type annotation.

    Args:
        annotation (`str`): as in the source, e.g. `"int | None"`, `"list[str]"`, `"bool | Literal['auto']"`.
        enums (`Mapping[str, list[str]]`, *optional*): enumeration classes the annotation may name, with their values.

    Returns:
        `dict`: with the keywords `type`, `enum`, `items`, `additionalProperties` or `anyOf`.

    Raises:
        TypeError: when a part of the annotation is not understood.
    """
    return _fragment(ast.parse(annotation, mode="eval").body, enums or {})


def _fragment(node: ast.expr, enums: Mapping[str, list[str]]) -> dict[str, Any]:
    match node:
        case ast.BinOp(op=ast.BitOr()):
            return _union([*_branches(node.left, enums), *_branches(node.right, enums)])
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Name(id="Any"):
            return {}
        case ast.Name(id=name) if name in _TYPES:
            return {"type": _TYPES[name]}
        case ast.Name(id=name) if name in enums:
            return {"enum": list(enums[name])}
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            choices = values.elts if isinstance(values, ast.Tuple) else [values]
            return {"enum": [ast.literal_eval(choice) for choice in choices]}
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return {"type": "array", "items": _fragment(item, enums)}
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, ast.Constant(value=rest)])) if (
            rest is ...
        ):
            return {"type": "array", "items": _fragment(item, enums)}
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[ast.Name(id="str"), value])):
            return {"type": "object", "additionalProperties": _fragment(value, enums)}
    raise TypeError(f"hf_seg cannot read the type annotation {ast.unparse(node)!r}")


def _branches(node: ast.expr, enums: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    found = _fragment(node, enums)
    return found.get("anyOf", [found])


def _union(branches: list[dict[str, Any]]) -> dict[str, Any]:
    # `SchedulerType | str` means one of the enumeration's values, as text: a bare `str` would let every text through.
    if any(isinstance(choice, str) for branch in branches for choice in branch.get("enum", [])):
        branches = [branch for branch in branches if branch != {"type": "string"}]
    unique = [branch for number, branch in enumerate(branches) if branch not in branches[:number]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value is of a fragment's type and within its limits.

    Strict where JSON Schema is not: `true` is not a number, 64.0 is not a whole number, and every number is finite.
    """
    if "anyOf" in schema and not any(fits(value, branch) for branch in schema["anyOf"]):
        return False
    if "enum" in schema and not any(type(value) is type(choice) and value == choice for choice in schema["enum"]):
        return False
    if "type" in schema and not _is_of_type(value, schema["type"]):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            return False
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            return False
        if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
            return False
        if "multipleOf" in schema and value % schema["multipleOf"]:
            return False
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        return False
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    if isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        return all(fits(item, schema["additionalProperties"]) for item in value.values())
    return True


def _is_of_type(value: Any, name: str) -> bool:
    match name:
        case "integer":
            return type(value) is int and abs(value) < 2**63
        case "number":
            # Compared, not converted: float(10**400) raises. NaN fails every comparison.
            return type(value) in (int, float) and abs(value) <= sys.float_info.max
        case "null":
            return value is None
    return isinstance(value, {"boolean": bool, "string": str, "object": dict, "array": list}[name])


def expectation(schema: Mapping[str, Any]) -> str:
    """What a fragment accepts, in words: `a whole number, at least 1, or null`."""
    if "anyOf" in schema:
        branches = [expectation(branch) for branch in schema["anyOf"]]
    elif "enum" in schema:
        branches = [json.dumps(choice) for choice in schema["enum"]]
    else:
        words = _WORDS.get(schema.get("type", ""), "any value")
        if schema.get("items"):
            words += f" of which each is {expectation(schema['items'])}"
        elif schema.get("additionalProperties"):
            words += f" in which each value is {expectation(schema['additionalProperties'])}"
        branches = [words]
    limits = [text.format(schema[keyword]) for keyword, text in _LIMITS.items() if keyword in schema]
    if "minimum" in schema and "maximum" in schema:
        limits = [f"from {schema['minimum']} to {schema['maximum']}", *limits[2:]]
    branches[0] = ", ".join([branches[0], *limits])
    if len(branches) == 1:
        return branches[0]
    return ", ".join(branches[:-1]) + (", or " if limits else " or ") + branches[-1]


def mismatch(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a value, or None: `must be a number, above 0, but is "1e-3"; write it without quotes`."""
    if fits(value, schema):
        return None
    shown = json.dumps(value, ensure_ascii=False)
    problem = f"must be {expectation(schema)}, but is {shown if len(shown) <= 80 else shown[:77] + '...'}"
    if isinstance(value, str):
        try:
            if fits(json.loads(value), schema):
                problem += "; write it without quotes"
        except (ValueError, RecursionError):
            pass
    elif isinstance(value, (int, float)) and fits(str(value), schema):
        problem += "; write it in quotes"
    return problem
