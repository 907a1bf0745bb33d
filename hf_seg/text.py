"""Make text from outside (names of files and classes, answers of servers) safe for the place where it is shown.

[`printable`] is for terminals and logs, [`markdown`] for pages, and [`redact`] for what is published. Standard library
only.
"""

from __future__ import annotations

import html
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO
from urllib.parse import quote


def printable(text: str, keep: str = "") -> str:
    r"""Return text for a terminal or a log. Characters that are not printable are escaped, except those in `keep`.

    Control characters could move the cursor or start a new line. Surrogates, which stand for the bytes of a name that
    is not UTF-8, cannot be encoded.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def say(message: object = "", file: TextIO | None = None, keep: str = "") -> None:
    """Print a message, made [`printable`]: one line, or several with `keep="\\n"`. All programs print with this."""
    file = file or sys.stdout
    try:
        print(printable(str(message), keep), file=file, flush=True)
    except BrokenPipeError:  # the reader has ended, as `tee` does at the same Ctrl-C: the work goes on without output
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def prepare_output() -> None:
    """Prepare output at the start of a program. Output then accepts any text, whatever its encoding (such as that of a
    pipe on Windows); warnings and tracebacks are made [`printable`], too; and libraries that are imported later write
    no progress bars into files."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm reads it when it is imported
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())
    sys.excepthook = lambda *error: say(
        "".join(traceback.format_exception(*error)).rstrip("\n"), sys.stderr, keep="\n"
    )


class Markdown(str):
    """Text that is Markdown already."""


def markdown(text: object) -> Markdown:
    """Escape a text or number for one line of Markdown, also in a table. [`Markdown`] is returned as it is."""
    if isinstance(text, Markdown):
        return text
    text = html.escape(printable(str(text)).strip(), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return Markdown(re.sub(r"^(\d*)([-+#=]|(?<=\d)[.)])(?=[-+#=\s]|$)", r"\1\\\2", text))  # not a list or heading


def code(text: str) -> Markdown:
    """Format text as code in Markdown."""
    text = printable(text)
    # backslashes do not escape between backticks
    return Markdown(f"<code>{markdown(text)}</code>" if re.search(r"^$|^\s|\s$|[\\`|<]", text) else f"`{text}`")


def link(text: str, url: str) -> Markdown:
    """Build a link in Markdown."""
    return Markdown(f"[{markdown(text)}]({address(url)})")


def address(url: str) -> Markdown:
    """Escape the characters of a URL that could end it in Markdown."""
    return Markdown(quote(url, safe=":/?#@!$&*+,;=%", errors="backslashreplace"))


def markdown_table(rows: Sequence[Sequence[str]]) -> Markdown:
    """Build a table with aligned columns. The first row is the header."""
    cells = [[markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return Markdown("\n".join(lines))


def without_secrets(text: str) -> str:
    """Return text without Hub tokens and without user names and passwords in URLs."""
    return re.sub(r"(?<=://)[^\s/?#'\"<>]*@", "", re.sub(r"hf_[A-Za-z0-9]{16,}", "***", text))


# The beginning of a path: a folder at the root, in a home, on a drive, or in . or .., with the separator after it.
# Between quotation marks it may contain spaces.
_PLAIN, _QUOTED = r"(?:[^\s/\\'\"`,;:<>|()\[\]{}]|:(?=\w))", r"[^/\\'\"`\n]"
_BEGIN = r"(?:~[A-Za-z_][\w.-]*|(?:file:|~|[A-Za-z]:|\.\.?)?[/\\]+%s+)[/\\]"
_PLACES = re.compile(
    r"(?P<address>(?!file:)[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s'\"`,;<>|()\[\]{}:]|:(?!/[^/]))*)"
    rf"|(?<=(?P<mark>['\"`])){_BEGIN % _QUOTED}[^'\"`\n]*(?=(?P=mark))"
    rf"|(?<![\w/\\~]){_BEGIN % _PLAIN}(?:{_PLAIN}*[/\\])*{_PLAIN}*"
)


def redact(text: str) -> str:
    """Return text that may be published: without secrets, and with paths on this machine cut to their last part."""
    text = without_secrets(text)
    if re.match(r"(?:file:|~(?:[A-Za-z_][\w.-]*)?|[A-Za-z]:|\.\.?)?[/\\]", text):
        return _last_part(text)
    return _PLACES.sub(lambda found: found[0] if found["address"] else _last_part(found[0]), text)


def _last_part(path: str) -> str:
    *before, last = [part for part in re.split(r"[/\\]+", path) if part] or [path]
    return "~" if last.startswith("~") or before[-1:] in (["home"], ["Users"]) else last  # it is a user's name
