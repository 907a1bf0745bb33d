"""The layers: who may import whom. What is imported for types only does not count."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hf_seg"
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__"): path for path in ROOT.rglob("*.py")
}
STANDARD = sys.stdlib_module_names

RECIPE = ["recipe", "recipe_arguments", "recipe_checks", "recipe_files", "recipe_keys", "recipe_types"]
FLAT = ["models/configuration_fcn", "models/modeling_fcn"]
# module → the modules of hf_seg that it may import; whatever is not named here may import none
ALLOWED = {
    **dict.fromkeys(RECIPE, RECIPE),
    "models": FLAT,
    "models/modeling_fcn": ["models/configuration_fcn"],
    "models/weights": [*FLAT, "models/weight_files"],
    "models/auto": ["models/weight_files"],
    "models/build": [*FLAT, "models/auto", "models/weights", "normalization"],
    "data": ["data", "data/*"],
    "data/*": ["data", "data/*"],
    "data/classes": ["data/*", "recipe_checks", "recipe_files", "text"],
    "data/hub_files": ["data/*", "recipe_checks", "recipe_files"],
    **dict.fromkeys(["data/archives", "data/examine", "data/examine_pair"], ["data", "data/*", "finding"]),
    "data/gather": ["data", "data/*", "finding"],
    "data/split_file": ["data/*", "recipe_files"],
    "transforms": ["augment", "data/spec", "normalization"],
    "arguments": ["recipe", "recipe_keys"],
    "processes": ["recipe"],
    "evaluation": ["boundary", "loss", "metrics", "roc"],
    "native": ["loss", "metrics", "transforms"],
    "trainer": ["arguments", "checkpoints", "data/spec", "evaluation", "loss", "metrics", "recipe", "transforms"],
    "compare": ["recipe", "results"],
    "compare_plots": ["compare", "figure", "plots"],
    "compare_report": ["compare", "compare_plots"],
    "results": ["recipe", "recipe_files", "recipe_keys"],
    "run_folder": ["data", "data/*", "processes", "recipe", "recipe_files", "recipe_keys", "results"],
    "checkpoints": ["recipe", "results"],
    "model_card": ["model_card_sections"],
    "hub": ["model_card", "recipe", "results"],
    "push": ["hub", "model_card", "recipe", "recipe_files", "results", "run_folder"],
    "train": [
        "arguments",
        "checkpoints",
        "data",
        "data/spec",
        "hub",
        "interruption",
        "memory",
        "model_card",
        "models/build",
        "native",
        "plots",
        "processes",
        "push",
        "recipe",
        "recipe_keys",
        "results",
        "roc",
        "run_folder",
        "trainer",
        "transforms",
    ],
    "repro": ["data", "models/build", "processes", "recipe", "results", "run_folder", "trainer", "transforms"],
    "segmenter": ["models", "models/weights"],
    "predict": ["segmenter"],
    "predict_files": ["predict"],
    "plots": ["figure"],
    "preview": ["data/*", "figure"],
    "environment_check": ["finding"],
    "doctor": ["data/*", "environment_check", "finding", "recipe", "recipe_keys", "transforms"],
    "init": ["data/*", "preview", "recipe", "recipe_keys"],
    "export": ["data/synthetic/pet", "predict", "predict_files"],
    "demo": ["data/synthetic", "demo_app", "hub", "models", "predict", "predict_files", "push"],
    "cli": [
        "compare",
        "compare_report",
        "data/spec",
        "demo",
        "doctor",
        "export",
        "hub",
        "init",
        "models/build",
        "predict",
        "predict_files",
        "push",
        "recipe",
        "repro",
    ],
}
# the libraries that a layer may import besides the standard one; whatever is not named here may import any
LIBRARIES = {
    **dict.fromkeys(RECIPE, set()),
    "cli": set(),
    "__init__": set(),
    **dict.fromkeys(["doctor", "finding", "text"], set()),
    "environment_check": {"torch", "torchvision"},
    **dict.fromkeys(FLAT, {"torch", "torchvision", "timm", "transformers"}),
    "models/build": {"torch", "transformers"},
    "augment": {"torch"},
    "metrics": {"datasets", "evaluate", "numpy", "torch"},
    **dict.fromkeys(["boundary", "roc"], {"numpy", "torch"}),
    "compare": {"numpy"},
    "compare_report": {"numpy"},
    "hub": {"httpx2", "huggingface_hub"},
    "push": {"transformers"},
    "model_card": {"huggingface_hub"},
    "model_card_sections": set(),
    "demo_app": {"PIL", "gradio", "numpy", "torch", "transformers"},
    **dict.fromkeys(["compare_plots", "figure", "plots"], {"matplotlib", "numpy", "torch"}),
    "data/hub_dataset": {"datasets", "numpy", "pyarrow"},
    "data/hub_files": {"datasets", "huggingface_hub", "pyarrow"},
    "data/*": {"PIL", "datasets", "filelock", "huggingface_hub", "numpy", "torch", "torchvision"},
}


def entry(table, module, default):
    if module in table:
        return table[module]
    return table.get(f"{module.partition('/')[0]}/*", default) if "/" in module else default


def runtime_imports(module):
    """Absolute names of what a file imports, at its top or in functions; `if TYPE_CHECKING` is left out."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    package = "hf_seg" if module == "__init__" else f"hf_seg/{module}".replace("/", ".")
    if FILES[module].name != "__init__.py":
        package = package.rpartition(".")[0]

    class Visitor(ast.NodeVisitor):
        found = set()

        def visit_If(self, node):
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node):
            self.found |= {alias.name for alias in node.names}

        def visit_ImportFrom(self, node):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*package.split(".")[: len(package.split(".")) - node.level + 1], base]))
            self.found |= {f"{base}.{alias.name}" for alias in node.names}

    visitor = Visitor()
    visitor.found = set()
    visitor.visit(tree)
    return visitor.found


def own_modules(names):
    found = set()
    for name in names:
        if name.partition(".")[0] == "hf_seg":
            parts = name.split(".")[1:]
            while parts and "/".join(parts) not in FILES:  # the last part may be a class or a function
                parts.pop()
            found.add("/".join(parts) or "__init__")
    return found


@pytest.mark.parametrize("module", sorted(FILES))
def test_module_imports_only_what_its_layer_may(module):
    names = runtime_imports(module)
    allowed = entry(ALLOWED, module, [])
    for other in own_modules(names):
        fits = other in allowed or f"{other.partition('/')[0]}/*" in allowed
        fits |= other == "text" and module not in (*FLAT, "demo_app")  # these go where no hf_seg is
        assert fits, f"{module} imports {other}, but may import only {allowed}"
    libraries = {name.partition(".")[0] for name in names} - STANDARD - {"hf_seg", "__future__"}
    may = entry(LIBRARIES, module, libraries)
    assert libraries <= may, f"{module} imports {sorted(libraries - may)}"


def test_the_table_names_modules_that_exist():
    for table in (ALLOWED, LIBRARIES):
        assert {module for module in table if not module.endswith("/*")} <= FILES.keys()


def test_no_module_is_named_like_a_library():
    # `accelerate launch hf_seg/train.py` puts hf_seg/ first on sys.path: such a module would shadow the library
    taken = {"accelerate", "datasets", "evaluate", "huggingface_hub", "matplotlib", "numpy", "timm", "torch"}
    top = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not top & (taken | {"torchvision", "transformers"} | STANDARD - {"__init__"})
