"""Files that are written whole or not at all, strict JSON, locks, and the folder for data kept between runs."""

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

PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")  # names of files that a killed process may leave behind


@contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the block ends without an error: `with
    write_whole(path) as partial`. Until then, and after an error, a file at `path` stays as it was.

    Args:
        path: the file. Its folder is created. A link at `path` is replaced, and its target stays as it is.

    Yields:
        `Path`: in the same folder; no file exists there yet. If several processes write a file, the last one's stays.

    Raises:
        OSError: when the folder cannot be created or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")  # short: the file's name may be as long as allowed
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a file in UTF-8, whole or not at all."""
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_writable(folder: Path, remedy: str = "name another folder with --out") -> Path:
    """Return `folder`, or, if it does not exist yet, its nearest parent that exists. Raise a [`Refusal`] when that is
    not a folder or this user cannot write to it."""
    there = next(place for place in (folder, *Path(os.path.abspath(folder)).parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        raise Refusal(there, f"is not a folder, so nothing can be written to {folder}", remedy)
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refusal(there, "is not writable", remedy)
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
    """Parse strict JSON: NaN, Infinity, numbers beyond the range of a float, and repeated keys are refused.

    Raises:
        Refusal (a `ValueError`): with line and column where the standard parser gives them.
        ValueError: for an integer with more digits than Python converts.
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
    """Let one process of this machine at a time run the block; the others log a warning that they wait for a process
    that is `doing` it. A killed process releases the lock."""
    from filelock import FileLock, Timeout  # slow to import, and not needed by `hf-seg check`

    lock = FileLock(lock_file)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Waiting for another process that is %s …", doing)
        held = lock.acquire()
    with held:
        yield


def cache_folder() -> Path:
    """Return the folder of the data kept between runs: `hf_seg` in the Hugging Face cache (`$HF_HOME`)."""
    from huggingface_hub import constants  # slow to import, too

    return Path(constants.HF_HOME) / "hf_seg"
