"""The documentation: pages are in docs/index.md, links lead somewhere, codes of problems are explained."""

import ast
import re
from pathlib import Path

import pytest

from hf_seg.compare import group, load_tested

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), *DOCS.rglob("*.md")])


def anchors(page):
    """Headings as a Markdown page is linked to."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index_once():
    rows = re.findall(r"^\| \[.+?\]\((.+?)\) \|", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}
    assert sorted(rows) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_scores_on_the_page_are_those_of_the_kept_runs():
    blocks = (DOCS / "results.md").read_text(encoding="utf-8").split("\n\n")
    places = [place for block in blocks for place in (block.splitlines() if block.startswith("|") else [block])]
    folders = [path for path in (DOCS / "evidence").iterdir() if path.is_dir()]
    arms = [arm for folder in folders for arm in group([load_tested(run) for run in folder.iterdir()])]
    assert len(arms) > 3
    for arm in arms:
        scores = [f"{arm.mean('test', *keys, 'mean_iou'):.3f}".lstrip("0") for keys in ((), ("native",))]
        assert any(all(score in place for score in scores) for place in places), (arm.name, scores)


def used_codes(path):
    """Codes that a file gives to problems, as `code="…"` or as the second argument of `_problem`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            given += node.args[1:2] if getattr(node.func, "id", None) == "_problem" else []
            constants = [part for value in given for part in ast.walk(value) if isinstance(part, ast.Constant)]
            yield from (constant.value for constant in constants if isinstance(constant.value, str))


def test_every_code_of_the_doctor_is_explained():
    text = (DOCS / "doctor.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \| (?:error|warning|note)\b", text, re.MULTILINE)
    explained = {code for cell in cells for code in re.findall(r"`([\w-]+)`", cell)}
    files = [path for room in ("data", "doctor") for path in (ROOT / "hf_seg" / room).rglob("*.py")]
    used = {code for path in files if path.name != "init.py" for code in used_codes(path)}
    assert len(used) > 30 and not used - explained
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_seg").rglob("*.py"))
    assert not [code for code in explained if f'"{code}"' not in source]
