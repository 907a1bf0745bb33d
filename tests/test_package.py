"""What somebody has who installed the wheel: no checkout, no tests, and yet the shipped recipes."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_all_files_travel(installed):
    def names(folder, pattern):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob(pattern))

    for pattern in ("*.py", "*.jinja", "py.typed"):
        assert names(installed / "hf_seg", pattern) == names(ROOT / "hf_seg", pattern)
    assert names(installed / "hf_seg" / "recipes", "*.*") == names(ROOT / "recipes", "*.*")


def test_shipped_recipes_are_found_by_name(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    names = ["quickstart-fcn", "oxford-pet-fcn-from-cityscapes"]
    program = [sys.executable, "-m", "hf_seg.cli", "check", *names]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recipes = installed / "hf_seg" / "recipes"
    assert done.stdout.splitlines()[:2] == [
        f"1. quickstart-fcn ({recipes}/quickstart/quickstart-fcn.json)",
        f"2. cityscapes-fcn-scratch ({recipes}/cityscapes-fcn-scratch.json)",
    ]
    schema = json.loads((recipes / "quickstart" / "quickstart-fcn.json").read_text())["$schema"]
    assert (recipes / "quickstart" / schema).is_file()
