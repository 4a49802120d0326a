"""The stage on a real local Ray, its worker and its driver killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from lamps import SMALL, Inputs, MakeInputs, start_stage

from serin.finetune.ray_folder import RayFolder

STEPS = 400
CONFIG = SMALL.model_copy(
    update={
        "num_workers": 1,
        "max_steps": STEPS,
        "checkpoint_interval_s": 0.05,
        "tiny": SMALL.tiny.model_copy(update={"max_steps": STEPS}),
    }
)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the stage ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(inputs: Inputs, kind: str) -> list[Path]:
    return list(inputs.folder.glob(f".work/{kind}-*/scratch/checkpoints/step-*"))


def workers(driver: psutil.Process) -> list[psutil.Process]:
    return [child for child in driver.children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_and_a_killed_driver_cost_no_result(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(folder="killed")
    driver = start_stage(inputs, CONFIG)
    wait_for(lambda: checkpoints(inputs, "base"), driver)
    [worker] = workers(psutil.Process(driver.pid))
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: checkpoints(inputs, "model"), driver)
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert start_stage(inputs, CONFIG).wait(timeout=300) == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []
    for kind in ("base", "model"):
        [training] = inputs.folder.glob(f"{kind}/*/training.json")
        curve = json.loads(training.read_text())["curve"]
        assert curve["resumed"] == 1
        assert len(curve["loss"]) == STEPS


def test_a_ray_that_cannot_start_is_one_sentence(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(inputs.folder / "no-token"))
    assert start_stage(inputs, CONFIG).wait(timeout=120) != 0
    log = inputs.folder.with_suffix(".log").read_text()
    assert "UnavailableError: Ray on this machine could not be started or gave up (" in log
    assert "set finetune.num_workers to 0 to train without Ray." in log


DRIVER = """
import os, subprocess, sys
from serin.finetune.ray_folder import RayFolder
folder = RayFolder()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"],
                         env={**os.environ, "SERIN_RAY_FOLDER": str(folder.path)}, start_new_session=True)
if sys.argv[1] == "guarded":
    folder.guard()
print(folder.path, child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["guarded", "unguarded"])
def test_what_a_killed_driver_left_behind_is_ended_and_removed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(prefix="t", dir="/tmp"))
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    command = [sys.executable, "-c", DRIVER, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        path, pid = driver.stdout.readline().split()
        left = [psutil.Process(int(pid)), *psutil.Process(driver.pid).children()]
        RayFolder().close()
        assert Path(path).is_dir(), "the folder of a driver that lives is left alone"
        assert all(process.is_running() for process in left)
        driver.kill()
    if how == "unguarded":  # or the guard was killed too: the next session finds it
        RayFolder().close()
    assert not psutil.wait_procs(left, timeout=20)[1]
    assert not Path(path).exists()
    Path(tempfile.gettempdir()).rmdir()


def test_a_guard_ends_with_its_session() -> None:
    folder = RayFolder()
    folder.guard()
    guards = psutil.Process().children()
    folder.close()
    assert guards
    assert not any(guard.is_running() for guard in guards)
