"""Shared by the tests of what scores a trained model again."""

import io
from contextlib import redirect_stdout

import pytest


@pytest.fixture(scope="session")
def again(finished, tmp_path_factory):
    """The evaluation of the run on its own recipe, and what was printed."""
    from hf_seg import cli

    out, printed = tmp_path_factory.mktemp("evaluations") / "again", io.StringIO()
    with redirect_stdout(printed):
        assert cli.main(["evaluate", str(finished), str(finished.parents[1] / "a.json"), "--out", str(out)]) == 0
    return out, printed.getvalue()
