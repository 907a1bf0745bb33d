"""Files: written whole or not at all, strict JSON, locks, and the folder of what is kept between runs."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_seg.problem import Refusal

logger = logging.getLogger(__name__)

PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")  # what a killed process may leave in the folder of its file


@contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, which gets its own name when the block ends without an error: `with write_whole(path)
    as partial`. Until then, and after an error, what stands at `path` stays as it was.

    Args:
        path: the file. Its folder is made; a link that stands there is replaced, and what it leads to stays.

    Yields:
        `Path`: no file yet, in the same folder. Several processes may write one file: the last one's stays.

    Raises:
        OSError: when the folder cannot be made or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")  # short: the file's own name may be as long as can be
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a file in UTF-8, whole or not at all."""
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_writable(folder: Path, remedy: str = "name another folder by --out") -> Path:
    """The nearest folder that is there already, of one that is still to be made; a [`Refusal`] when this user cannot
    write in it."""
    there = next(place for place in (folder, *Path(os.path.abspath(folder)).parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        raise Refusal(there, f"is no folder, so nothing can be written to {folder}", remedy)
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refusal(there, "may not be written to", remedy)
    return there


def write_json(value: Any, path: Path) -> None:
    """Write strict JSON (a number that is not finite becomes null), whole or not at all."""
    write_text(json.dumps(_strict(value), indent=2, allow_nan=False) + "\n", path)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity, no number beyond a float's range, no key twice.

    Raises:
        Refusal (a `ValueError`): with line and column where the standard parser knows them.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise Refusal("", f'the key "{key}" is given twice', "keep one of the two")
            seen[key] = value
        return seen

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise Refusal("", f"{number} is not a finite number", "write a finite number")
        return value

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=finite, parse_float=finite)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise Refusal("", f"is not JSON: {error.msg} at {place}", "correct it") from None
    except RecursionError:
        raise Refusal("", "is nested too deeply") from None


@contextmanager
def one_process(lock_file: Path, doing: str) -> Iterator[None]:
    """Let one process of this machine in at a time; the others say what they wait for. A killed process lets go."""
    from filelock import FileLock, Timeout  # slow to import, and `hf-seg check` locks nothing

    lock = FileLock(lock_file)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Waiting for another process that is %s …", doing)
        held = lock.acquire()
    with held:
        yield


def cache_folder() -> Path:
    """Where hf_seg keeps things between runs: `hf_seg` in the Hugging Face cache (`$HF_HOME`)."""
    from huggingface_hub import constants  # as above

    return Path(constants.HF_HOME) / "hf_seg"
