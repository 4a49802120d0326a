"""Starts engine processes, waits until they answer, and makes sure that none outlives the gateway."""

import asyncio
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp

from serin.core.errors import ServingError

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 8.0
POLL_S = 0.05
ADMIN_TIMEOUT_S = 60.0
TOKEN_VARIABLE = "SERIN_ENGINE_TOKEN"  # noqa: S105 - a name
"""Environment variable with the token of an engine's admin routes: made anew for each engine, never an argument."""
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
    max_context: int | None = None
    """Tokens of prompt and answer together, where that is less than the model's own limit; bounds the memory."""
    prefix_cache_mib: float = 64.0
    """What one engine keeps of the prompts that it has run, for prompts that begin alike; 0 keeps nothing."""


class EngineProcess:
    """An engine that runs; make one with ``start``.

    One engine serves its base model and any number of LoRA adapters of that base, mixed in one batch.  A request's
    ``model`` chooses: the engine's own name (or none) the base, an adapter's name the base with that adapter.  A name
    that the engine does not know is answered with 404 ``model_not_found``.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, folder: Path, token: str) -> None:
        self._process, self._folder, self._token = process, folder, token
        self._adapters: dict[str, Path] = {}
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    async def start(
        cls,
        model_dir: Path,
        name: str,
        settings: EngineSettings,
        run_dir: Path,
        adapters: Mapping[str, Path] = MappingProxyType({}),
    ) -> "EngineProcess":
        """Start an engine and wait until it answers.

        To be awaited on the main thread: the kernel ends an engine with the thread that started it.

        Args:
            model_dir: the (base) model's folder.
            name: of the engine, for its files and answers; the base model's name on the wire.
            settings: how it runs.
            run_dir: where its log goes.
            adapters: PEFT adapter folders by the names that select them on the wire.

        Raises:
            ServingError: it ends or does not answer in time; with its own last word and its log's path.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"engine-{name}-", dir=run_dir))
        token = secrets.token_urlsafe(24)
        process = _spawn(model_dir, name, settings, folder, token, adapters)
        try:
            port = await _ready_port(process, folder, settings.start_timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        logger.info("Engine %s answers on port %d (process %d).", name, port, process.pid)
        engine = cls(process, port, folder, token)
        engine._adapters = dict(adapters)
        return engine

    @property
    def adapters(self) -> Mapping[str, Path]:
        """The adapters that it serves: folders by name on the wire."""
        return MappingProxyType(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Have the running engine serve an adapter under a name; answers under way are not disturbed.

        Adding the same folder under the same name again changes nothing.

        Args:
            name: selects it on the wire.
            folder: as PEFT writes it: adapter_config.json and adapter_model.safetensors.

        Raises:
            ServingError: the engine refuses it (no LoRA adapter, another base's shapes, a kind that it cannot apply,
                the name taken by another folder), or cannot be reached.
        """
        await self._admin("POST", "/admin/adapters", {"name": name, "folder": str(folder.resolve())})
        self._adapters[name] = folder

    async def remove_adapter(self, name: str) -> None:
        """Stop serving an adapter: new requests for it get 404, those under way are finished first.

        Removing a name that is not served changes nothing.

        Raises:
            ServingError: the engine cannot be reached.
        """
        await self._admin("DELETE", f"/admin/adapters/{name}", None)
        self._adapters.pop(name, None)

    async def _admin(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        timeout = aiohttp.ClientTimeout(total=ADMIN_TIMEOUT_S)
        headers = {"authorization": f"Bearer {self._token}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, f"{self.url}{path}", json=body, headers=headers) as response,
            ):
                if response.status != 200:
                    raise ServingError((await response.json())["error"]["message"])
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise ServingError(
                f"The engine on {self.url} cannot be reached ({type(error).__name__}): see its log "
                f"{self._folder / 'engine.log'}."
            ) from error

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


def _spawn(
    model_dir: Path, name: str, settings: EngineSettings, folder: Path, token: str, adapters: Mapping[str, Path]
) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable, "-m", "serin.serve.engine", "--model-dir", str(model_dir), "--model-name", name,
        "--port", "0", "--ready-file", str(folder / "ready.json"), "--parent-pid", str(os.getpid()),
        "--threads", str(settings.threads), "--max-rows", str(settings.max_rows),
        "--max-waiting", str(settings.max_waiting), "--prefix-cache-mib", str(settings.prefix_cache_mib),
        *([] if settings.max_context is None else ["--max-context", str(settings.max_context)]),
        *(f"--adapter={adapter}={path}" for adapter, path in adapters.items()),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        "HF_HUB_OFFLINE": "1",
        TOKEN_VARIABLE: token,
    }
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
