"""What is asked of MLflow: runs found or created by tags, records sent in batches, and its errors as one sentence."""

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serin.core.errors import UnavailableError
from serin.core.tracking.spool import Record, RunKey, SpoolFile, alone, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

LINEAGE_TAG = "serin.lineage_id"
STAGE_TAG = "serin.stage"
PARENT_TAG = "mlflow.parentRunId"
DIGEST_TAG = "serin.digest"
LIMITS = {
    # MLflow's own are 7 tries of 120 s: minutes in which whoever asks would hang. Trying again later is ours to do.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set for MLflow's client unless the user set them."""
MOST_METRICS, MOST_OTHERS = 1000, 100
"""What MLflow takes in one batch."""
MOST_FILE_TRIES = 5
"""A file that fails more often is set aside: its store may be away while MLflow itself takes all else."""
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}
UNUSABLE = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND", "NOT_FOUND"}
Kind = Literal["away", "blocked", "refused", "missing", "unusable"]


class MlflowFailure(UnavailableError):
    """MLflow did not do what it was asked.

    Args:
        kind: ``away``: try again later; ``blocked``: the same for one file, while all else arrives; ``refused``: this
            request will never be taken; ``missing``: what it is about is not there; ``unusable``: no request will be
            taken before somebody mends something.
        message: one sentence.
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Runs:
    """The runs of one tracking URI.

    Args:
        uri: MLflow tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._known_params: dict[str, set[str]] = {}
        self._tries: Counter[str] = Counter()

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client."""
        from mlflow import MlflowClient

        for name, value in LIMITS.items():
            os.environ.setdefault(name, value)
        with self._lock:
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def experiment(self, name: str) -> str:
        """Id of an experiment, created where it is absent."""
        found = self.client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(name, artifact_location=_artifact_root(self.uri)))
        except MlflowException as error:
            found = self.client.get_experiment_by_name(name)  # another process was first
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return str(found.experiment_id)

    def find_or_create(self, key: RunKey, *, live: bool = True) -> tuple[str, bool]:
        """The run of a key, below the run of its lineage id, and whether it was made now.

        Args:
            key: names the run.
            live: whether it goes on now, and so is running again.

        Raises:
            MlflowFailure: MLflow cannot be reached or used.
        """
        with errors(self.uri), alone(self.uri):  # two that look at once would each find none, and make one
            if key.given and "/" not in key.stage:
                for tag, value in {STAGE_TAG: key.stage, LINEAGE_TAG: key.lineage_id}.items():
                    self.client.set_tag(key.given, tag, value)
                return key.given, False
            if key.given:  # a run is nested only within its parent's experiment
                experiment = str(self.client.get_run(key.given).info.experiment_id)
            else:
                experiment = self.experiment(key.experiment)
            stage, _, part = key.stage.partition("/")
            parent = key.given
            if not parent:
                parent, _ = self._ensure(experiment, f"pipeline {key.lineage_id}", _tags(key, "pipeline"), live)
                if part:
                    tags = {**_tags(key, stage), PARENT_TAG: parent}
                    parent, _ = self._ensure(experiment, stage, tags, live)
            return self._ensure(experiment, part or stage, {**_tags(key, key.stage), PARENT_TAG: parent}, live)

    def send(self, run_id: str, file: SpoolFile, records: Sequence[Record], *, end: bool = True) -> None:
        """Send records of a run in their order; what arrived before changes nothing when it is sent again.

        Args:
            run_id: the run.
            file: where the records are from.
            records: what to send.
            end: whether to close the run where a record says so.

        Raises:
            MlflowFailure: of kind ``away``, ``missing`` or ``unusable``: send all of them again later.
        """
        for group in _groups(records):
            if "metrics" in group[0] or "params" in group[0] or "tags" in group[0]:
                self._each_if_refused(file, group, lambda some: self._batch(run_id, some))
            elif end or "end" not in group[0]:
                self._each_if_refused(file, group, lambda some: self._single(run_id, file, some[0]))

    def close_killed(self, run_id: str) -> None:
        """Close a run whose process is gone."""
        with errors(self.uri):
            self.client.set_terminated(run_id, "KILLED")

    def conclude(self, key: RunKey, status: str) -> int:
        """See ``Tracker.conclude``."""
        with errors(self.uri):
            query = f"tags.`{LINEAGE_TAG}` = '{key.lineage_id}' and attributes.status = 'RUNNING'"
            killed = 0
            for run in self.client.search_runs([self.experiment(key.experiment)], query):
                own = run.data.tags.get(STAGE_TAG)
                if own == key.stage:
                    continue
                self.client.set_terminated(run.info.run_id, status if own == "pipeline" else "KILLED")
                killed += own != "pipeline"
            return killed

    def _ensure(self, experiment: str, name: str, tags: dict[str, str], live: bool) -> tuple[str, bool]:
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self.client.search_runs([experiment], query, max_results=1)
        if not found:
            return str(self.client.create_run(experiment, run_name=name, tags=tags).info.run_id), True
        run_id = str(found[0].info.run_id)
        if live and found[0].info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        return run_id, False

    def _each_if_refused(self, file: SpoolFile, records: list[Record], send: Callable[[list[Record]], None]) -> None:
        """Send records together; when MLflow refuses them, one by one, and set those aside that it refuses alone."""
        try:
            with errors(self.uri):
                send(records)
        except MlflowFailure as error:
            tries = self._count_try(records[0]) if error.kind == "away" else 0
            if error.kind != "refused" and tries < MOST_FILE_TRIES:
                raise MlflowFailure("blocked" if tries else error.kind, str(error)) from error
            if len(records) > 1:
                for record in records:
                    self._each_if_refused(file, [record], send)
                return
            logger.warning("A record is set aside beside %s: %s", file.path, error)
            file.set_aside(records[0], str(error))

    def _count_try(self, record: Record) -> int:
        """How often a record's file has failed while MLflow itself answered; 0 for a record without one.

        Raises:
            MlflowFailure: MLflow itself is away.
        """
        name = _file_of(record)
        if not name:
            return 0
        with errors(self.uri):
            self.client.search_experiments(max_results=1)
        self._tries[name] += 1
        return self._tries[name]

    def _batch(self, run_id: str, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for record in records:
            for name, value in record.get("metrics", {}).items():
                metrics.append(Metric(name, value, record["time"], record["step"]))
            params = record.get("params", {}) | params  # the first value stays, here too
            tags |= record.get("tags", {})
        if params:
            known = self._params_of(run_id)  # MLflow refuses to change one, and with it the whole batch
            params = {name: value for name, value in params.items() if name not in known}
        if metrics or params or tags:
            new_params = [Param(name, value) for name, value in params.items()]
            new_tags = [RunTag(name, value) for name, value in tags.items()]
            self.client.log_batch(run_id, metrics, new_params, new_tags, synchronous=True)
        self._known_params.setdefault(run_id, set()).update(params)

    def _params_of(self, run_id: str) -> set[str]:
        if run_id not in self._known_params:
            self._known_params[run_id] = set(self.client.get_run(run_id).data.params)
        return self._known_params[run_id]

    def _single(self, run_id: str, file: SpoolFile, record: Record) -> None:
        if name := record.get("artifact"):
            if file.kept(name).exists():
                self.client.log_artifact(run_id, str(file.kept(name)))
        elif "datasets" in record:
            self.client.log_inputs(run_id, datasets=[_dataset_input(values) for values in record["datasets"]])
        elif "model" in record:
            self._log_model(run_id, file.kept(record["model"]["files"]), record["model"])
        elif "conclude" in record:
            self.conclude(file.key, record["conclude"])
        elif "end" in record:
            self.client.set_terminated(run_id, record["end"], end_time=record["time"])

    def _log_model(self, run_id: str, folder: Path, values: Mapping[str, Any]) -> None:
        """Make a LoggedModel of a folder, unless the run has it already."""
        from mlflow.entities import LoggedModelOutput

        experiment = self.client.get_run(run_id).info.experiment_id
        query = f"source_run_id = '{run_id}' and tags.`{DIGEST_TAG}` = '{values['tags'][DIGEST_TAG]}'"
        for found in self.client.search_logged_models([experiment], query):
            if str(found.status) == "READY":
                return
            self.client.delete_logged_model(found.model_id)
        made = self.client.create_logged_model(
            experiment,
            name=values["name"],
            source_run_id=run_id,
            tags=values["tags"],
            params=values["params"],
            model_type=values["type"],
        )
        self.client.log_model_artifacts(made.model_id, str(folder))
        self.client.finalize_logged_model(made.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, values["step"])])


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises into one sentence.

    Raises:
        MlflowFailure: in place of MLflow's, SQLAlchemy's, requests' and the system's errors.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise MlflowFailure(_kind(error), _sentence(uri, error.message)) from error
    except (OperationalError, OSError, BotoCoreError, ClientError) as error:  # requests' errors are OSErrors
        raise MlflowFailure("away", _sentence(uri, str(error))) from error
    except SQLAlchemyError as error:
        raise MlflowFailure("unusable", _sentence(uri, str(error))) from error


def _kind(error: Any) -> Kind:
    from mlflow.exceptions import InvalidUrlException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    if isinstance(error, InvalidUrlException | UnsupportedModelRegistryStoreURIException):
        return "unusable"
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return "missing"
    if error.error_code in UNUSABLE:
        return "unusable"
    return "refused" if error.error_code in REFUSED else "away"


def _sentence(uri: str, text: str) -> str:
    text = re.sub(r"//[^/@\s]+@", "//", text)
    lower = text.lower()
    if answered := re.search(r"too many (\d+) error responses", lower):
        reason = f"it answers with status {answered[1]}"
    elif "connection refused" in lower:
        reason = "nothing listens there"
    elif "timed out" in lower or "timeout" in lower:
        reason = "it does not answer in time"
    else:
        reason = " ".join(text.split())[:200].rstrip(". ") or "it gives no reason"
    return f"MLflow at {shown(uri)} cannot be used ({reason}): see that it runs, or name another tracking URI."


def _groups(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Records in their order: metrics, params and tags together as far as a batch may hold, others alone."""
    group: list[Record] = []
    metrics = others = 0
    for record in records:
        num_metrics = len(record.get("metrics", ()))
        num_others = len(record.get("params", ())) + len(record.get("tags", ()))
        is_batched = bool(num_metrics or num_others)
        full = metrics + num_metrics > MOST_METRICS - MOST_OTHERS or others + num_others > MOST_OTHERS
        if group and (full or not is_batched):
            yield group
            group, metrics, others = [], 0, 0
        if is_batched:
            group.append(record)
            metrics, others = metrics + num_metrics, others + num_others
        elif record.keys() & {"artifact", "datasets", "model", "conclude", "end"}:
            yield [record]
    if group:
        yield group


def _file_of(record: Record) -> str:
    """Name of the file or folder that a record brings; empty for others."""
    return str(record.get("artifact") or record.get("model", {}).get("files", ""))


def _dataset_input(values: Mapping[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=values["name"],
        digest=values["digest"],
        source_type=values["source_type"],
        source=values["source"],
        schema=values.get("schema"),
        profile=values.get("profile"),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", values["context"])])


def _tags(key: RunKey, stage: str) -> dict[str, str]:
    return {STAGE_TAG: stage, LINEAGE_TAG: key.lineage_id}


def _artifact_root(tracking_uri: str) -> str | None:
    """Files of a sqlite tracking database lie beside it, not in whatever folder the process runs in."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
