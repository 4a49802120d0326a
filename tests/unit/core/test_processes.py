import os
import signal
import subprocess
import sys
import time

import pytest

from serin.core.processes import alive

CHILD = """
import sys, time
from serin.core.processes import {f}
{f}(int(sys.argv[1]))
print("on", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
command = [sys.executable, "-c", sys.argv[1], str(os.getpid())]
child = subprocess.Popen(["sh", "-c", '"$@"; true', "sh", *command] if sys.argv[2] == "shell" else command,
                         stdout=subprocess.PIPE, text=True)
child.stdout.readline()
found = subprocess.run(["pgrep", "-f", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
print(found[0] if sys.argv[2] == "shell" else child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("function", "how"), [("die_with_parent", "direct"), ("die_with", "direct"), ("die_with", "shell")]
)
def test_a_process_ends_when_the_one_it_follows_is_killed(function: str, how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.format(f=function), how], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_following_a_process_that_is_gone_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = subprocess.run([sys.executable, "-c", CHILD.format(f="die_with"), str(gone.pid)], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert alive(os.getpid())
