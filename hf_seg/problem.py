"""What is wrong, or worth knowing: one [`Problem`] each. hf_seg says no with a [`Refusal`], which carries them.

`hf-seg doctor` prints problems, training raises them and the command line prints them: the same objects, told apart by
their codes. Standard library only: they can be printed where nothing else can be imported.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from hf_seg.text import printable

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that stops a run, makes it worse, or that a person should know before it.

    Args:
        level (`"error"`, `"warning"` or `"note"`): training is refused; it starts, and is the worse for it; all is in
            order, and this is good to know.
        code (`str`): the kind of problem, as docs/doctor.md lists them.
        place (`str`): the file, the key, or whatever it is about.
        what (`str`): what is wrong.
        remedy (`str`): what to do about it: a sentence, or words that go on after a semicolon.
    """

    level: Level = "error"
    code: str
    place: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line: names in it come from outside, and a line break in one must not look like the next problem."""
        text = ": ".join(filter(None, (self.place, self.what)))
        if self.remedy:
            sentence = " " if text.endswith("?") else ". "
            text += f"{'; ' if self.remedy[0].islower() else sentence}{self.remedy}"
        return printable(text)


class Refusal(ValueError):
    """hf_seg does not go on, and says why: one problem or several.

    Args:
        place (`str` or path): as in [`Problem`].
        what (`str`), remedy (`str`, *optional*): the same.
        code (`str`, *optional*): by default the class's.
        problems (`Sequence[Problem]`, *optional*): instead of the others, several problems.
        heading (`str`, *optional*): a line above many problems of one kind: up to ten are then named, all are counted,
            and each remedy is given once.
    """

    default_code: ClassVar[str] = "refused"
    exit_status: ClassVar[int] = 2  # of the command that ends with it

    def __init__(
        self,
        place: str | os.PathLike = "",
        what: str = "",
        remedy: str = "",
        *,
        code: str | None = None,
        problems: Sequence[Problem] = (),
        heading: str = "",
    ):
        own = Problem(code=code or self.default_code, place=os.fspath(place), what=what, remedy=remedy)
        self.problems = list(dict.fromkeys(problems)) or [own]
        self.heading = heading
        super().__init__(str(self))

    def __str__(self) -> str:
        if not self.heading:
            return "\n".join(map(str, self.problems))
        known = self.heading.partition(":")[0]  # is not named again
        lines = [
            self.heading,
            *(f"  {'' if p.place == known else f'{p.place}: '}{p.what}" for p in self.problems[:10]),
        ]
        if more := self.problems[10:]:
            lines.append(f"  … and {len(more)} more")
        lines += filter(None, dict.fromkeys(problem.remedy for problem in self.problems))
        return "\n".join(map(printable, lines))

    def __reduce__(self):  # a data loader's worker sends it to the main process
        return partial(type(self), problems=self.problems, heading=self.heading), ()


class RecipeError(Refusal):
    """A recipe, or the command line that changes it, is at fault."""

    default_code = "recipe"


class DataError(Refusal):
    """Something is wrong with the data itself: missing, unreadable, or not what the data set promises."""

    default_code = "data-set"


class PairError(DataError):
    """One image or its mask cannot be used; the remedy is the same words for all files with the same trouble."""

    @property
    def problem(self) -> Problem:
        return self.problems[0]


class HubError(Refusal):
    """The Hub refuses, or cannot be reached."""

    default_code = "hub"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The remedy for an unknown name: the known one that is closest, or else a text of the caller's."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'did you mean "{close[0]}"?' if close else otherwise


def disk_remedy(error: BaseException | None) -> str:
    """What to do when this user may not write, or read, there, or the disk is full; empty for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free disk space."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            "Give this user the right to read and write there; or, for what is in the Hugging Face cache, set HF_HOME "
            "to a folder of your own."
        )
    return ""


def one_line(error: object) -> str:
    """What an error says, in one line and without a full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def first(names: Iterable[object], count: int = 5, between: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    names = [str(name) for name in names]
    return between.join(names[:count]) + (f" and {len(names) - count:,} more" if names[count:] else "")
