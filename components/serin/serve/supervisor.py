"""Starts engine processes, waits until they answer, and makes sure that none outlives the gateway."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from serin.core.errors import ServingError

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 8.0
POLL_S = 0.05
ERROR_PREFIX = "Error: "


@dataclass(frozen=True)
class EngineSettings:
    """How engine processes are started."""

    threads: int = 1
    """CPU threads of one engine; more than one slows it down under load on small machines."""
    max_rows: int = 16
    """Requests that one engine decodes together."""
    max_waiting: int = 64
    """Requests that may queue at one engine."""
    start_timeout_s: float = START_TIMEOUT_S
    """Longest wait until an engine answers."""


class EngineProcess:
    """An engine that runs; make one with ``start``."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, folder: Path) -> None:
        self._process, self._folder = process, folder
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    async def start(cls, model_dir: Path, name: str, settings: EngineSettings, run_dir: Path) -> "EngineProcess":
        """Start an engine and wait until it answers.

        To be awaited on the main thread: the kernel ends an engine with the thread that started it.

        Args:
            model_dir: the model's folder.
            name: of the engine, for its files and answers.
            settings: how it runs.
            run_dir: where its log goes.

        Raises:
            ServingError: it ends or does not answer in time; with its own last word and its log's path.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"engine-{name}-", dir=run_dir))
        process = _spawn(model_dir, name, settings, folder)
        try:
            port = await _ready_port(process, folder, settings.start_timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        logger.info("Engine %s answers on port %d (process %d).", name, port, process.pid)
        return cls(process, port, folder)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    async def stop(self) -> None:
        """End the engine: first asked, then killed."""
        if self.alive:
            self._process.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self.alive and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
        self.kill()

    def kill(self) -> None:
        """End the engine at once."""
        if self.alive:
            self._process.kill()
        self._process.wait()


def _spawn(model_dir: Path, name: str, settings: EngineSettings, folder: Path) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable, "-m", "serin.serve.engine", "--model-dir", str(model_dir), "--model-name", name,
        "--port", "0", "--ready-file", str(folder / "ready.json"), "--parent-pid", str(os.getpid()),
        "--threads", str(settings.threads), "--max-rows", str(settings.max_rows),
        "--max-waiting", str(settings.max_waiting),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "HF_HUB_OFFLINE": "1"}
    for secret in ("SERIN_ADMIN_TOKEN", "SERIN_API_KEYS"):
        environment.pop(secret, None)
    with (folder / "engine.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - our own module with our own arguments
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the gateway, which ends its engines after the last answer
        )


async def _ready_port(process: "subprocess.Popen[bytes]", folder: Path, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    ready, log = folder / "ready.json", folder / "engine.log"
    while not ready.exists():
        if process.poll() is not None:
            raise ServingError(f"The engine ended before it answered: {last_word(log)} Its log is {log}.")
        if time.monotonic() > deadline:
            raise ServingError(f"The engine did not answer within {timeout_s:g} s: see its log {log}.")
        await asyncio.sleep(POLL_S)
    return int(json.loads(ready.read_text(encoding="utf-8"))["port"])


def last_word(log: Path) -> str:
    """Why a process that wrote a log ended: its error sentence, or the log's last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    return (errors or lines or ["it said nothing."])[-1]
