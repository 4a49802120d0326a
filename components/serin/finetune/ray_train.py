"""Training on Ray Train: one ``fit()`` of a TorchTrainer on a local Ray, which runs one job after the other.

Ray takes some twenty seconds to start, so the workers stay for both phases: they wait for orders (jobs as files in the
session's folder), run each with the plain loop, and end when told to stop.  When a worker dies, Ray starts the group
again, which skips finished orders and continues the current one from its last checkpoint.  When the driver dies, its
local Ray dies with it; the next run continues from the same checkpoints.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from pydantic import Field

from serin.core import errors
from serin.core.config import Section
from serin.core.errors import SerinError, UnavailableError
from serin.finetune.config import FinetuneConfig
from serin.finetune.job import PROGRESS, Job
from serin.finetune.loop import Report, train
from serin.finetune.ray_folder import RayFolder
from serin.finetune.ray_start import LOCAL, join_ray, require_shared, start_local_ray
from serin.finetune.ray_worker import POLL_S, STOP, follow_orders, outcome_of, write_aside

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0


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

    @property
    def is_elastic(self) -> bool:
        """Whether fewer workers than wanted will do."""
        return self.min_workers is not None and self.min_workers < self.num_workers


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


def session_for(config: FinetuneConfig, name: str, shared: Path | None = None) -> Session:
    """A session of Ray Train named after the run, or of this process when there are no workers.

    Args:
        config: settings of the stage.
        name: the run's.
        shared: a folder that the nodes of a cluster see too; unused with a Ray of this machine's own.
    """
    if not config.num_workers:
        return LocalSession()
    fleet = Fleet.model_validate({field: getattr(config, field) for field in Fleet.model_fields})
    return RaySession(fleet, name, None if fleet.ray_address == LOCAL else shared)


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
        shared: where the session's folder is made; None: among the temporary files of this machine.
    """

    def __init__(self, fleet: Fleet, name: str, shared: Path | None = None) -> None:
        self.fleet, self._name, self._shared = fleet, name, shared
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
        self._folder = RayFolder(self._shared)
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
            if self.fleet.ray_address == LOCAL:
                folder.guard()
                start_local_ray(folder.path, self.fleet.num_workers * self.fleet.cpus_per_worker)
            else:
                join_ray(self.fleet.ray_address, is_elastic=self.fleet.is_elastic)
                require_shared(folder.path)
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
        from ray.train import FailureConfig, RunConfig
        from ray.train.torch import TorchConfig

        fleet, scaling = self.fleet, scaling_of(self.fleet)
        return trainer_class(is_local=fleet.ray_address == LOCAL)(
            follow_orders,
            train_loop_config={"folder": str(folder)},
            # What lies on the host, such as random states, goes through gloo on a GPU too.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(
                name=self._name,
                storage_path=str(folder / "results"),
                failure_config=FailureConfig(max_failures=fleet.max_failures),
            ),
        )

    def _ray_error(self) -> SerinError:
        if isinstance(self._failure, SerinError):
            return self._failure
        reason = " ".join(str(self._failure).split())[:500] or type(self._failure).__name__
        return UnavailableError(
            f"Ray on this machine could not be started or gave up ({reason}): see the log, or set "
            "finetune.num_workers to 0 to train without Ray."
        )


def trainer_class(is_local: bool) -> Any:
    """Ray's TorchTrainer without the actors that have nothing to do here.

    Every actor of Ray wakes up a hundred times a second and costs the steps about half a percent of a core.  One hands
    out Ray Data sets, of which we give none; one frees the places of a driver that died, with which a local Ray dies.
    Two callbacks count things for a Prometheus that nobody here has.
    """
    from ray.train.torch import TorchTrainer

    unused = {"DatasetsCallback", "ControllerMetricsCallback", "WorkerMetricsCallback"}
    if is_local:
        unused.add("PlacementGroupCleanerCallback")

    class Trainer(TorchTrainer):
        """Filters by name: a Ray that calls them otherwise keeps them all."""

        def _create_default_callbacks(self) -> list[Any]:
            every = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's types name the older trainer
            return [each for each in every if type(each).__name__ not in unused]

    return Trainer


def scaling_of(fleet: Fleet) -> Any:
    """Ray Train's ScalingConfig: a fixed number of workers, or with ``min_workers`` as many as can be had.

    A group that shrank or grew starts again from its last checkpoint.  What it goes on with is the number of the next
    batch, which holds for any number of workers: each takes its share of the same batches.
    """
    import torch
    from ray.train import ScalingConfig

    use_gpu = fleet.device == "cuda" or (fleet.device == "auto" and torch.cuda.is_available())
    resources: dict[str, float] = {"CPU": fleet.cpus_per_worker, **({"GPU": 1} if use_gpu else {})}
    num_workers: Any = (fleet.min_workers, fleet.num_workers) if fleet.is_elastic else fleet.num_workers
    return ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources)


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
