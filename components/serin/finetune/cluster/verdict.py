"""What a RayJob's status means.  Pure: an object in, a verdict out.

KubeRay reports twice: ``jobDeploymentStatus`` about the cluster and ``jobStatus`` about the driver.  A driver that was
stopped also counts as Complete, and ValidationFailed is final although KubeRay's own list of final states lacks it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from serin.core.errors import ConfigError, InterruptedRunError, SerinError, UnavailableError

FINAL = ("Complete", "Failed", "ValidationFailed")
NOT_STARTED = ("", "PENDING", "SCHEDULED")
State = Literal["new", "queued", "starting", "running", "succeeded", "failed"]


@dataclass(frozen=True)
class Verdict:
    """Where a RayJob stands."""

    state: State
    error: SerinError | None = None
    """With "failed": what to tell, where the driver itself said nothing."""
    driver_ran: bool = False
    """With "failed": whether the driver may have left a sentence of its own, which says more."""

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("succeeded", "failed")


def verdict(job: dict[str, Any], waiting: str = "") -> Verdict:
    """Where a RayJob stands, from its status.

    Args:
        job: the object.
        waiting: why it had not started when that was last looked at.
    """
    status = job.get("status", {})
    deployment, driver = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    name = f"RayJob {job['metadata']['name']}"
    if deployment == "Complete":
        return _complete(name, driver)
    if deployment in FINAL:
        return _failed(name, job, deployment, waiting)
    if deployment in ("Suspended", "Suspending") or job.get("spec", {}).get("suspend"):
        return Verdict("queued")
    if deployment == "Running":
        return Verdict("starting" if driver in NOT_STARTED else "running")
    return Verdict("starting" if deployment else "new")


def _complete(name: str, driver: str) -> Verdict:
    if driver == "SUCCEEDED":
        return Verdict("succeeded")
    if driver == "STOPPED":
        error = InterruptedRunError(f"{name} was stopped from outside: run the pipeline again, it continues there.")
        return Verdict("failed", error)
    return Verdict(
        "failed",
        UnavailableError(f"{name} is complete and its driver is {driver or 'unknown'}: look at the log above."),
        driver_ran=True,
    )


def _failed(name: str, job: dict[str, Any], deployment: str, waiting: str) -> Verdict:
    status, spec = job["status"], job.get("spec", {})
    reason, said = status.get("reason") or deployment, " ".join(str(status.get("message", "")).split())[:500]
    why = f" ({said})" if said else ""
    match reason:
        case "ValidationFailed":
            return Verdict("failed", ConfigError(f"KubeRay refused {name}{why}: change finetune's cluster settings."))
        case "DeadlineExceeded":
            limit = spec.get("activeDeadlineSeconds")
            text = f"{name} was ended after {limit} s, its time limit: raise active_deadline_s, or ask for less work."
            return Verdict("failed", InterruptedRunError(text))
        case "PreRunningDeadlineExceeded":
            limit = spec.get("preRunningDeadlineSeconds")
            text = f"{name} had not started after {limit} s, {waiting or said or 'for reasons that are not known'}."
            return Verdict("failed", UnavailableError(text))
        case "AppFailed":
            text = (
                f"{name} failed and its driver left no word{why}: it was killed, most likely for want of memory; see "
                "the log above, then raise memory or lower tokens_per_batch."
            )
            return Verdict("failed", UnavailableError(text), driver_ran=True)
        case "SubmissionFailed":
            text = f"{name}: the driver could not be submitted to Ray{why}: look at the log above, and at the image."
            return Verdict("failed", UnavailableError(text), driver_ran=True)
        case "JobDeploymentStatusTransitionGracePeriodExceeded" | "JobStatusCheckTimeoutExceeded":
            text = f"{name}: KubeRay lost the Ray cluster{why}; its head may have been evicted: run the pipeline again."
            return Verdict("failed", UnavailableError(text), driver_ran=True)
        case _:
            text = f"{name} failed, KubeRay says {reason}{why}: look at the log above."
            return Verdict("failed", UnavailableError(text), driver_ran=True)
