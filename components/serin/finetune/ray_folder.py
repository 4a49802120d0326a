"""The folder of a Ray session: short, private, and cleaned up after a run that was killed, its processes too.

A guard beside the driver does that at once (``ray_guard``); were both killed, the next session does it.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from serin.finetune.ray_guard import end_session

logger = logging.getLogger(__name__)

PREFIX = "serin-ray-"
LOCK = "lock"
LONGEST_PARENT = 30  # Ray puts sockets below it, whose paths Linux limits to 107 characters


class RayFolder:
    """A new folder that belongs to this process until it is closed; what dead ones left is removed first.

    Args:
        shared: where it is made; None: among this machine's temporary files, where Ray's sockets may be.
    """

    def __init__(self, shared: Path | None = None) -> None:
        parent = shared or Path(tempfile.gettempdir())
        if shared is None and len(str(parent)) > LONGEST_PARENT:
            parent = Path("/tmp")  # noqa: S108 (mkdtemp makes a private folder in it)
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent)
        new = Path(tempfile.mkdtemp(prefix="serin-new-", dir=parent))
        self._lock: IO[str] = (new / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # freed by the kernel when this process is killed
        self._guard: subprocess.Popen[bytes] | None = None
        self.path = new.rename(parent / new.name.replace("serin-new-", PREFIX))  # locked before others look for it

    def guard(self) -> None:
        """From here on nothing of this session's Ray outlives this process."""
        command = [sys.executable, "-m", "serin.finetune.ray_guard", str(os.getpid()), str(self.path)]
        self._guard = subprocess.Popen(  # noqa: S603 (our own module)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the driver's to handle
        )

    def close(self) -> None:
        """Remove the folder."""
        if self._guard:
            self._guard.kill()
            self._guard.wait()
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / LOCK).open("r+") as lock:  # another user's, one in use, or just removed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            logger.info("Cleaning up after a Ray session whose driver is gone (%s).", folder.name)
            end_session(folder)
