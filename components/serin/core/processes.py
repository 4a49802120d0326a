"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


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
