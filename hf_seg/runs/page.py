"""Markdown and HTML pages from templates: values are escaped as text, unless they are [`Markdown`] already."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from hf_seg.files import check_writable, write_text
from hf_seg.problem import Refusal
from hf_seg.text import Markdown, address, code, link, markdown, markdown_table, printable


def _align(table: str) -> str:
    """Align the columns of a Markdown table that a template has written."""
    lines = [line for line in table.splitlines() if line]
    header, _, *rows = [[Markdown(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return markdown_table([header, *rows]) + "\n"


def describe_size(data: Mapping[str, Any]) -> str:
    """Format the `image_size` of a recipe's data section, width first: `96×64`."""
    size = data["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return f"{width}×{height}"


def describe_input(data: Mapping[str, Any]) -> str:
    """Format the size of the model's input, and how pictures are brought to it unless they are stretched."""
    return describe_size(data) + ("" if data["resize"] == "stretch" else f", {data['resize']}")


def write_page(page: str, path: Path) -> None:
    """Write a page to `path`, completely or not at all."""
    write_text(page, path)


def generator(command: str) -> Markdown:
    """The tag that marks an HTML page as written by this command of `hf-seg`."""
    return Markdown(f'<meta name="generator" content="hf-seg {command}">')


def is_page_of(path: Path, command: str) -> bool:
    """Whether a file is an HTML page that this command has written."""
    return path.is_file() and generator(command) in path.read_text(encoding="utf-8", errors="replace")


def check_folder_of(page: Path, command: str) -> None:
    """Refuse the folder of `page` when it is not empty and does not hold this command's page, or is not writable."""
    folder = page.parent
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not is_page_of(page, command):
        what = f"exists and holds files other than a report of `hf-seg {command}`"
        raise Refusal(folder, what, "name another folder with --out", code=command)
    check_writable(folder)


# Templates are beside the modules that use them. For Markdown, `finalize` escapes values: autoescape is for HTML only.
_OPTIONS = {
    "loader": PackageLoader("hf_seg", "."),
    "undefined": StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
}
PAGES = Environment(finalize=markdown, **_OPTIONS)
HTML_PAGES = Environment(
    autoescape=True, finalize=lambda value: printable(value) if type(value) is str else value, **_OPTIONS
)
PAGES.filters |= {
    "table": _align,
    "describe_size": describe_size,
    "address": address,
    "code": code,
    "link": link,
    "html": MarkdownIt("commonmark", {"html": False}).enable("table").render,
    "json": json.dumps,
    # for values in blocks of code
    "python": lambda text: Markdown(json.dumps(text, ensure_ascii=False)),
    "shell": lambda text: Markdown(shlex.quote(text)),
}
