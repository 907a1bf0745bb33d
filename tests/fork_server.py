"""Runs programs that train, each in a fork of this process, which has imported everything already.

Reads a JSON object from each line of the standard input: `program`, `arguments`, the `folder` to run in, the files
`output` and `errors`, and `environments`, one for each process. Prints the processes' ids as a JSON list; when all
have ended, their exit statuses and the processor time that they took, in seconds. When one fails, the others have a
minute to end by themselves.
"""

import json
import os
import random
import runpy
import signal
import sys
import time
import traceback

import numpy as np
from huggingface_hub import constants

import hf_seg.train  # noqa: F401
from hf_seg.data.sources.synthetic import DRAW, generate

for name in DRAW:  # the pictures of most recipes of the tests are drawn once
    generate(name, {"train": 160, "validation": 11, "test": 10})


def run(job, environment):
    """Become the program; what differs between two processes differs between two forks, too."""
    for number, name in enumerate((os.devnull, job["output"], job["errors"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(environment)
    if "HF_HOME" in environment:  # which was read on import, as in the fixture `hub`
        constants.HF_HUB_OFFLINE = environment["HF_HUB_OFFLINE"] == "1"
        constants.HF_HUB_CACHE = os.path.join(environment["HF_HOME"], "hub")
    random.seed()
    np.random.seed()
    sys.argv = [job["program"], *job["arguments"]]
    sys.path[0] = os.path.dirname(job["program"])
    runpy.run_path(job["program"], run_name="__main__")


for line in sys.stdin:
    job, running, statuses, seconds = json.loads(line), [], {}, 0.0
    for environment in job["environments"]:
        if (child := os.fork()) == 0:
            status = 1
            try:
                run(job, environment)
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        running.append(child)
    print(json.dumps(running), flush=True)
    failed = None
    while len(statuses) < len(running):
        child, status, usage = os.wait4(-1, os.WNOHANG if failed else 0)
        if child:
            statuses[child] = os.waitstatus_to_exitcode(status)
            seconds += usage.ru_utime + usage.ru_stime
            failed = failed or (time.monotonic() if status else None)
        elif time.monotonic() - failed > 60:
            for child in set(running) - statuses.keys():
                os.kill(child, signal.SIGKILL)
        else:
            time.sleep(0.05)
    print(json.dumps([[statuses[child] for child in running], seconds]), flush=True)
