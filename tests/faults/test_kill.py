"""`kill -9` at random moments of a run, saving included: launched again, it ends with an undisturbed run's bits."""

import contextlib
import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

TRAIN = Path(__file__).parents[2] / "hf_seg" / "train.py"
CHECKPOINTS = [f"checkpoint-{step}" for step in (4, 8, 12, 16)]  # after each epoch of four steps

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def run(forks, log, *arguments, kill_when=None):
    """Exit status, processor time and output of a launch; `kill_when(process)` is asked all the time."""
    log.unlink(missing_ok=True)
    process = psutil.Process(*forks.start(log, TRAIN, *arguments))
    with contextlib.suppress(psutil.NoSuchProcess):
        while kill_when is not None and process.status() != psutil.STATUS_ZOMBIE:
            if kill_when(process):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
    [status], seconds = forks.wait()
    return status, seconds, log.read_text()


def after(seconds):
    """When a process has computed for so long: unlike the clock, this says how far a run has got on a busy machine."""
    return lambda process: sum(process.cpu_times()[:2]) >= seconds


def while_saving(checkpoint, bytes_written):
    """When so much of a checkpoint is there; it is not whole before `checksums.json` is, the last of its files."""

    def is_there(process):
        sizes = [path.stat().st_size for path in checkpoint.glob("*")]
        return checkpoint.exists() and sum(sizes) >= bytes_written

    return is_there


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_any_moment(write_recipe, forks, tmp_path, kills):
    recipe = write_recipe("a", data={"augment": "standard"}, training={"num_train_epochs": 4})

    def arguments(place):
        return recipe, "--output_dir", tmp_path / place, "--data.cache", tmp_path / place / "cache"

    status, seconds, output = run(forks, tmp_path / "log", *arguments("undisturbed"))
    assert status == 0, output
    undisturbed = tmp_path / "undisturbed" / "a"
    size = sum(path.stat().st_size for path in (undisturbed / "checkpoint-16").iterdir())
    expected = (undisturbed / "model.safetensors").read_bytes()
    scores = json.loads((undisturbed / "results.json").read_text())["test"]

    moments = random.Random(0)
    for number in range(kills):
        place = tmp_path / str(number)
        if number % 2:
            name, written = moments.choice(CHECKPOINTS), moments.uniform(0, 0.999) * size
            moment, when = f"{written:,.0f} bytes of {name}", while_saving(place / "a" / name, written)
        else:
            moment = seconds * moments.uniform(0.02, 0.9)
            when = after(moment)
        status, _, output = run(forks, tmp_path / "log", *arguments(place), kill_when=when)
        assert status == -signal.SIGKILL, f"{moment}: the run had ended before\n{output}"

        status, _, output = run(forks, tmp_path / "log", *arguments(place))
        assert status == 0, f"{moment}\n{output}"
        assert (place / "a" / "model.safetensors").read_bytes() == expected, moment
        assert json.loads((place / "a" / "results.json").read_text())["test"] == scores, moment
