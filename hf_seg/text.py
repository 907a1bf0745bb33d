"""Text from outside (names of files and classes, answers of servers), made safe for the place where it is shown.

One function a medium: [`printable`] for terminals and logs, [`markdown`] for pages; and [`redact`] for what is
published. Standard library only.
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
    r"""Text for a terminal or a log: what is not printable, but for the characters in `keep`, stands there escaped.

    Control characters could move the cursor or start a new line, and the halves of a name that is not UTF-8
    (surrogates) cannot be encoded.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def say(message: object = "", file: TextIO | None = None, keep: str = "") -> None:
    """Print what [`printable`] makes of a message: one line, several with `keep="\\n"`. The programs print by this."""
    print(printable(str(message), keep), file=file or sys.stdout, flush=True)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def prepare_output() -> None:
    """Called where a program starts: output takes every text, whatever its encoding (such as a pipe's on Windows);
    warnings and tracebacks are printable too; and libraries that are not imported yet write no bars into files."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # which tqdm reads when it is imported
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
    """A text or number for one line of Markdown, in a table too; what is [`Markdown`] already stays as it is."""
    if isinstance(text, Markdown):
        return text
    text = html.escape(printable(str(text)).strip(), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return Markdown(re.sub(r"^(\d*)([-+#=]|(?<=\d)[.)])(?=[-+#=\s]|$)", r"\1\\\2", text))  # no list, no heading


def code(text: str) -> Markdown:
    """Text as code in Markdown."""
    text = printable(text)
    # backslashes do not escape between backticks
    return Markdown(f"<code>{markdown(text)}</code>" if re.search(r"^$|^\s|\s$|[\\`|<]", text) else f"`{text}`")


def link(text: str, url: str) -> Markdown:
    """A link in Markdown."""
    return Markdown(f"[{markdown(text)}]({address(url)})")


def address(url: str) -> Markdown:
    """A URL without characters that could end it."""
    return Markdown(quote(url, safe=":/?#@!$&*+,;=%", errors="backslashreplace"))


def markdown_table(rows: Sequence[Sequence[str]]) -> Markdown:
    """A table whose columns stand under each other; the first row is the header."""
    cells = [[markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return Markdown("\n".join(lines))


def without_secrets(text: str) -> str:
    """Text without the tokens of the Hub, and without the names and passwords in addresses."""
    return re.sub(r"(?<=://)[^\s/?#'\"<>]*@", "", re.sub(r"hf_[A-Za-z0-9]{16,}", "***", text))


# A folder at the root, at a home or at a drive, and a separator after it; between quotation marks it may hold spaces.
_PLAIN, _QUOTED = r"(?:[^\s/\\'\"`,;:<>|()\[\]{}]|:(?=\w))", r"[^/\\'\"`\n]"
_BEGIN = r"(?:~[A-Za-z_][\w.-]*|(?:file:|~|[A-Za-z]:|\.\.?)?[/\\]+%s+)[/\\]"
_PLACES = re.compile(
    r"(?P<address>(?!file:)[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s'\"`,;<>|()\[\]{}:]|:(?!/[^/]))*)"
    rf"|(?<=(?P<mark>['\"`])){_BEGIN % _QUOTED}[^'\"`\n]*(?=(?P=mark))"
    rf"|(?<![\w/\\~]){_BEGIN % _PLAIN}(?:{_PLAIN}*[/\\])*{_PLAIN}*"
)


def redact(text: str) -> str:
    """Text for the public: without secrets, and with places on the machine cut to their last part."""
    text = without_secrets(text)
    if re.match(r"(?:file:|~(?:[A-Za-z_][\w.-]*)?|[A-Za-z]:|\.\.?)?[/\\]", text):
        return _last_part(text)
    return _PLACES.sub(lambda found: found[0] if found["address"] else _last_part(found[0]), text)


def _last_part(path: str) -> str:
    *before, last = [part for part in re.split(r"[/\\]+", path) if part] or [path]
    return "~" if last.startswith("~") or before[-1:] in (["home"], ["Users"]) else last  # a person's name
