"""What `hf-seg doctor` says of one thing. Standard library only: it can be said where nothing else can be imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that hurts a training run, or that a person should know before it.

    Args:
        level (`"error"`, `"warning"` or `"note"`): training would be refused; it would start, and be the worse for it;
            it is as it should be, and good to know.
        code (`str`): the kind of finding, as docs/doctor.md lists them.
        file (`str`): the file, or the place where there is no file.
        what (`str`): what is the matter.
        remedy (`str`): what to do about it.
    """

    level: Level
    code: str
    file: str
    what: str
    remedy: str
