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
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from serin.core import errors
from serin.core.errors import SerinError, UnavailableError
from serin.core.telemetry import silence_dependencies
from serin.finetune.config import FinetuneConfig
from serin.finetune.loop import PROGRESS, Job, Ranks, Report, train
from serin.finetune.ray_folder import RayFolder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20
POLL_S = 0.2
STOP_TIMEOUT_S = 20.0
STOP = "stop"
WORKER_ENVIRONMENT = {
    # Threads that wait for each other sleep: spinning costs three times the CPU when other work shares the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A worker imports torch and this package first, which takes minutes on a machine that is busy.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


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
    return RaySession(config, name) if config.num_workers else LocalSession()


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
        config: how many workers, with how many CPUs, and how often they may fail.
        name: the run's name.
    """

    def __init__(self, config: FinetuneConfig, name: str) -> None:
        self._config, self._name = config, name
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
        outcome = _outcome_of(order)
        lines = _new_lines(Path(job.folder) / PROGRESS)
        _write_aside(order, job.model_dump_json())
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
            _start_ray(folder.path, self._config.num_workers * self._config.cpus_per_worker)
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
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        return TorchTrainer(
            follow_orders,
            train_loop_config={"folder": str(folder)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=self._config.num_workers, resources_per_worker={"CPU": self._config.cpus_per_worker}
            ),
            run_config=RunConfig(
                name=self._name,
                storage_path=str(folder / "results"),
                failure_config=FailureConfig(max_failures=self._config.max_failures),
            ),
        )

    def _ray_error(self) -> SerinError:
        reason = " ".join(str(self._failure).split())[:500] or type(self._failure).__name__
        return UnavailableError(
            f"Ray on this machine could not be started or gave up ({reason}): see the log, or set "
            "finetune.num_workers to 0 to train without Ray."
        )


def follow_orders(settings: dict[str, str]) -> None:
    """Ray Train's train function: run every order of a session's folder, then end.

    Args:
        settings: ``folder`` is the session's.
    """
    folder = Path(settings["folder"])
    ranks = _ranks()
    for order in _orders(folder):
        outcome = _outcome_of(order)
        try:
            train(Job.model_validate_json(order.read_bytes()), ranks)
        except Exception as error:  # Ray would try again, in vain: only deaths are worth that
            logger.exception("Order %s failed.", order.name)
            details = traceback.format_exc()
            _write_aside(outcome, json.dumps({"error": type(error).__name__, "text": str(error), "trace": details}))
            return
        if ranks.rank == 0:
            _write_aside(outcome, "{}")
        else:
            _wait_for(outcome, folder)


class _DistributedRanks(Ranks):
    """The workers of one group, joined by torch.distributed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, tensors: "Sequence[torch.Tensor]") -> None:
        import torch
        from torch import distributed

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _ranks() -> Ranks:
    import ray.train

    context = ray.train.get_context()
    size = context.get_world_size()
    return _DistributedRanks(context.get_world_rank(), size) if size > 1 else Ranks()


def _orders(folder: Path) -> Iterator[Path]:
    """Orders in the order of their numbers, each once it is there, until there is a word to stop."""
    number = 1
    while True:
        order = folder / f"order-{number:04d}.json"
        if order.exists():
            if not _outcome_of(order).exists():
                yield order
            number += 1
        elif (folder / STOP).exists() or not folder.exists():
            return
        else:
            time.sleep(POLL_S)


def _wait_for(outcome: Path, folder: Path) -> None:
    while not outcome.exists() and folder.exists() and not (folder / STOP).exists():
        time.sleep(POLL_S)


def _outcome_of(order: Path) -> Path:
    return order.with_name(order.name.replace("order", "outcome"))


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


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def _start_ray(folder: Path, num_cpus: int) -> None:
    """Start a local Ray that listens on loopback only, without dashboard and usage reports."""
    import ray

    if ray.is_initialized():
        raise UnavailableError("Ray is running in this process already: call ray.shutdown() first.")
    silence_dependencies()
    with _environment(WORKER_ENVIRONMENT):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / "ray"),
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
