"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
