"""Whole runs of the pipeline as a user starts them: the ``serin`` command in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SMALL = [
    "finetune.max_steps=40",
    "finetune.checkpoint_interval_s=0.2",
    "finetune.validation_samples=20",
    "finetune.tiny.max_steps=250",
    "finetune.tiny.hidden_size=64",
    "finetune.tiny.num_layers=2",
    "finetune.tiny.num_heads=2",
    "finetune.tiny.intermediate_size=128",
    "finetune.tiny.vocab_size=1024",
    "evaluate.num_conversations=40",
    "evaluate.num_retrieved=10",
    "evaluate.num_golden=40",
    "evaluate.resamples=1000",
    "evaluate.suites=[]",
    "evaluate.gate.rules=[{metric: bits_per_byte, kind: superiority, against: baseline, min_items: 10}]",
    "deploy.judge.max_ttft_ratio=3",
    "deploy.judge.max_error_increase=0.3",
    "deploy.judge.max_support_drop=0.9",
    "deploy.judge.min_sessions=10",
    "release.serving.max_new_tokens=16",
]
"""Settings that make a whole run take about a minute and a half on two cores; every stage is still the real one."""


class Serin:
    """The command with a home and a working folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SERIN_HOME": str(self.home), "OMP_NUM_THREADS": "2"}

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "serin_pipelines.cli", *arguments]

    def __call__(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(arguments), env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if code is not None:
            assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:] + self.logs()
        return done

    def json(self, *arguments: str, code: int | None = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill_when(self, child: "subprocess.Popen[str]", reached: Callable[[], bool], timeout_s: float = 200) -> None:
        """Kill -9 the command once a condition holds; it must hold before the command ends."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert child.poll() is None, f"the run ended with {child.returncode} before it could be killed{self.logs()}"
            assert time.monotonic() < deadline, "the run never got there" + self.logs()
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()

    def events(self) -> list[dict[str, Any]]:
        runs = sorted((self.home / "runs").glob("*/events.jsonl"))
        return [json.loads(line) for line in runs[-1].read_text().splitlines()] if runs else []

    def logs(self) -> str:
        files = sorted((self.home / "runs").glob("*/logs/*.log"), key=lambda path: path.stat().st_mtime)
        return "\n" + files[-1].read_text()[-3000:] if files else ""


@pytest.fixture(scope="module")
def serin(tmp_path_factory: pytest.TempPathFactory) -> Serin:
    return Serin(tmp_path_factory.mktemp("serin"))


def small(*more: str) -> list[str]:
    """``--set`` arguments of a small run."""
    return [argument for setting in (*SMALL, *more) for argument in ("--set", setting)]
