"""Beside the driver of a local Ray: when the driver ends, however it ends, what it left running is ended at once.

Ray's processes notice by themselves that their driver was killed: most in two seconds, its agents after half a minute
or more, and one that was just starting perhaps never, which would then train on beside the run that takes over.

python -m serin.finetune.ray_guard DRIVER_PID FOLDER
"""

import os
import shutil
import sys
import time
from pathlib import Path

import psutil

from serin.core.processes import wait_for_end

FOLDER_VARIABLE = "SERIN_RAY_FOLDER"
"""In the environment of every process of a local Ray: the folder of its session."""
LOGS = "ray"
"""What Ray writes lies below this part of the folder."""
PATIENCE_S = 10.0
PAUSE_S = 0.1


def end_session(folder: Path) -> None:
    """End every process of a session, also those that they start meanwhile, and remove the session's folder."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := _processes_of(folder)) and time.monotonic() < deadline:
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
        time.sleep(PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and _is_of(process, folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # another user's, or gone
            continue
    return found


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """By its environment, or, as Ray's agents write their title over it, by a log of the session that it writes."""
    if process.environ().get(FOLDER_VARIABLE) == str(folder):
        return True
    return any(
        getattr(file, "mode", "a") != "r" and Path(file.path).is_relative_to(folder / LOGS)
        for file in process.open_files()
    )


if __name__ == "__main__":
    wait_for_end(int(sys.argv[1]))
    end_session(Path(sys.argv[2]))
