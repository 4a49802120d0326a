"""What ends a job with its launcher: the signal that ends a task, and the owner that outlives it."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from serin.core.errors import InterruptedRunError
from serin.core.kubernetes import (
    POD_ADDRESS_VARIABLE,
    KubernetesApi,
    LostError,
    RefusedError,
    pod_namespace,
)

logger = logging.getLogger(__name__)

POD_VARIABLES = ("KFP_POD_NAME", "HOSTNAME")
"""The first is Kubeflow's, the second every pod's."""


@contextmanager
def ended_on_sigterm(end: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM calls ``end`` first of all, then becomes an error.

    A task of a cancelled Kubeflow run has some ten milliseconds: enough for one request over an open connection, too
    little for the way through ``finally``.  Outside of the main thread, where no signal can be caught, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end()
        raise InterruptedRunError("The task was stopped from outside, and its job in the cluster with it.")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def owners_of_this_pod(api: KubernetesApi, namespace: str) -> list[dict[str, Any]]:
    """The Workflow that this pod belongs to, as owner of what is made here; none outside of pods.

    An owner must be in the namespace of what it owns.  It is no controller: Argo does not manage what we make.
    """
    if POD_ADDRESS_VARIABLE not in os.environ:
        return []
    name = next((os.environ[variable] for variable in POD_VARIABLES if os.environ.get(variable)), "")
    own = pod_namespace()
    if not name or own not in ("", namespace):
        logger.warning("The job is in another namespace than this pod (%s): no owner will remove it.", own)
        return []
    try:
        pod = api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    except (RefusedError, LostError) as error:
        logger.warning("Pod %s cannot be read, so no owner will remove the job: %s", name, error)
        return []
    owners = pod["metadata"].get("ownerReferences", [])
    chosen = [owner for owner in owners if owner["kind"] == "Workflow"] or owners[:1]
    return [{key: owner[key] for key in ("apiVersion", "kind", "name", "uid")} for owner in chosen]
