"""`hf_seg/train.py` again and again, each time in a fork of a process that has imported everything already.

Reads one JSON list from each line of the standard input, `[log file, argument, …]`; prints the fork's process id, and
when it has ended its exit status and the processor time it took, in seconds.
"""

import json
import os
import sys

import torch

from hf_seg import train

torch.set_num_threads(
    1
)  # threads that spin while they wait would make the processor time depend on the machine's load
torch.set_num_threads = lambda count: None

for line in sys.stdin:
    log, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 1
        try:
            status = train.main(arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
    _, status, usage = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, flush=True)
