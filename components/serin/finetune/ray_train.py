"""Training on Ray Train: one ``fit()`` of a TorchTrainer on a local Ray, which runs one job after the other.

Ray takes some twenty seconds to start, so the workers stay for both phases: they wait for orders (jobs as files in the
session's folder), run each with the plain loop, and end when told to stop.  When a worker dies, Ray starts the group
again, which skips finished orders and continues the current one from its last checkpoint.  When the driver dies, its
local Ray dies with it; the next run continues from the same checkpoints.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from pydantic import Field

from serin.core import errors
from serin.core.config import Section
from serin.core.errors import SerinError, UnavailableError
from serin.core.telemetry import silence_dependencies
from serin.finetune.config import FinetuneConfig
from serin.finetune.job import PROGRESS, Job
from serin.finetune.loop import Report, train
from serin.finetune.ray_folder import RayFolder
from serin.finetune.ray_worker import POLL_S, STOP, follow_orders, outcome_of, write_aside

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20
STOP_TIMEOUT_S = 20.0
LOCAL = "local"
WORKER_ENVIRONMENT = {
    # Threads that wait for each other spin for about a millisecond and then sleep. Sleeping at once costs a third
    # of the speed (SPEED.md); spinning for longer costs three times the CPU when other work shares the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "300000",
    # A worker imports torch and this package first, which takes minutes on a machine that is busy.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class Fleet(Section):
    """The workers of a session."""

    num_workers: int = Field(default=1, ge=1)
    """Workers that share each batch."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few as that when a worker cannot be had again, and grow back later; None: wait for all."""
    cpus_per_worker: int = Field(default=2, ge=1)
    """CPUs and threads of a worker."""
    max_failures: int = Field(default=2, ge=0)
    """How many times Ray starts again, from the last checkpoint, after a worker died."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Whether every worker gets a GPU; auto: when the driver's machine has one."""
    ray_address: str = LOCAL
    """A cluster that runs already, as ray.init takes it; ``local`` starts one on this machine."""


class Session(Protocol):
    """Runs jobs one after the other."""

    def start(self) -> None:
        """Begin to start up, without waiting."""

    def run(self, job: Job, report: Report) -> Path:
        """Run a job to its end; returns the folder of its result."""

    def __enter__(self) -> Self:
        """Open the session; nothing is started yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that was started."""


def session_for(config: FinetuneConfig, name: str) -> Session:
    """A session of Ray Train named after the run, or of this process when there are no workers."""
    if not config.num_workers:
        return LocalSession()
    given = {field: getattr(config, field) for field in Fleet.model_fields if hasattr(config, field)}
    return RaySession(Fleet.model_validate(given), name)


class LocalSession:
    """Jobs run in this process."""

    def start(self) -> None:
        """Nothing to start."""

    def run(self, job: Job, report: Report) -> Path:
        """Run a job with the plain loop."""
        return train(job, report=report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""


class RaySession:
    """Jobs run on the workers of one TorchTrainer.

    Args:
        fleet: how many workers, with what, and how often they may fail.
        name: the run's name.
    """

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet, self._name = fleet, name
        self._folder: RayFolder | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._num_orders = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to start Ray and the workers in the background, if that was not done yet."""
        if self._thread:
            return
        self._folder = RayFolder()
        # The thread lives as long as Ray: the kernel ends Ray's processes together with the thread that started them.
        self._thread = threading.Thread(target=self._fit, args=(self._folder,), name="ray-train", daemon=True)
        self._thread.start()

    def run(self, job: Job, report: Report) -> Path:
        """Hand a job to the workers and pass on their progress until it ended.

        Raises:
            SerinError: what the loop raised, or that Ray cannot be started or gave up.
        """
        if job.final.exists():
            return job.final
        self.start()
        assert self._folder is not None
        assert self._thread is not None
        self._num_orders += 1
        order = self._folder.path / f"order-{self._num_orders:04d}.json"
        outcome = outcome_of(order)
        lines = _new_lines(Path(job.folder) / PROGRESS)
        write_aside(order, job.model_dump_json())
        while not outcome.exists():
            if not self._thread.is_alive():
                raise self._ray_error()
            for record in next(lines):
                report(record)
            time.sleep(POLL_S)
        for record in next(lines):
            report(record)
        _raise_failure(json.loads(outcome.read_text(encoding="utf-8")))
        return job.final

    def close(self) -> None:
        """Let the workers end, then Ray; at once when they do not end by themselves."""
        if self._thread is None or self._folder is None:
            return
        (self._folder.path / STOP).touch()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            import ray

            ray.shutdown()
            self._thread.join(STOP_TIMEOUT_S)
        self._folder.close()
        self._thread = None

    def _fit(self, folder: RayFolder) -> None:
        """Start Ray, run the workers until they are told to stop, end Ray."""
        try:
            _start_ray(folder.path, self.fleet)
            folder.note_processes()
            if not (folder.path / STOP).exists():
                self._trainer(folder.path).fit()
        except BaseException as error:
            self._failure = error
            logger.info("Ray Train ended: %s", error)
        finally:
            with suppress(Exception):
                import ray

                ray.shutdown()

    def _trainer(self, folder: Path) -> Any:
        import torch
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        fleet = self.fleet
        use_gpu = fleet.device == "cuda" or (fleet.device == "auto" and torch.cuda.is_available())
        num_workers: Any = fleet.num_workers if fleet.min_workers is None else (fleet.min_workers, fleet.num_workers)
        resources = {"CPU": fleet.cpus_per_worker, **({"GPU": 1} if use_gpu else {})}
        return TorchTrainer(
            follow_orders,
            train_loop_config={"folder": str(folder)},
            # What lies on the host, such as random states, goes through gloo on a GPU too.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources),
            run_config=RunConfig(
                name=self._name,
                storage_path=str(folder / "results"),
                failure_config=FailureConfig(max_failures=fleet.max_failures),
            ),
        )

    def _ray_error(self) -> SerinError:
        reason = " ".join(str(self._failure).split())[:500] or type(self._failure).__name__
        return UnavailableError(
            f"Ray on this machine could not be started or gave up ({reason}): see the log, or set "
            "finetune.num_workers to 0 to train without Ray."
        )


def _raise_failure(outcome: dict[str, str]) -> None:
    """Raise what the worker raised: our own errors as they were, others with their traceback in the log."""
    if "error" not in outcome:
        return
    kind = getattr(errors, outcome["error"], None)
    if isinstance(kind, type) and issubclass(kind, SerinError):
        raise kind(outcome["text"])
    logger.error("%s", outcome["trace"])
    raise RuntimeError(f"Training failed with {outcome['error']}: {outcome['text']}")


def _new_lines(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Each ``next`` gives the records that were appended since; starts at the file's present end."""
    offset = path.stat().st_size if path.exists() else 0
    while True:
        records: list[dict[str, Any]] = []
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(offset)
                whole, newline, _ = stream.read().rpartition(b"\n")
            offset += len(whole) + len(newline)
            for line in whole.splitlines():
                with suppress(ValueError):  # a line that a killed writer left unfinished
                    records.append(json.loads(line))
        yield records


def _start_ray(folder: Path, fleet: Fleet) -> None:
    """Start a local Ray that listens on loopback only, without dashboard and usage reports, or join a cluster."""
    import ray

    if ray.is_initialized():
        raise UnavailableError("Ray is running in this process already: call ray.shutdown() first.")
    silence_dependencies()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if fleet.ray_address != LOCAL:
        host = fleet.ray_address.rpartition(":")[0]
        if host.startswith("127."):
            options["_node_ip_address"] = host  # else Ray looks for its node at another interface
        ray.init(address=fleet.ray_address, runtime_env={"env_vars": WORKER_ENVIRONMENT}, **options)
        return
    with _environment(WORKER_ENVIRONMENT):
        ray.init(
            address=LOCAL,
            num_cpus=fleet.num_workers * fleet.cpus_per_worker,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / "ray"),
            **options,
        )


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
