"""A job on a standing Ray cluster, through the HTTP API of Ray Job Submission.

The API is spoken plainly: Ray's client would bring the whole of Ray into the task that only waits.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3

from serin.core.errors import ConfigError, InterruptedRunError, SerinError, UnavailableError
from serin.core.kubernetes import NOT_FOUND, Clock, LostError, Patience, RefusedError
from serin.core.telemetry import NO_TELEMETRY
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.jobs import Take, Tell, hold_on
from serin.finetune.cluster.manifest import driver_command, job_name
from serin.finetune.cluster.request import Attempt, RequestBook
from serin.finetune.cluster.verdict import Verdict

logger = logging.getLogger(__name__)

DIGEST_KEY = "serin_request"
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
TOKEN_VARIABLE, TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
MAX_TRIES = 20
TIMEOUT_S, AT_ONCE_S = 30.0, 2.0
END_PATIENCE_S = 30.0
"""How long stopping the job is tried when Ray does not answer."""


class SubmittedJobs:
    """The job of one launch on a standing cluster.

    Args:
        cluster: typed settings; ``address`` is the dashboard's.
        clock: for pauses and time limits.
    """

    def __init__(self, cluster: ClusterConfig, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._patience = Patience(total_s=cluster.patience_s)
        self._end_patience = Patience(total_s=min(END_PATIENCE_S, cluster.patience_s))
        self._api, self._emergency = _JobsApi(cluster.address), _JobsApi(cluster.address)
        self._job = ""

    def start(self, book: RequestBook) -> Attempt:
        """Adopt this request's job that still runs, or submit one.

        Raises:
            UnavailableError: the cluster does not answer, or refuses the job.
        """
        numbers = book.numbers()
        for number in reversed(numbers):
            name = job_name(book.request.lineage_id, book.attempt(number))
            if self._runs(book, name):
                return self._adopt(book, number, name)
        for number in range(max(numbers, default=0) + 1, max(numbers, default=0) + 1 + MAX_TRIES):
            attempt = book.attempt(number)
            name = job_name(book.request.lineage_id, attempt)
            if self._submit(book, attempt, name):
                return attempt
            if self._runs(book, name):
                return self._adopt(book, number, name)
        raise UnavailableError(f"Job {name} and {MAX_TRIES} before it exist already at {self._cluster.address}.")

    def follow(self, tell: Tell, take: Take) -> Verdict:
        """Pass the job's log and state on until it has ended.

        Raises:
            InterruptedRunError: its time limit, or somebody removed it.
            UnavailableError: it does not start, or the cluster stayed away.
        """
        log = _Log(self._api, self._job, take)
        start = self._clock.now()
        while True:
            details = self._ask(lambda: self._api.get(f"/api/jobs/{self._job}"))
            if details is None:
                raise InterruptedRunError(f"Job {self._job} is gone from {self._cluster.address}: was Ray restarted?")
            status, said = str(details.get("status")), " ".join(str(details.get("message") or "").split())[:500]
            log.read(last=status in FINAL)
            if status in FINAL:
                return _verdict(self._job, status, said)
            if status == "PENDING":
                tell(f"job {self._job}: {said or 'waiting for Ray'}")
            self._within_limits(status, said, self._clock.now() - start)
            self._clock.sleep(self._cluster.poll_s)

    def end(self) -> None:
        """Stop the job; one that has ended stays as it is."""
        try:
            self._end_patience.call(lambda: self._stop(self._api, TIMEOUT_S), self._clock)
        except (SerinError, RefusedError) as error:
            logger.warning("Job %s could not be stopped (%s): its driver ends without the lease.", self._job, error)

    def end_at_once(self) -> None:
        """Stop the job with one request, over a connection of its own."""
        try:
            self._stop(self._emergency, AT_ONCE_S)
        except (RefusedError, LostError) as error:
            logger.warning("Job %s could not be stopped: %s", self._job, error)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()
        self._emergency.close()

    def _stop(self, api: "_JobsApi", timeout_s: float) -> None:
        if not self._job:
            return
        try:
            api.post(f"/api/jobs/{self._job}/stop", {}, timeout_s)
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise
        self._job = ""

    def _runs(self, book: RequestBook, name: str) -> bool:
        """Whether a job of that name is this request's and has not ended."""
        details = self._ask(lambda: self._api.get(f"/api/jobs/{name}"))
        if details is None or details.get("status") in FINAL:
            return False
        return bool((details.get("metadata") or {}).get(DIGEST_KEY) == book.request.digest)

    def _adopt(self, book: RequestBook, number: int, name: str) -> Attempt:
        self._hold(name)
        logger.info("Job %s still runs and is adopted.", name)
        return book.attempt(number)

    def _submit(self, book: RequestBook, attempt: Attempt, name: str) -> bool:
        """Submit a job; False when there is one of its name."""
        cluster = self._cluster
        book.write(attempt)
        body = {
            "entrypoint": driver_command(attempt),
            "submission_id": name,
            "runtime_env": {"env_vars": {**NO_TELEMETRY, **cluster.variables}},
            "metadata": {DIGEST_KEY: attempt.digest},
            **({"entrypoint_num_cpus": cluster.entrypoint_cpus} if cluster.entrypoint_cpus else {}),
            **({"entrypoint_num_gpus": cluster.entrypoint_gpus} if cluster.entrypoint_gpus else {}),
        }
        self._job = name  # from here on it may exist
        try:
            self._patience.call(lambda: self._post_new(body), self._clock)
        except RefusedError as error:
            self._job = ""
            if "already exists" in error.message:
                return False
            raise _refused(self._cluster.address, error) from error
        self._hold(name)
        logger.info("Job %s was submitted.", name)
        return True

    def _post_new(self, body: Mapping[str, Any]) -> None:
        try:
            self._api.post("/api/jobs/", body)
        except RefusedError as error:
            if "already exists" in error.message:  # Ray says so with a 500 as well, which would be tried again
                raise RefusedError(409, error.message) from error
            raise

    def _hold(self, name: str) -> None:
        self._job = name
        hold_on(lambda: self._emergency.get(f"/api/jobs/{name}"))  # opens its connection

    def _ask(self, question: Any) -> dict[str, Any] | None:
        try:
            return dict(self._patience.call(question, self._clock))
        except RefusedError as error:
            if error.status == NOT_FOUND:
                return None
            raise _refused(self._cluster.address, error) from error

    def _within_limits(self, status: str, said: str, age_s: float) -> None:
        cluster = self._cluster
        if status == "PENDING" and age_s >= cluster.pre_running_deadline_s:
            raise UnavailableError(
                f"Job {self._job} had not started after {cluster.pre_running_deadline_s} s ({said or 'no reason'}): "
                "ask for less than the cluster has, or wait for it to be free."
            )
        if age_s >= cluster.active_deadline_s:
            raise InterruptedRunError(
                f"Job {self._job} was ended after {cluster.active_deadline_s} s, its time limit: raise "
                "active_deadline_s, or ask for less work."
            )


def _verdict(name: str, status: str, said: str) -> Verdict:
    if status == "SUCCEEDED":
        return Verdict("succeeded")
    if status == "STOPPED":
        return Verdict("failed", InterruptedRunError(f"Job {name} was stopped from outside: run the pipeline again."))
    text = f"Job {name} failed and its driver left no word ({said or 'Ray gives no reason'}): see the log above."
    return Verdict("failed", UnavailableError(text), driver_ran=True)


def _refused(address: str, error: RefusedError) -> SerinError:
    if error.status in (401, 403):
        return UnavailableError(f"Ray at {address} refuses this identity: set {TOKEN_VARIABLE} to its cluster's token.")
    return ConfigError(f"Ray at {address} refuses the request ({error.message}): change finetune's cluster settings.")


class _Log:
    """A job's log, of which Ray always gives the whole."""

    def __init__(self, api: "_JobsApi", name: str, take: Take) -> None:
        self._api, self._path, self._take = api, f"/api/jobs/{name}/logs", take
        self._done = 0

    def read(self, *, last: bool) -> None:
        """Pass new lines on; one without an end only when it is the last."""
        try:
            text = str(self._api.get(self._path).get("logs") or "")
        except (RefusedError, LostError) as error:
            logger.debug("The log is not there: %s", error)
            return
        if len(text) < self._done:  # another node's, after the head was restarted
            self._done = 0
        new = text[self._done :]
        whole = new if last else new[: new.rfind("\n") + 1]
        self._done += len(whole)
        for line in whole.splitlines():
            self._take(line)


class _JobsApi:
    """Requests to a dashboard, with its token where there is one."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._pool = urllib3.PoolManager(retries=False)
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token and (path := os.environ.get(TOKEN_PATH_VARIABLE)):
            token = Path(path).read_text(encoding="utf-8").strip()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> dict[str, Any]:
        """GET an object; RefusedError or LostError, as ``post``."""
        return self._send("GET", path, None, TIMEOUT_S)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """POST an object."""
        return self._send("POST", path, body, timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        try:
            response = self._pool.request(
                method,
                self._address + path,
                headers=headers,
                body=None if body is None else json.dumps(body),
                timeout=urllib3.Timeout(connect=min(5.0, timeout_s), read=timeout_s),
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LostError(f"no answer from {self._address}") from error
        text = response.data.decode(errors="replace")
        if not 200 <= response.status < 300:
            # Ray answers with tracebacks: the last line is what was said.
            raise RefusedError(response.status, (text.strip().splitlines() or ["no reason given"])[-1][:500])
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise RefusedError(502, "the answer is a page, not Ray's") from error
        return answer if isinstance(answer, dict) else {}
