"""The rooms of hf_seg: which may import which, and how many arrows that makes. Imports for types do not count."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hf_seg"
FILES = sorted(ROOT.rglob("*.py"))
BASE = {"files", "problem", "processes", "text"}  # whom every room may import
# room → the other rooms that it may import; a run passes through them from top to bottom
ALLOWED = {
    "recipe": set(),
    "data": {"recipe"},
    "models": {"data", "recipe"},
    "scoring": {"data"},
    "runs": {"data", "recipe", "scoring"},
    "training": {"data", "models", "recipe", "runs", "scoring"},
    "hub": {"recipe", "runs"},
    "launch": {"data", "hub", "models", "recipe", "runs", "training"},
    "train": {"data", "hub", "launch", "runs", "training"},
    "doctor": {"data", "launch", "recipe", "runs"},
    "inference": {"data", "hub", "models", "scoring"},
    "compare": {"recipe", "runs", "scoring"},
    "cli": {"compare", "doctor", "hub", "inference", "recipe", "train", "training"},
    "processes": set(),
    "problem": {"text"},
    "files": set(),
    "text": set(),
}
# files that must be light, or that go to the Hub alone: the libraries that they may import besides the standard one
LIBRARIES = {
    "recipe": {"pydantic"},
    "cli.py": {"typer"},
    "files.py": {"filelock", "huggingface_hub"},
    "problem.py": {"text"},
    "text.py": set(),
    "doctor/doctor.py": set(),
    "doctor/environment.py": {"packaging", "torch", "torchvision"},
    "models/configuration_fcn.py": {"transformers"},
    "models/modeling_fcn.py": {"timm", "torch", "torchvision", "transformers"},
    "models/configuration_smp.py": {"transformers"},
    "models/modeling_smp.py": {"segmentation_models_pytorch", "timm", "torch", "transformers"},
    "inference/demo_app.py": {"PIL", "gradio", "numpy", "torch", "transformers"},
    "data": {
        "PIL",
        "datasets",
        "filelock",
        "huggingface_hub",
        "numpy",
        "pyarrow",
        "pycocotools",
        "torch",
        "torchvision",
        "transformers",
    },
    "compare/__init__.py": {"numpy"},
    "hub/client.py": {"httpx2", "huggingface_hub"},
}


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path):
    """Dotted names of what a file imports, at its top or in functions; `if TYPE_CHECKING` is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    hidden = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and id(node) not in hidden:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import) and id(node) not in hidden:
            yield from (alias.name for alias in node.names)


def arrows():
    """Pairs of rooms of which the first imports the second."""
    for path in FILES:
        for name in imported(path):
            room, other = room_of(path), name.split(".")[1] if name.startswith("hf_seg.") else "__version__"
            if other not in (room, "__version__"):
                yield room, other


def test_rooms_import_only_those_that_they_may():
    wrong = {(room, other) for room, other in arrows() if other not in ALLOWED[room] | BASE}
    assert not wrong


def test_no_circle_few_rooms_few_arrows():
    drawn, left = set(arrows()), {room_of(path) for path in FILES}
    assert len(left) <= 20 and len(drawn) <= 75
    while left:
        free = {room for room in left if not any(a == room and b in left for a, b in drawn)}
        assert free, f"a circle of imports among {sorted(left)}"
        left -= free


@pytest.mark.parametrize("place", LIBRARIES)
def test_libraries(place):
    files = [path for path in FILES if path.is_relative_to(ROOT / place)]
    found = (
        {name.partition(".")[0] for path in files for name in imported(path)} - sys.stdlib_module_names - {"hf_seg"}
    )
    assert files and found <= LIBRARIES[place]


def test_init_is_fast_to_start():
    # torch takes seconds to import, and init needs none of it
    program = "import sys, hf_seg.doctor.init; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_size():
    assert not [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert len([path for path in FILES if path.parent == ROOT]) <= 12


def test_no_module_is_named_like_a_library():
    # `accelerate launch hf_seg/train.py` puts hf_seg/ first on sys.path: such a module would shadow the library
    names = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert not names & (packages_distributions().keys() | sys.stdlib_module_names)


def test_train_is_read_on_two_screens():
    text = (ROOT / "train.py").read_text(encoding="utf-8")
    body = ast.parse(text).body
    (run,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(text.splitlines()) <= 130 and run.end_lineno - run.lineno < 45
    assert sum(node.end_lineno - node.lineno + 1 for node in imports) <= 20
