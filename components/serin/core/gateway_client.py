"""The administrator's side of a gateway, for whoever moves traffic: a client, and a gateway process of one's own.

Standard library only, so that stages can use it without importing the endpoint.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serin.core.artifacts import home
from serin.core.errors import FencedError, ServingError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SERIN_ADMIN_TOKEN"  # noqa: S105 - the variable's name
GATEWAY_VARIABLE = "SERIN_GATEWAY_URL"
"""Where rollouts find the endpoint's gateway when their settings name none."""
KEYS_VARIABLE = "SERIN_API_KEYS"
REQUEST_TIMEOUT_S = 300.0
"""A rollout request loads releases."""
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
WAIT_POLL_S = 1.0
NOT_READY = 503


class NotReadyError(ServingError):
    """The gateway does not answer, or has loaded nothing yet: it may later."""


class GatewayClient:
    """Talks to a running gateway.

    Args:
        url: the gateway's, such as ``http://127.0.0.1:8080``.
        admin_token: its administrator's token.
    """

    def __init__(self, url: str, admin_token: str) -> None:
        self.url, self.admin_token = url.rstrip("/"), admin_token
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy

    @classmethod
    def from_environment(cls, url: str) -> "GatewayClient":
        """A client with the token in ``SERIN_ADMIN_TOKEN``.

        Raises:
            ServingError: the variable is not set.
        """
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise ServingError(f"{TOKEN_VARIABLE} is not set: set it to the token that the gateway was started with.")
        return GatewayClient(url, token)

    def state(self) -> dict[str, Any]:
        """What the gateway serves: champion, candidate, candidate_weight_percent, mirror_percent, salt; ``fence`` (the
        highest seen), ``edited`` (a person told it last), ``instance`` (another after every start of the gateway);
        ``releases`` by id (track, engine, ``ready``, ``restarts``); ``failed_starts`` (releases that could not be
        loaded), ``mirrored`` (what became of shadow requests), ``follows_journal``.

        Raises:
            NotReadyError: the gateway does not answer, or has loaded nothing yet.
            ServingError: it refuses.
        """
        return self._call("GET", "/admin/rollouts")

    def set_rollout(
        self,
        *,
        champion: str,
        candidate: str | None = None,
        candidate_weight_percent: float = 0.0,
        salt: str | None = None,
        mirror_percent: float = 0.0,
        fence: int | None = None,
    ) -> dict[str, Any]:
        """Load and unload releases and move the weight, in one step; returns the new state.

        Args:
            champion: release id.
            candidate: release id, or None for the champion alone.
            candidate_weight_percent: the candidate's share of sessions, 0 to 100.
            salt: deals sessions to the two; None keeps the one in use.
            mirror_percent: share of the champion's chat requests that the candidate answers too, unseen by users.
            fence: number of the caller's lease; None: a person asks, which the state shows as ``edited``.

        Raises:
            FencedError: a controller with a later lease has asked for something; nothing has changed.
            ServingError: the gateway does not answer, or refuses; then nothing has changed.
        """
        body: dict[str, Any] = {
            "champion": champion,
            "candidate": candidate,
            "candidate_weight_percent": candidate_weight_percent,
            **({} if salt is None else {"salt": salt}),
            **({"mirror_percent": mirror_percent} if mirror_percent else {}),
            **({} if fence is None else {"fence": fence}),
        }
        return self._call("PUT", "/admin/rollouts", body)

    def wait_for(self, champion: str, *, timeout_s: float) -> None:
        """Wait until the gateway serves a champion.

        Args:
            champion: release id.
            timeout_s: longest wait for a gateway that does not answer yet, or follows the journal.

        Raises:
            ServingError: it does not in time, or serves another one for good.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                state = self.state()
                if state["champion"] == champion:
                    return
                trouble = ServingError(
                    f"The gateway at {self.url} does not serve the champion {champion[:12]}: restart 'serin serve'."
                )
                if not state["follows_journal"]:
                    raise trouble
            except NotReadyError as error:
                trouble = error
            if time.monotonic() > deadline:
                raise trouble
            time.sleep(WAIT_POLL_S)

    def flush(self) -> int:
        """Let the gateway write its endpoint events now; returns how many it wrote."""
        return int(self._call("POST", "/admin/flush")["written"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the URL is the operator's
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.admin_token}", "content-type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=REQUEST_TIMEOUT_S) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                message, code = _refusal(error)
                kind = FencedError if code == "fenced" else NotReadyError if error.code == NOT_READY else ServingError
                raise kind(f"The gateway refuses: {message}") from error
        except (urllib.error.URLError, OSError) as error:
            raise NotReadyError(f"The gateway at {self.url} does not answer ({error}): start it again.") from error


class GatewayProcess(GatewayClient):
    """A gateway of one's own, in a process that ends with this one; use it in a ``with`` statement.

    To be started on the main thread: the kernel ends the gateway with the thread that started it.

    Args:
        store_uri: where releases, their parts and the endpoint's events are.
        endpoint: endpoint name.
        champion: release id.
        candidate: release id, or None.
        candidate_weight_percent: the candidate's share of sessions, 0 to 100.
        salt: deals sessions to the two.
        port: 0 takes a free one.
        admin_token: None makes one up.
        start_timeout_s: longest wait until it answers.
    """

    def __init__(
        self,
        store_uri: str,
        endpoint: str,
        champion: str,
        candidate: str | None = None,
        *,
        candidate_weight_percent: float = 0.0,
        salt: str = "",
        port: int = 0,
        admin_token: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        super().__init__(f"http://127.0.0.1:{port}", admin_token or secrets.token_urlsafe(24))
        self._command = [
            sys.executable, "-m", "serin.serve.server", "--store-uri", store_uri, "--endpoint", endpoint,
            "--champion", champion, *(["--candidate", candidate] if candidate else []),
            "--candidate-weight-percent", str(candidate_weight_percent), "--salt", salt,
            "--port", str(port), "--parent-pid", str(os.getpid()), "--admin-token-from-env",
        ]  # fmt: skip
        self._folder = home() / "serve" / endpoint
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the gateway."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the gateway and wait until its releases are loaded.

        Raises:
            ServingError: it ends or does not answer in time; with its own last word and its log's path.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=self._folder))
        ready, self.log = folder / "ready.json", folder / "gateway.log"
        environment = {**os.environ, TOKEN_VARIABLE: self.admin_token}
        environment.pop(KEYS_VARIABLE, None)  # it listens on loopback, for whoever started it
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [*self._command, "--ready-file", str(ready)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(ready)
        except BaseException:
            self.close()
            raise
        address = json.loads(ready.read_text(encoding="utf-8"))
        self.url = f"http://{address['host']}:{address['port']}"

    def close(self) -> None:
        """End the gateway; it writes its events and ends its engines first."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("The gateway did not end within %g s and is killed: see %s.", STOP_TIMEOUT_S, self.log)
            self._process.kill()
            self._process.wait()

    def _wait(self, ready: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not ready.exists():
            if self._process.poll() is not None:
                raise ServingError(f"The gateway did not start: {_last_word(self.log)} Its log is {self.log}.")
            if time.monotonic() > deadline:
                raise ServingError(
                    f"The gateway did not answer within {self._start_timeout_s:g} s: see its log {self.log}."
                )
            time.sleep(POLL_S)


def _refusal(error: urllib.error.HTTPError) -> tuple[str, str]:
    """What it says, and its code."""
    try:
        said = json.load(error)["error"]
        return str(said["message"]), str(said.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP status {error.code}.", ""


def _last_word(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return (errors or lines or ["it said nothing."])[-1]
