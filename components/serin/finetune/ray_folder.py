"""The folder of a Ray session: short, private, and cleaned up after a run that was killed.

When its driver is killed, a local Ray's main processes die with it, but its two agents can stay behind.  So each
session notes its processes, and the next one ends those whose driver is gone.
"""

import fcntl
import json
import logging
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

logger = logging.getLogger(__name__)

PREFIX = "serin-ray-"
LOCK, PROCESSES = "lock", "processes.json"
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
        self.path = new.rename(parent / new.name.replace("serin-new-", PREFIX))  # locked before others look for it

    def note_processes(self) -> None:
        """Write down the processes that this one has started so far."""
        found = [[child.pid, child.create_time()] for child in psutil.Process().children(recursive=True)]
        (self.path / PROCESSES).write_text(json.dumps(found), encoding="utf-8")

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / LOCK).open("r+") as lock:  # another user's, one in use, or just removed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            logger.info("Cleaning up after a Ray session whose driver is gone (%s).", folder.name)
            _end_processes(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _end_processes(folder: Path) -> None:
    with suppress(OSError, ValueError):
        for pid, created in json.loads((folder / PROCESSES).read_text(encoding="utf-8")):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.create_time() == created:  # else the number was given to another process meanwhile
                    process.kill()
