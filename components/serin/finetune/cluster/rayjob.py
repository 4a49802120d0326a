"""A RayJob from its creation, or adoption, to its end."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from serin.core.errors import ConfigError, SerinError, UnavailableError
from serin.core.kubernetes import (
    CONFLICT,
    FORBIDDEN,
    NOT_FOUND,
    UNAUTHORIZED,
    Clock,
    KubernetesApi,
    LostError,
    Patience,
    RefusedError,
)
from serin.finetune.cluster.cleanup import owners_of_this_pod
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.jobs import Take, Tell, hold_on
from serin.finetune.cluster.logs import LogFollower
from serin.finetune.cluster.manifest import ATTEMPT_LABEL, DIGEST_LABEL, job_name, ray_job
from serin.finetune.cluster.pending import Waiting, explain
from serin.finetune.cluster.request import Attempt, RequestBook
from serin.finetune.cluster.verdict import Verdict, verdict
from serin.finetune.cluster.watching import followed

logger = logging.getLogger(__name__)

MAX_TRIES = 20
AT_ONCE_S = 2.0
"""Time limit of the request that a signal handler sends."""
END_PATIENCE_S = 30.0
"""How long the deletion is tried when the API does not answer."""
GRACE_S = 120.0
"""What KubeRay may be late with its own time limits."""


@dataclass(frozen=True)
class _Target:
    name: str
    uid: str = ""
    """Empty while the answer to its creation has not come."""


class RayJobs:
    """The RayJob of one launch.

    Args:
        cluster: typed settings.
        api: the Kubernetes API; its namespace is the job's.
        clock: for pauses and time limits.
    """

    def __init__(self, cluster: ClusterConfig, api: KubernetesApi, clock: Clock) -> None:
        self._cluster, self._api, self._clock = cluster, api, clock
        self._patience = Patience(total_s=cluster.patience_s)
        self._end_patience = Patience(total_s=min(END_PATIENCE_S, cluster.patience_s))
        self._path = f"/apis/ray.io/v1/namespaces/{api.namespace}/rayjobs"
        self._emergency, self._log_api = api.again(), api.again()
        self._target: _Target | None = None

    def start(self, book: RequestBook) -> Attempt:
        """Adopt this request's job that still runs, or create one.

        Raises:
            UnavailableError: quota or rights are missing, or KubeRay is.
            ConfigError: the API refuses the object.
        """
        found = self._of_request(book)
        if running := [job for job in found if _alive(job)]:
            return self._adopt(book, running[-1])
        owners = owners_of_this_pod(self._api, self._api.namespace)
        used = [*book.numbers(), *(_attempt(job) for job in found)]
        first = max(used, default=0) + 1
        for number in range(first, first + MAX_TRIES):
            attempt = book.attempt(number)
            name = job_name(book.request.lineage_id, attempt)
            if adopted := self._create(book, attempt, ray_job(self._cluster, attempt, name, owners)):
                return adopted
        raise UnavailableError(f"RayJobs {name} and {MAX_TRIES} before it exist already: remove the ones that ended.")

    def follow(self, tell: Tell, take: Take) -> Verdict:
        """Pass the job's log and state on until it has ended.

        Args:
            tell: called with what goes on, while nothing is in the log.
            take: called with each line of the log.

        Raises:
            SerinError: the job cannot start, was deleted, or the API stayed away.
        """
        assert self._target is not None
        selector = f"batch.kubernetes.io/job-name={self._target.name}"
        poll_s, namespace = self._cluster.poll_s, self._api.namespace
        limits = _Limits(self._cluster, self._clock)
        watch = followed(
            self._api, self._path, self._target.name, poll_s=poll_s, patience=self._patience, clock=self._clock
        )
        log = LogFollower(self._log_api, namespace, selector, take, min(poll_s, 2.0))
        with log, closing(watch), _explained(self._api):
            for job in watch:
                found = verdict(job, limits.waiting)
                if found.final:
                    return found
                if found.state != "running":
                    waiting = explain(self._api, job, self._cluster.queue)
                    tell(f"RayJob {self._target.name}: {waiting.text}")
                    limits.not_started(found, waiting, self._target.name)
                limits.started(found, self._target.name)
        raise AssertionError("a watch has no end")

    def end(self) -> None:
        """Delete the job, with its pods, and wait until the API has taken that."""
        try:
            self._end_patience.call(lambda: self._delete(self._api, "Foreground"), self._clock)
        except (SerinError, RefusedError) as error:
            name = self._target.name if self._target else ""
            logger.warning("RayJob %s could not be deleted (%s): its driver ends without the lease.", name, error)

    def end_at_once(self) -> None:
        """Delete the job with one request, over a connection of its own; never raises."""
        try:
            self._delete(self._emergency, "Background", AT_ONCE_S)
        except (RefusedError, LostError) as error:
            logger.warning("The RayJob could not be deleted: %s", error)

    def close(self) -> None:
        """Close the connections."""
        self._emergency.close()
        self._log_api.close()

    def _delete(self, api: KubernetesApi, propagation: str, timeout_s: float = 10.0) -> None:
        target = self._target
        if target is None:
            return
        options: dict[str, Any] = {"propagationPolicy": propagation}
        if target.uid:
            options["preconditions"] = {"uid": target.uid}  # never another's job of the same name
        try:
            api.delete(f"{self._path}/{target.name}", options, timeout_s)
        except RefusedError as error:
            if error.status not in (NOT_FOUND, CONFLICT):  # gone already, or replaced
                raise
        self._target = None

    def _of_request(self, book: RequestBook) -> list[dict[str, Any]]:
        selector = f"{DIGEST_LABEL}={book.request.digest}"
        with _explained(self._api):
            listing = self._patience.call(lambda: self._api.get(self._path, labelSelector=selector), self._clock)
        return sorted(listing["items"], key=_attempt)

    def _create(self, book: RequestBook, attempt: Attempt, job: dict[str, Any]) -> Attempt | None:
        """Create a job; None when its name is taken by one that is not to be adopted."""
        name = job["metadata"]["name"]
        book.write(attempt)
        self._target = _Target(name)
        try:
            with _explained(self._api):
                made = self._patience.call(lambda: self._api.post(self._path, job), self._clock)
        except RefusedError as error:
            self._target = None
            if error.status != CONFLICT:
                raise
            return self._after_conflict(book, name)
        self._hold(made)
        logger.info("RayJob %s was created.", name)
        return attempt

    def _after_conflict(self, book: RequestBook, name: str) -> Attempt | None:
        """The name is taken: by our own earlier request whose answer was lost, by another launcher, or a stranger."""
        try:
            job = self._patience.call(lambda: self._api.get(f"{self._path}/{name}"), self._clock)
        except RefusedError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        same = job["metadata"].get("labels", {}).get(DIGEST_LABEL) == book.request.digest
        return self._adopt(book, job) if same and _alive(job) else None

    def _adopt(self, book: RequestBook, job: dict[str, Any]) -> Attempt:
        self._hold(job)
        logger.info("RayJob %s still runs and is adopted.", job["metadata"]["name"])
        return book.attempt(_attempt(job))

    def _hold(self, job: dict[str, Any]) -> None:
        self._target = _Target(job["metadata"]["name"], job["metadata"]["uid"])
        hold_on(lambda: self._emergency.get(f"{self._path}/{job['metadata']['name']}"))  # opens its connection


class _Limits:
    """Time limits that KubeRay does not keep, or could not while its operator is down."""

    def __init__(self, cluster: ClusterConfig, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._hopeless_since: float | None = None
        self._queued_since: float | None = None
        self._running_since: float | None = None
        self._new_since = clock.now()
        self.waiting = ""
        """Why the job had not started when it was last looked at."""

    def not_started(self, found: Verdict, waiting: Waiting, name: str) -> None:
        """Note why a job waits; an error when that has lasted too long."""
        now, cluster = self._clock.now(), self._cluster
        self.waiting = waiting.text
        self._hopeless_since = (self._hopeless_since or now) if waiting.hopeless else None
        self._queued_since = (self._queued_since or now) if found.state == "queued" else None
        if self._hopeless_since is not None and now - self._hopeless_since >= cluster.hopeless_after_s:
            raise UnavailableError(
                f"RayJob {name} cannot start, {waiting.text}: mend that, then run the pipeline again."
            )
        if self._queued_since is not None and now - self._queued_since >= cluster.queue_deadline_s:
            raise UnavailableError(
                f"RayJob {name} waited {cluster.queue_deadline_s} s in queue {cluster.queue!r} and was withdrawn: ask "
                "for less, or raise queue_deadline_s."
            )
        if found.state != "new":
            self._new_since = now
        elif now - self._new_since >= cluster.pre_running_deadline_s:
            raise UnavailableError(
                f"RayJob {name} was not taken up for {cluster.pre_running_deadline_s} s: is KubeRay's operator running?"
            )

    def started(self, found: Verdict, name: str) -> None:
        """An error when a job runs on although its time limit has long passed."""
        if found.state == "queued":
            self._running_since = None
            return
        now = self._clock.now()
        self._running_since = self._running_since or now
        if now - self._running_since >= self._cluster.active_deadline_s + GRACE_S:
            raise UnavailableError(
                f"RayJob {name} outlived its time limit of {self._cluster.active_deadline_s} s and is deleted: look at "
                "KubeRay's operator, which should have ended it."
            )


@contextmanager
def _explained(api: KubernetesApi) -> Iterator[None]:
    """Turn the API's refusals into sentences; a conflict passes through."""
    try:
        yield
    except RefusedError as error:
        if error.status == CONFLICT:
            raise
        raise _sentence(api, error) from error


def _sentence(api: KubernetesApi, error: RefusedError) -> SerinError:
    where = f"namespace {api.namespace} of {api.host}"
    if error.status == FORBIDDEN and "exceeded quota" in error.message:
        return UnavailableError(
            f"The quota of {where} refuses the RayJob ({error.message}): free some of it, or ask for less."
        )
    if error.status in (UNAUTHORIZED, FORBIDDEN):
        return UnavailableError(
            f"RayJobs in {where} are closed to this identity ({error.message}): bind it to role serin-training."
        )
    if error.status == NOT_FOUND:
        return UnavailableError(f"There is no RayJob of ray.io/v1 in {where} ({error.message}): install KubeRay 1.7.")
    return ConfigError(f"The Kubernetes API refuses the RayJob ({error.message}): change finetune's cluster settings.")


def _alive(job: dict[str, Any]) -> bool:
    return not verdict(job).final and "deletionTimestamp" not in job["metadata"]


def _attempt(job: dict[str, Any]) -> int:
    number = job["metadata"].get("labels", {}).get(ATTEMPT_LABEL, "")
    return int(number) if number.isdigit() else 0
