"""A contender's process, seen from outside: one JSON line for its start and for each of its turns."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from finetune_spec import THREADS, Spec

SCRIPT = Path(__file__).with_name("finetune_contenders.py")
TIMEOUT_S = 240.0
END_TIMEOUT_S = 40.0
LOG_CHARS = 300


class ContenderError(Exception):
    """A contender ended or fell silent; says which one and its last words."""


class Contender:
    """A process that trains when it is its turn.

    Args:
        spec: what it is.
        work: folder with the model and the samples; made by the contender ``prepare``.
        command: what to run instead of the contender's script.
    """

    def __init__(self, spec: Spec, work: Path, command: Sequence[str] | None = None) -> None:
        self.name = spec.name
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            command or [sys.executable, str(SCRIPT), json.dumps(asdict(spec)), str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
            bufsize=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def turn(self) -> dict[str, Any]:
        """Let it train for a turn: what it took, and how many CPUs other processes used meanwhile."""
        assert self._process.stdin is not None
        before = self._cpu_seconds()
        with suppress(BrokenPipeError):  # its end is noticed below, with its last words
            self._process.stdin.write(b"go\n")
        answer = self.reply()
        after = self._cpu_seconds()
        if before and after and "cpu_seconds" in answer:
            others = after - before - answer["cpu_seconds"]
            answer["others_cpus"] = max(0.0, others / answer["seconds"])
        return answer

    def reply(self, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Its next line.

        Raises:
            ContenderError: it ended, or said nothing for too long.
        """
        assert self._process.stdout is not None
        deadline, line = time.monotonic() + timeout_s, b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ContenderError(f"{self.name} said nothing for {timeout_s:.0f} s.")
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                raise ContenderError(f"{self.name} ended: {self._last_words()}")
            line += part
        return dict(json.loads(line))

    def close(self) -> None:
        """Let it end; at once when it does not by itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _cpu_seconds(self) -> float:
        """What all processes of the machine used since it started."""
        times = psutil.cpu_times()
        return float(times.user + times.system)

    def _last_words(self) -> str:
        self._process.wait(END_TIMEOUT_S)
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][-LOG_CHARS:] if lines else f"exit code {self._process.returncode}"


def _environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
