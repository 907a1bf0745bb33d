"""docs/reliability.md: the tests that it names are there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
TABLE = (TESTS.parent / "docs" / "reliability.md").read_text()

pytestmark = pytest.mark.faults


def test_tests_that_the_table_names():
    named = re.findall(r"`([\w/]+\.py)?(?:…)?(?:::(\w+)(\[\w+\])?)?`", TABLE)
    file, seen = None, 0
    for path, test, _ in named:
        file = path or file  # `…::name` is in the file named before
        if file is not None and (path or test):
            text = (TESTS / file).read_text()
            assert not test or f"def {test}(" in text, f"{file}::{test}"
            seen += 1
    assert seen > 30


def test_every_file_of_injected_faults_is_in_the_table():
    for path in (TESTS / "faults").glob("test_*.py"):
        assert path == Path(__file__) or f"faults/{path.name}" in TABLE, path.name
