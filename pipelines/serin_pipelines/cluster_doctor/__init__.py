"""Preflight of a cluster: what this identity can reach and may do in an environment, and how to get the rest.

Nothing is changed but one small object that is written to the store and removed again.  Of Secrets only the metadata
is asked for (``PartialObjectMetadata``), so that no value leaves the API server.
"""

import queue
import time
from collections.abc import Mapping
from functools import partial

import urllib3

from serin.core.errors import ConfigError, SerinError
from serin_pipelines.cluster_doctor.answers import FORBIDDEN, Probe, RefusedError, cause, fail, mend, short, started
from serin_pipelines.cluster_doctor.kubernetes_api import connect
from serin_pipelines.cluster_doctor.kubernetes_lines import kubernetes_probes, skipped_lines
from serin_pipelines.cluster_doctor.servers import kfp, mlflow, store
from serin_pipelines.doctor import Check
from serin_pipelines.environments import Environment

__all__ = ["examine_cluster"]

DEADLINE_S = 25.0
"""Time limit of all probes; they run side by side."""


def examine_cluster(environment: Environment) -> list[Check]:
    """Probe the servers of an environment side by side; none that is away hides the others.

    Args:
        environment: names the servers; credentials come from where their own clients look (the kubeconfig or the
            pod, ``KFP_TOKEN`` and the like, ``MLFLOW_TRACKING_*``, ``AWS_*``).

    Raises:
        ConfigError: the environment is this machine.
    """
    if not environment.on_cluster:
        raise ConfigError("Environment 'local' is this machine: run 'serin doctor' alone, or name one with --env.")
    servers: dict[str, Probe] = {
        "kfp": lambda: kfp(environment),
        "mlflow": lambda: mlflow(environment),
        "store": lambda: store(environment),
    }
    return [*_kubernetes(environment), *_side_by_side(servers)]


def _kubernetes(environment: Environment) -> list[Check]:
    """The lines that need the Kubernetes API; where it cannot be used, they say so."""
    connecting = started(lambda: connect(environment.namespace))
    try:
        api, line = connecting.get(timeout=DEADLINE_S)
    except queue.Empty:
        fix = "Check the kubeconfig's plugin for logging in, and its server."
        api, line = None, fail("kubernetes", f"no answer in {DEADLINE_S:g} s", fix)
    if api is None:
        return [line, *skipped_lines()]
    try:
        return [line, *_side_by_side(kubernetes_probes(api, environment))]
    finally:
        api.close()


def _side_by_side(probes: Mapping[str, Probe]) -> list[Check]:
    """Run probes in threads of their own, and give their lines in order; one that takes too long is a line too."""
    answers = {name: started(partial(_guarded, name, probe)) for name, probe in probes.items()}
    end = time.monotonic() + DEADLINE_S
    lines: list[Check] = []
    for name, answer in answers.items():
        try:
            lines += answer.get(timeout=max(0.01, end - time.monotonic()))
        except queue.Empty:
            lines.append(fail(name, f"no answer in {DEADLINE_S:g} s", "Check the address and the network."))
    return lines


def _guarded(name: str, probe: Probe) -> list[Check]:
    """A probe's lines; what it raises becomes a line, because the others are worth seeing all the same."""
    lines: list[Check] = []
    try:
        for line in probe():
            lines.append(line)
    except RefusedError as error:
        fix = "Ask for a role that lets this identity read it; only this preflight needs that."
        status = "warn" if error.status == FORBIDDEN else "fail"
        lines.append(Check(name=name, status=status, found=str(error), fix=fix if status == "warn" else mend(error)))
    except SerinError as error:
        lines.append(fail(name, "cannot be asked", str(error)))
    except urllib3.exceptions.HTTPError as error:
        lines.append(fail(name, cause(error), "Check the address, the network and that the server runs."))
    except Exception as error:  # an answer of an unforeseen shape must not hide the other lines
        lines.append(fail(name, f"{type(error).__name__}: {short(str(error))}", "Check that the address is right."))
    return lines
