"""Starting Ray: one on this machine that only it can reach, or the driver of a cluster that runs already."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from serin.core.errors import ConfigError, UnavailableError
from serin.core.telemetry import silence_dependencies
from serin.finetune.ray_guard import FOLDER_VARIABLE, LOGS

LOCAL = "local"
OBJECT_STORE_BYTES = 100 * 2**20
NAMED_NODES = 4
PREFLIGHT_TIMEOUT_S = 120.0
KILL_TIMEOUT_S = 5.0
WORKER_ENVIRONMENT = {
    # Threads that wait for each other spin for about a millisecond and then sleep. Sleeping at once costs a third
    # of the speed (SPEED.md); spinning for longer costs three times the CPU when other work shares the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "300000",
    # A worker imports torch and this package first, which takes minutes on a machine that is busy.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
ELASTIC_ENVIRONMENT = {
    # Ray first asks for the places of a lost node again, until it knows that the node is gone.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}
LOCAL_ENVIRONMENT = {
    **WORKER_ENVIRONMENT,
    # On one machine nobody reads what Ray's own processes measure, and it costs the steps their cores (SPEED.md).
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # there is no node to be taken away
}
IDLE_SCRIPTS = ("log_monitor.py", "monitor.py", "dashboard.py")
"""Of Ray's processes, those that read logs, ask for machines and serve pages: a local Ray needs none of them."""
_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}


def start_local_ray(folder: Path, num_cpus: int) -> None:
    """Start a Ray that listens on loopback only, without dashboard and usage reports.

    Args:
        folder: its sockets and logs go below it; its path must be short.
        num_cpus: what its workers share.

    Raises:
        UnavailableError: Ray is running in this process already.
    """
    import ray

    _prepare()
    with _environment({**LOCAL_ENVIRONMENT, FOLDER_VARIABLE: str(folder)}):
        ray.init(
            address=LOCAL,
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / LOGS),
            **_OPTIONS,
        )
    _end_idle_processes(folder)


def join_ray(address: str, *, is_elastic: bool = False) -> None:
    """Become a driver of a cluster that runs already.

    Args:
        address: as ray.init takes it; ``auto`` is the cluster whose job this process is.
        is_elastic: fewer workers will do; Ray then waits less long for places on a node that may be lost.

    Raises:
        UnavailableError: Ray is running in this process already.
    """
    import ray

    _prepare()
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host = address.rpartition(":")[0]
    # Else Ray looks for its node at another interface.
    here: dict[str, Any] = {"_node_ip_address": host} if host.startswith("127.") else {}
    variables = {**WORKER_ENVIRONMENT, **(ELASTIC_ENVIRONMENT if is_elastic else {})}
    ray.init(address=address, runtime_env={"env_vars": variables}, **here, **_OPTIONS)


def require_shared(folder: Path) -> None:
    """Refuse a cluster whose nodes do not see a folder of the driver's; Ray must be joined.

    Raises:
        ConfigError: naming the nodes that lack it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    looks = ray.remote(num_cpus=0)(_is_folder)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    seen = [
        looks.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(folder))
        for node in nodes
    ]
    found = ray.get(seen, timeout=PREFLIGHT_TIMEOUT_S)
    lacking = sorted(address for address, sees in zip(nodes.values(), found, strict=True) if not sees)
    if lacking:
        shown = ", ".join(lacking[:NAMED_NODES]) + (", ..." if len(lacking) > NAMED_NODES else "")
        raise ConfigError(
            f"{len(lacking)} of {len(nodes)} nodes of the Ray cluster ({shown}) do not see {folder}: keep the store, "
            "or SERIN_HOME when that is s3://, on a volume that all nodes mount at the same path, or train on one node."
        )


def _end_idle_processes(folder: Path) -> None:
    """End those processes of the Ray with this folder that would only wake up and find nothing to do.

    By SIGKILL: at SIGTERM the one that asks for machines would tell everybody that it has failed.
    """
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = child.cmdline()
            is_idle = any(Path(part).name in IDLE_SCRIPTS for part in command)
            if is_idle and any(str(folder) in part for part in command):
                child.kill()
                child.wait(KILL_TIMEOUT_S)


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()


def require_no_ray() -> None:
    """Refuse a process that is a driver already.

    Raises:
        UnavailableError: Ray is running in this process.
    """
    import ray

    if ray.is_initialized():
        raise UnavailableError("Ray is running in this process already: call ray.shutdown() first.")


def _prepare() -> None:
    require_no_ray()
    silence_dependencies()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile; the user's own stay as they are."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
