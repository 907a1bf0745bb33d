"""Hostile names in every medium: they come out as text, on their own line, in their own cell."""

import ast
import io
import json
import logging
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hostile_names import NAMES
from markdown_it import MarkdownIt
from PIL import Image

import hf_seg
from hf_seg import cli
from hf_seg.data.pairs import report_pairs
from hf_seg.inference import demo_app
from hf_seg.problem import PairError, RecipeError
from hf_seg.runs.figure import open_figure, shorten
from hf_seg.text import code, link, markdown, markdown_table, prepare_output, printable, redact, say

every_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


class Page(HTMLParser):
    """Tags of HTML, and its texts by the tag around them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.texts[tag][-1] += data


def rendered(text):
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


@every_name
def test_a_terminal_gets_one_line(name, capsys):
    say(f"{name}: is wrong")
    say(f"first\n{printable(name)}", file=sys.stderr, keep="\n")
    out, err = capsys.readouterr()
    assert out.endswith(": is wrong\n") and out.count("\n") == 1 and out[:-1].isprintable()
    assert err.count("\n") == 2 and err.replace("\n", "").isprintable()
    assert out == f"{printable(out[:-1])}\n"  # once escaped, it stays


@every_name
def test_messages_for_many_files_keep_their_lines(name):
    error = PairError(f"images/{name}", "is damaged", "Get it again.")
    assert str(error).isprintable() and error.problem.place == f"images/{name}"
    other = PairError(f"masks/{name}", "is damaged", "Get it again.")
    lines = str(report_pairs(name, [error.problem, other.problem], 5)).split("\n")
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    assert all(line.isprintable() for line in str(RecipeError(name, "x", name)).split("\n"))


@every_name
def test_markdown_has_it_as_text(name):
    expected = printable(name)
    page = rendered(f"# {markdown(name)}\n\n{markdown(name)}\n\n- {markdown(name)}\n\nof {code(name)}, see")
    texts = {tag: [" ".join(text.split()) for text in texts] for tag, texts in page.texts.items()}
    expected = " ".join(printable(name).split())
    assert texts["h1"] == texts["li"] == texts["code"] == [expected]
    assert texts["p"] == [expected, f"of {expected}, see"]
    assert page.tags == ["h1", "p", "ul", "li", "p", "code"]
    page = rendered(link(name, f"https://a.b/{name}"))
    assert page.tags == ["p", "a"] and page.texts["a"] == [printable(name).strip()]


@every_name
def test_a_row_of_a_table_stays_a_row(name):
    table = markdown_table([["name", "code", name], [name, code(name), "1"], ["a", "b", "-0.5"]])
    assert len(table.split("\n")) == 4
    page = rendered(table)
    assert page.tags.count("tr") == 3 and page.tags.count("td") == 6 and page.tags.count("code") == 1
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td", "code"}
    shown = [text.strip() for text in page.texts["td"]]
    assert shown == [printable(name).strip(), printable(name).strip(), "1", "a", "b", "-0.5"]


@every_name
def test_html_has_it_as_text(name):
    page = Page(f'<p title="{demo_app.escape(name)}">{demo_app.escape(name)}</p>')
    assert page.tags == ["p"] and page.texts["p"] == [printable(name)]


def test_ordinary_names_stay_as_they_are():
    for name in ("oxford-pet-fcn-scratch", "traffic_light", "tree (low)", "-0.1234", "+0.5", "1.5 m", "Straße 道"):
        assert markdown(name) == printable(name) == name and code(name) == f"`{name}`"


@pytest.mark.filterwarnings("error")
def test_a_figure_takes_every_name(tmp_path):
    with open_figure(tmp_path / "x.png", height=2) as figure:
        for number, name in enumerate(NAMES.values()):
            figure.text(0, number / len(NAMES), shorten(name.replace("道", ""), 99))  # no sign in matplotlib's font
    assert (tmp_path / "x.png").exists()


def test_no_library_writes_bars_into_files():
    program = "from hf_seg.text import prepare_output; prepare_output(); import tqdm; [*tqdm.tqdm('abc')]"
    bare = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    assert subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_output_in_any_encoding(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_output()
    for name in NAMES.values():
        say(f"× → 道 {name}")
    print("na\udcefve")  # by a library
    stream.flush()
    lines = stream.buffer.getvalue().decode(encoding).splitlines()
    assert len(lines) == len(NAMES) + 1 and (encoding != "ascii" or lines[0].startswith(r"\xd7 \u2192 \u9053 "))


def test_warnings_and_tracebacks_are_printable(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "excepthook", None)
    prepare_output()
    record = logging.LogRecord("hf_seg.data", logging.WARNING, "", 1, "%s: left out\n2", ("\x1b[31m",), None)
    logging.lastResort.handle(record)
    assert sys.stderr.getvalue() == "\\x1b[31m: left out\n2\n"
    sys.excepthook(ValueError, ValueError("\x1b[32m"), None)
    assert sys.stderr.getvalue().endswith("ValueError: \\x1b[32m\n")


def test_all_output_goes_through_one_function():
    for file in Path(hf_seg.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        calls = [node.func for node in ast.walk(ast.parse(text * ("print(" in text))) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert len(printing) == (file.name == "text.py"), f"{file}: print by hf_seg.text.say"


@pytest.mark.parametrize(
    ("text", "shown"),
    {
        "/home/bob/x": "x",
        "/home/bob smith/my x": "my x",
        "[/home/bob/x]": "[x]",
        "[/home/bob/x](https://a.b/c)": "[x](https://a.b/c)",
        "path:/home/bob/x": "path:x",
        "path=/home/bob/x; y": "path=x; y",
        "(/home/bob/x), {/home/bob/y}, </home/bob/z>": "(x), {y}, <z>",
        "no '/home/bob smith/x y', nor `/home/bob/z`": "no 'x y', nor `z`",
        "PATH is /home/bob/x:/home/bob/y": "PATH is x:y",
        "in /home/bob/x/: no": "in x: no",
        "in /home/bob and /Users/bob/": "in ~ and ~",
        "/home/bob": "~",
        "file:///home/bob/x": "x",
        "see file:///home/bob/x, too": "see x, too",
        "https://a.b/c:/home/bob/x": "https://a.b/c:x",
        "~bob/x": "x",
        "see ~bob/x and ~/bob/y": "see x and y",
        "in ../bob/x": "in x",
        r"C:\Users\bob\x": "x",
        r"in C:\Users\bob\x.png, D:/bob/y": "in x.png, y",
        r"a=\\server\bob\x": "a=x",
        "https://bob:pass@host/x": "https://host/x",
        "see https://bob:p@ss@host, s3://bob:secret@bucket/x": "see https://host, s3://bucket/x",
        f"hf_{'aB3' * 12} said": "*** said",
    }.items(),
)
def test_what_is_private_is_left_out(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "1/2",
            "and/or",
            "(and/or)",
            "a / b",
            "n/a",
            "km/h",
            "+/-",
            "val/train",
            "2024/05/01",
            "50 % /2",
            "~5 %",
        ),
        *("about ~3/4", "org/name", "runs/x/y.pt", "timm/resnet50.tv2_in1k", "hf_seg", "git@github.com:org/name"),
        *("https://a.b/~c/d?x=1#e", "https://a.b:8080/c", "hf://datasets/org/name@main/x", "[x](https://a.b/c)"),
        *("https://web.archive.org/web/2024/https://a.b/c", "</a></b>", "<script>alert(1)</script>", "10:30/11:30"),
    ],
)
def test_what_is_public_stays(text):
    assert redact(text) == text == redact(redact(text))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_check_prints_a_line_a_recipe(name, write_recipe, tmp_path, capsys):
    plain = write_recipe("plain")
    file = tmp_path / f"{name.replace('/', ' ')}.json"
    file.write_bytes(plain.read_bytes())
    cli.main(["check", str(file), str(plain)])
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).splitlines())
    assert not out or [line.partition(". ")[0] for line in out.splitlines()[:-1]] == ["1", "2"]


def test_init_and_doctor_name_the_files(tmp_path, capsys):
    """Each of the names once for a pair that is in order, and once for a photograph without a mask."""
    names = [name.replace("/", " ") for name in NAMES.values() if name.isascii()]
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for number, name in enumerate(names):
            pixels = np.random.default_rng(number).integers(0, 2, (32, 32), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{name}.png")
    for name in names:
        (tmp_path / "images" / f"no mask {name}.png").write_bytes(b"")
    assert cli.main(["init", str(tmp_path)]) == 1
    classes = json.loads((tmp_path / "classes.json").read_text())
    classes["classes"][0]["name"] = NAMES["markup"]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    assert cli.main(["doctor", "--all", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in out.splitlines())
    for name in names:
        assert out.count(f"no mask {printable(name)}.png") >= 1
    assert cli.main(["doctor", "--json", "--all", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.isascii() and "\x1b" not in out
    files = {finding["place"] for finding in json.loads(out)["findings"]}
    assert all(any(file.endswith(f"no mask {name}.png") for file in files) for name in names)


def test_a_reader_that_has_ended_does_not_end_the_work():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        say("nobody reads this", file)
        say("nor this", file)
