"""Processes that must not outlive the one that started them."""

import ctypes
import os
import select
import signal
import threading
import time

PR_SET_PDEATHSIG = 1
FOLLOW_INTERVAL_S = 0.5


def die_with_parent(parent_pid: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends, however it ends (Linux; elsewhere nothing).

    To be called early in a child, or as ``preexec_fn`` of ``subprocess.Popen``.  The kernel means the thread that
    started the child: start it from one that lives as long as the process.

    Args:
        parent_pid: the parent, if the child was told; needed where the parent may be process 1 (in a container).
    """
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return
    gone = os.getppid() == 1 if parent_pid is None else os.getppid() != parent_pid
    if gone:  # the parent was gone before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def die_with(pid: int) -> None:
    """Kill this process when another, not necessarily its parent, ends (a thread waits for it).

    kfp.local starts a task through a shell, so the process to live and die with is a grandparent.

    Args:
        pid: the process to follow; if it is gone already, this one ends at once.
    """
    threading.Thread(target=_follow, args=(pid,), name=f"follow-{pid}", daemon=True).start()


def _follow(pid: int) -> None:
    wait_for_end(pid)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_end(pid: int) -> None:
    """Return once a process, not necessarily a child of this one, has ended; at once if there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # no pidfd on this system
        while alive(pid):
            time.sleep(FOLLOW_INTERVAL_S)
    else:
        select.select([descriptor], [], [])
        os.close(descriptor)


def alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
