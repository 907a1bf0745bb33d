"""A [`Problem`] is one thing that is wrong or worth knowing; a [`Refusal`] is the exception that carries problems.

`hf-seg doctor` prints problems, training raises them, and the command line prints what is raised. All use the same
objects, whose kinds differ in `code`. Standard library only, so that problems can be printed where nothing else can be
imported.
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
    """One thing that stops a run, makes it worse, or is good to know before it.

    Args:
        level (`"error"`, `"warning"` or `"note"`): error: training is refused; warning: training starts, but is worse
            or slower; note: nothing is wrong.
        code (`str`): the kind of problem, as docs/doctor.md lists them.
        place (`str`): the file, key or other thing that has the problem.
        what (`str`): what is wrong.
        remedy (`str`): what to do about it: a sentence, or a phrase in lower case, which is put after a semicolon.
    """

    level: Level = "error"
    code: str
    place: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return one line. Names in it come from outside: a line break in one must not look like another problem."""
        text = ": ".join(filter(None, (self.place, self.what)))
        if self.remedy:
            sentence = " " if text.endswith("?") else ". "
            text += f"{'; ' if self.remedy[0].islower() else sentence}{self.remedy}"
        return printable(text)


class Refusal(ValueError):
    """The error that hf_seg raises when it cannot go on, with one problem or several as the reason.

    Args:
        place (`str` or path), what (`str`), remedy (`str`, *optional*): as in [`Problem`].
        code (`str`, *optional*): as in [`Problem`]; by default the class's `default_code`.
        problems (`Sequence[Problem]`, *optional*): several problems, instead of the one that the arguments above give.
        heading (`str`, *optional*): a line above many problems of one kind. Then up to ten are listed, the others are
            counted, and each remedy is given once.
    """

    default_code: ClassVar[str] = "refused"
    exit_status: ClassVar[int] = 2  # of a command that ends with this error

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
        known = self.heading.partition(":")[0]  # the heading names it already
        lines = [
            self.heading,
            *(f"  {'' if p.place == known else f'{p.place}: '}{p.what}" for p in self.problems[:10]),
        ]
        if more := self.problems[10:]:
            lines.append(f"  … and {len(more)} more")
        lines += filter(None, dict.fromkeys(problem.remedy for problem in self.problems))
        return "\n".join(map(printable, lines))

    def __reduce__(self):  # for pickle: a data loader's worker sends it to the main process
        return partial(type(self), problems=self.problems, heading=self.heading), ()


class RecipeError(Refusal):
    """A recipe, or an override on the command line, is wrong."""

    default_code = "recipe"


class DataError(Refusal):
    """The data itself is missing, unreadable, or not what the data set promises."""

    default_code = "data-set"


class PairError(DataError):
    """One image or its mask cannot be used. Files with the same problem have the same text as remedy."""

    @property
    def problem(self) -> Problem:
        return self.problems[0]


class HubError(Refusal):
    """Something cannot be pushed to the Hub, or the Hub refuses a request or cannot be reached."""

    default_code = "hub"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the remedy for an unknown name: a question with the closest known name, or else `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'did you mean "{close[0]}"?' if close else otherwise


def disk_remedy(error: BaseException | None) -> str:
    """Return what to do when the disk is full or this user lacks rights to read or write; empty for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free disk space."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            "Give this user the right to read and write there; or, for files in the Hugging Face cache, set HF_HOME "
            "to a folder of your own."
        )
    return ""


def one_line(error: object) -> str:
    """Return an error's message in one line without a full stop, or its class name if it has no message."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def first(names: Iterable[object], count: int = 5, between: str = ", ") -> str:
    """Join the first `count` names, and say how many more there are."""
    names = [str(name) for name in names]
    return between.join(names[:count]) + (f" and {len(names) - count:,} more" if names[count:] else "")
