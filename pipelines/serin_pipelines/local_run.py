"""The child process of the local runner: one pipeline through kfp.local.

kfp.local replaces the root log handlers, prints a failing task's traceback to standard output only, and has no
time limit, so it runs in a process of its own that the runner reads, splits into logs and can end.
"""

import json
import os
import sys
import warnings
from pathlib import Path

from serin.core.processes import die_with_parent
from serin.core.telemetry import PARENT_VARIABLE, silence_dependencies


def main(name: str, folder: Path, parent_pid: int) -> int:
    """Run a pipeline whose arguments are in ``<folder>/arguments.json``; 0 when every task succeeded."""
    die_with_parent(parent_pid)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    silence_dependencies()
    from kfp import local

    from serin_pipelines.compiling import build

    warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "pipeline_root"), raise_on_error=True)
    build(name)(**arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
