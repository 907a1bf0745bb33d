"""Templates: what they show is text, in Markdown and in HTML made of it."""

import re
from html import unescape
from pathlib import Path

import pytest
from hostile_names import NAMES
from jinja2 import UndefinedError

from hf_seg.runs.page import PAGES
from hf_seg.text import printable

ROOT = Path(__file__).parents[2]
every_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def show(source, **values):
    return PAGES.from_string(source).render(values)


@every_name
def test_a_value_is_text_in_html(name):
    page = show("{% filter html %}\nof {{ name }}\n\n- {{ name }}\n{% endfilter %}", name=name)
    found = re.fullmatch(r"<p>of (.*)</p>\n<ul>\n<li>(.*)</li>\n</ul>\n", page)
    assert found and [unescape(text) for text in found.groups()] == [printable(name).strip()] * 2


@every_name
def test_a_value_is_a_cell_of_a_table(name):
    source = "{% filter table %}\n| a | {{ name }} |\n|---|\n| {{ name }} | b |\n{% endfilter %}"
    lines = show(source, name=name).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    page = show("{% filter html %}" + source + "{% endfilter %}", name=name)
    cells = [unescape(cell) for cell in re.findall("<t[hd]>(.*?)</t[hd]>", page)]
    assert cells == ["a", printable(name).strip(), printable(name).strip(), "b"]
    assert set(re.findall("<([a-z]+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}


def test_a_value_that_is_not_there_is_an_error():
    with pytest.raises(UndefinedError, match="'x' is undefined"):
        show("{{ x }}")
    assert show("{{ 3 }} {{ 0.5 }} {{ -1 }}") == "3 0.5 -1"
