"""One of two processes gets into trouble: both stop, what went wrong is said, and a relaunch goes on."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from hf_seg.training.checkpoints import last_checkpoint

TROUBLE = Path(__file__).parent / "train_with_trouble.py"
FOUR_EPOCHS = {"num_train_epochs": 4}  # of four steps
HANG = 180  # seconds: far less than half an hour, for which one process waits for another

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def start(command, cwd, **environment):
    return subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ends(*processes):
    """Exit status and output of each; fails when one hangs, and leaves none behind."""
    try:
        outputs = [process.communicate(timeout=HANG)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, TROUBLE]


@pytest.fixture
def two_ranks(tmp_path):
    def run(recipe, trouble, **environment):
        [ended] = ends(start([*TWO_RANKS, recipe, trouble], tmp_path, **environment))
        return ended

    return run


@pytest.mark.long
def test_one_of_two_ranks_is_killed(write_recipe, two_ranks, tmp_path):
    recipe, run = write_recipe("a", training=FOUR_EPOCHS), tmp_path / "runs" / "a"
    status, output = two_ranks(recipe, "nothing")
    assert status == 0, output
    undisturbed = (run / "model.safetensors").read_bytes()
    run.rename(tmp_path / "undisturbed")

    status, output = two_ranks(recipe, "killed")
    assert status != 0 and "Signal 9 (SIGKILL)" in output
    assert (run / "checkpoint-4" / "checksums.json").exists() and not (run / "results.json").exists()

    status, output = two_ranks(recipe, "nothing")
    assert status == 0, output
    assert (run / "model.safetensors").read_bytes() == undisturbed


@pytest.mark.long
def test_a_signal_to_the_launcher_ends_both_ranks(write_recipe, tmp_path):
    launcher = start([*TWO_RANKS, write_recipe("a", training={"num_train_epochs": 400}), "nothing"], tmp_path)
    checkpoint = tmp_path / "runs" / "a" / "checkpoint-4" / "checksums.json"
    while not checkpoint.exists() and launcher.poll() is None:
        time.sleep(0.1)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.terminate()
    [(status, output)] = ends(launcher)
    assert status != 0 and len(ranks) >= 2, output
    assert not psutil.wait_procs(ranks, timeout=HANG)[1]
    assert last_checkpoint(tmp_path / "runs" / "a") is not None


@pytest.fixture
def two_forks(launch):
    """The same without a launcher: what the ranks do by themselves."""

    def run(recipe, trouble):
        ended = launch(recipe, trouble, script=TROUBLE, processes=2, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    return run


def test_a_loss_that_is_no_number_on_one_rank(write_recipe, two_forks, tmp_path):
    status, output = two_forks(write_recipe("a", training=FOUR_EPOCHS), "nan")
    assert status > 0
    [line] = [line for line in output.splitlines() if "error: process 1: " in line]
    assert "runs/a: the training loss is nan at step 6; its batch on this process is train[" in line
    assert "The last checkpoint before it is runs/a/checkpoint-4." in line


def test_a_trial_that_one_rank_fails(write_recipe, two_forks, tmp_path):
    status, output = two_forks(write_recipe("a"), "trial")
    assert status > 0 and "error: a: training.debug: is refused here only; leave it out" in output
    assert "lost contact" not in output and not (tmp_path / "runs").exists()


@pytest.mark.long
def test_a_rank_that_keeps_the_other_waiting(write_recipe, two_ranks):
    status, output = two_ranks(write_recipe("a"), "slow", HF_SEG_TIMEOUT="15")
    assert status != 0
    waiting = "a: data and weights: one process of this machine does this, and the others wait (at most 15 seconds; "
    assert waiting in output
    assert "error: process 1 has lost contact with the others (" in output


def test_ranks_that_do_not_share_the_output_folder(write_recipe, two_forks, tmp_path):
    status, output = two_forks(write_recipe("a"), "apart")
    assert status > 0
    assert (
        "error: runs: is not the same folder for all processes: a file that rank 0 writes there is missing on"
        in output
    )
    assert not [*tmp_path.rglob(".launch-*"), *tmp_path.rglob("recipe.json")]


@pytest.fixture
def two_hosts():
    """The words that start a command on each of two hosts with a cable between them, and what the cable is called."""
    name = uuid.uuid4().hex[:6]
    hosts, ends = [f"hf{name}{number}" for number in (0, 1)], [f"v{name}{number}" for number in (0, 1)]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for host in hosts:
            ip("netns", "add", host)
        ip("link", "add", ends[0], "netns", hosts[0], "type", "veth", "peer", "name", ends[1], "netns", hosts[1])
        for number, (host, end) in enumerate(zip(hosts, ends, strict=True)):
            ip("-n", host, "address", "add", f"10.77.0.{number + 1}/24", "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not to be had here: {error}")
    else:
        yield [["ip", "netns", "exec", host] for host in hosts], ends
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


@pytest.mark.long
def test_the_link_between_two_machines_is_cut(write_recipe, two_hosts, tmp_path):
    recipe = write_recipe("a", training=FOUR_EPOCHS)
    hosts, ends_of_cable = two_hosts

    def launch(trouble):
        config = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu.yaml"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", 2]
        launchers = []
        for rank, (host, end) in enumerate(zip(hosts, ends_of_cable, strict=True)):
            meet = ["--num_machines", 2, "--machine_rank", rank, "--main_process_ip", "10.77.0.1"]
            command = [*host, *launcher, *meet, "--main_process_port", 29500, TROUBLE, recipe, trouble]
            launchers.append(start(command, tmp_path, GLOO_SOCKET_IFNAME=end, HF_SEG_TIMEOUT="30"))
        return ends(*launchers)

    for rank, (status, output) in enumerate(launch(f"cut:{ends_of_cable[0]}")):
        assert status not in (0, None), output
        assert f"error: process {rank} has lost contact with the others (" in output, output
        assert "Launch again: training continues from the last checkpoint" in output
    run = tmp_path / "runs" / "a"
    assert (run / "checkpoint-4" / "checksums.json").exists() and not (run / "results.json").exists()
    subprocess.run([*hosts[0], "ip", "link", "set", ends_of_cable[0], "up"], check=True)
    assert [status for status, _ in launch("nothing")] == [0, 0]
    assert (run / "results.json").exists()
