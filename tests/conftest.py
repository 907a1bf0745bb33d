"""Shared by the tests that train: tiny recipes, and launches of the real program."""

import functools
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY_MODELS
from hub_server import WRITER, Hub
from input_tree import InputTree

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


HUB_PORT = free_port()
# Read when huggingface_hub is imported. No test goes beyond this machine: the Hub is one on loopback, and only there
# while a test asks for the fixture `hub`.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT}",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # as hf_seg sets it, but a test file may import torch first
}
os.environ.pop("HF_TOKEN", None)
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # A worker, and the processes that it starts, have cores of their own: threads of other workers would only be in
    # the way. Where there are more workers than cores, several share one.
    worker, count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[worker::count] or {cores[worker % len(cores)]})


@pytest.fixture
def tiny_models():
    """The `model` sections that [`write_recipe`] uses, by architecture."""
    return TINY_MODELS


@pytest.fixture
def write_recipe(tmp_path):
    """Write `<name>.json` with a tiny recipe: `write_recipe("a", arch="fcn", training={...}, data={...})`."""

    def write(name: str, *, arch: str = "segformer", model=None, data=None, training=None) -> Path:
        recipe = {
            "model": TINY_MODELS[arch] | {"init": "scratch"} | (model or {}),
            "data": {
                "name": "synthetic_pet",
                "max_train_samples": 32,
                "max_validation_samples": 10,
                "max_test_samples": 10,
            }
            | (data or {}),
            "training": {
                "num_train_epochs": 2,
                "global_train_batch_size": 8,
                "eval_every_epochs": 1,
                "bf16": False,
                "report_to": "none",
                "disable_tqdm": True,
            }
            | (training or {}),
        }
        path = tmp_path / "recipes" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recipe, indent=2))
        return path

    return write


@pytest.fixture(autouse=True)
def input_tree(request, monkeypatch):
    """Around each command of a test: the files in `tmp_path` that it did not write itself stay as they are."""
    if "tmp_path" not in request.fixturenames:
        yield None
        return
    if "run" in request.fixturenames:
        import hf_seg.train  # noqa: F401  (so that it is there to be watched)
    tree = InputTree(request.getfixturevalue("tmp_path"))
    for module in ("hf_seg.cli", "hf_seg.train"):
        if module in sys.modules:  # else no test of the file calls it
            main = sys.modules[module].main
            monkeypatch.setattr(sys.modules[module], "main", _watched(tree, main))
    monkeypatch.setattr(subprocess, "run", _watched(tree, subprocess.run))
    yield tree


def _watched(tree, function):
    @functools.wraps(function)
    def call(*arguments, **options):
        with tree.command():
            return function(*arguments, **options)

    return call


class Forks:
    """The program `fork_server.py`. A program starts in it at once, and would import torch and transformers for ten
    seconds as a process of its own. What libraries read from the environment on import is the session's, except for
    the place of the Hub's cache."""

    def __init__(self):
        command = [sys.executable, str(ROOT / "tests" / "fork_server.py")]
        self.server = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, log: Path, program: Path, *arguments, processes: int = 1) -> list[int]:
        """Start a program, as as many ranks as there are processes; returns their ids. Its output goes to `log` and
        `log`.err, and it runs in their folder."""
        ranks = [{}]
        if processes > 1:
            meet = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            meet |= {"LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": 1}
            ranks = [meet | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
        given = os.environ | {"ACCELERATE_USE_CPU": "true"}
        job = {
            "program": str(program),
            "arguments": [*map(str, arguments)],
            "folder": str(log.parent),
            "output": str(log),
            "errors": f"{log}.err",
            "environments": [given | {key: str(value) for key, value in rank.items()} for rank in ranks],
        }
        print(json.dumps(job), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def wait(self) -> tuple[list[int], float]:
        """The exit status of each process, and the processor time in seconds that they took together."""
        return json.loads(self.server.stdout.readline())

    def close(self):
        self.server.kill()  # it is idle, and would take seconds to end by itself
        self.server.communicate()


@pytest.fixture(scope="session")
def forks():
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def launch(tmp_path, request, input_tree):
    """Run `hf_seg/train.py`, or a script that changes it; returns the finished process, its output captured as text.

    It is a fork of a process that has imported everything; with `real`, `accelerate launch` starts it as for a user.
    """
    numbers = itertools.count()

    def fork(*command, processes):
        forks, log = request.getfixturevalue("forks"), tmp_path / f"{next(numbers)}.log"
        with input_tree.command():
            forks.start(log, *command, processes=processes)
            statuses, _ = forks.wait()
        outputs = (Path(f"{log}{suffix}").read_text() for suffix in ("", ".err"))
        status = next(filter(None, sorted(statuses)), 0)  # a rank that had to be killed before any other
        return subprocess.CompletedProcess(command, status, *outputs)

    def start_real(*command, processes):
        assert processes == 1
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        command = [*launcher, *map(str, command)]
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)

    def start(
        *arguments,
        script: Path = ROOT / "hf_seg" / "train.py",
        processes: int = 1,
        check: bool = True,
        real: bool = False,
    ):
        process = (start_real if real else fork)(script, *arguments, processes=processes)
        if check and process.returncode:
            raise AssertionError(f"{process.args} ended with {process.returncode}\n{process.stdout}\n{process.stderr}")
        return process

    return start


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, input_tree):
    """`run(recipe, ...)` calls `train.main` as the command line does; gives the exit status, stdout and stderr."""
    from hf_seg import train

    monkeypatch.chdir(tmp_path)

    def start(*arguments):
        status = train.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return start


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of three steps, trained once, beside its recipe `a.json`; is not to be changed."""
    from hf_seg import train

    folder = tmp_path_factory.mktemp("finished")
    recipe = {
        "model": TINY_MODELS["segformer"],
        "data": {
            "name": "synthetic_pet",
            "augment": "standard",
            "max_train_samples": 12,
            "max_validation_samples": 2,
            "max_test_samples": 6,
        },
        "training": {
            "num_train_epochs": 1,
            "global_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    (folder / "a.json").write_text(json.dumps(recipe))
    assert train.main([str(folder / "a.json"), "--output_dir", str(folder / "runs")]) == 0
    return folder / "runs" / "a"


MEAN_IOU = """
import datasets
import evaluate
import numpy as np


class MeanIou(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    @np.errstate(invalid="ignore")
    def _compute(self, predictions, references, num_labels, ignore_index):
        p, r = (np.concatenate([np.asarray(x).ravel() for x in maps]) for maps in (predictions, references))
        p, r = p[r != ignore_index], r[r != ignore_index]
        i, pa, ra = (np.bincount(x, minlength=num_labels) for x in (r[p == r], p, r))
        iou, acc = i / (pa + ra - i), i / ra
        CHANGE
        return dict(mean_iou=np.nanmean(iou), mean_accuracy=np.nanmean(acc), overall_accuracy=i.sum() / ra.sum(),
                    per_category_iou=iou, per_category_accuracy=acc)
"""


@pytest.fixture
def write_mean_iou():
    """Write a metric script as `evaluate.load` takes it, with images as features like the real `mean_iou`."""

    def write(path: Path, change: str = "") -> str:
        path.write_text(MEAN_IOU.replace("CHANGE", change))
        return str(path)

    return write


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub on loopback; this process and those that it starts are online, and logged in as alice."""
    import huggingface_hub

    server = Hub(HUB_PORT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
    huggingface_hub.close_session()  # connections to the server of the test before
    yield server
    server.close()


CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture
def browser():
    """Headless Chromium."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing: install the Debian package chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield chromium
        chromium.close()
