"""What the machine does while a stage works, under the names that MLflow's page for system metrics looks for."""

import shutil
import subprocess
import threading
import time
from types import TracebackType
from typing import Any, Self

import psutil

from serin.core.tracking.tracker import Tracker

INTERVAL_S = 10.0
GPU_TIMEOUT_S = 5.0
MIB = 2**20


class SystemMetrics:
    """Samples this machine and this process at a low rate into a tracker, until it is closed.

    Args:
        tracker: where the samples go.
        interval_s: seconds between samples.
    """

    def __init__(self, tracker: Tracker, interval_s: float = INTERVAL_S) -> None:
        self._tracker, self._interval_s = tracker, interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        if self._tracker.enabled:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        psutil.cpu_percent()  # the first call only begins the interval that the second one measures
        before, step = psutil.net_io_counters(), int(time.time())
        while True:
            ended = self._ended.wait(self._interval_s)
            values = {**_machine(before), **_process(), **_gpus()}
            self._tracker.metrics({f"system/{name}": value for name, value in values.items()}, int(time.time()) - step)
            if ended:
                return


def _machine(before: Any) -> dict[str, float]:
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MIB,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "network_receive_megabytes": (network.bytes_recv - before.bytes_recv) / MIB,
        "network_transmit_megabytes": (network.bytes_sent - before.bytes_sent) / MIB,
    }


def _process() -> dict[str, float]:
    """Memory of this process and of those that it started: Ray's workers are among them."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return {"process_memory_megabytes": total / MIB}


def _gpus() -> dict[str, float]:
    """Memory and load of each NVIDIA GPU; nothing where there is none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=index,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    values = {}
    for number, memory, load in (line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 2):
        for name, value in (("memory_usage_megabytes", memory), ("utilization_percentage", load)):
            if value.strip().isdigit():  # a GPU that is shared out says [N/A]
                values[f"gpu_{number}_{name}"] = float(value)
    return values
