"""The MLflow run of one stage, as stages see it."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serin.core.errors import UnavailableError
from serin.core.tracking.delivery import Delivery
from serin.core.tracking.runs import DIGEST_TAG, LINEAGE_TAG, MOST_OTHERS, MlflowFailure, Runs, errors
from serin.core.tracking.spool import Record, RunKey

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
RELEASE_TAG = "serin.release_id"
ALIASES = ("candidate", "champion", "previous")
RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
"""Set in a task's pod by Kubeflow Pipelines' MLflow plugin, which has made a run for the task already."""
RUN_WAIT_S = 15.0
"""Longest wait for the run's id."""
FLUSH_WAIT_S = 5.0
FINISH_WAIT_S = 15.0
RETRY_S = 1.0
LOCAL_SCHEMES = ("sqlite:", "file:")
MAX_PARAM_CHARS = 500
MAX_DATASET_DIGEST_CHARS = 36
"""MLflow's limit."""


class Tracker:
    """The MLflow run of one stage; made when it is first used.

    What a stage logs goes to a spool on disk, from where a thread sends it: MLflow being slow or away neither stops
    nor slows the stage, and what could not be sent is sent by the next stage.  Only what needs an answer waits for
    MLflow (``register``, ``alias``), and then raises one sentence.

    Args:
        tracking_uri: MLflow tracking URI; empty switches tracking off.
        experiment: experiment name: the endpoint's.
        lineage_id: ties the stages of one pipeline run together.
        stage: this stage's name; ``stage/part`` is a run nested below the stage's.
        finish_wait_s: longest time that ``finish`` waits for what has not been sent yet.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        lineage_id: str,
        stage: str,
        *,
        finish_wait_s: float = FINISH_WAIT_S,
    ) -> None:
        self._uri, self._experiment, self._lineage_id, self._stage = (
            tracking_uri,
            experiment,
            lineage_id,
            stage,
        )
        self._finish_wait_s = finish_wait_s
        self._is_used = False

    @property
    def uri(self) -> str:
        """MLflow's; empty when tracking is off."""
        return self._uri

    @property
    def enabled(self) -> bool:
        """Whether there is a tracking server or file."""
        return bool(self._uri)

    @property
    def client(self) -> "MlflowClient":
        """The MLflow client of this tracker's URI, for reading; what was logged so far is sent first, if it can be."""
        self._delivery.wait(FLUSH_WAIT_S)
        with errors(self._uri):
            return self._runs.client

    @property
    def run_id(self) -> str:
        """The stage's run, found or created below the run of its lineage id.

        Where Kubeflow's MLflow plugin has made a run for the task, that one is used and tagged.  Empty when tracking
        is off, and as long as MLflow does not answer: the run is made when it does.

        Raises:
            UnavailableError: the tracking URI or the credentials are wrong, or the database is none of MLflow's.
        """
        if not self.enabled:
            return ""
        self._is_used = True
        return self._delivery.wait_for_run(RUN_WAIT_S)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; ones that are set already stay as they are (MLflow refuses to change them)."""
        for some in _portions(values):
            self._post({"params": {name: str(value)[:MAX_PARAM_CHARS] for name, value in some.items()}}, face=True)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step; returns at once, whatever MLflow does."""
        now = _now_ms()
        for some in _portions(values):
            numbers = {name: float(value) for name, value in some.items()}
            self._post({"metrics": numbers, "step": step, "time": now})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for some in _portions(values):
            self._post({"tags": {name: str(value) for name, value in some.items()}}, face=True)

    def artifact(self, path: Path) -> None:
        """Log a file, as it is now."""
        if self.enabled:
            self._is_used = True
            self._delivery.post_file({"artifact": ""}, path, "artifact")
            self._show()

    def dataset(
        self, name: str, digest: str, source_uri: str, *, context: str = "training", profile: Mapping[str, Any] = {}
    ) -> None:
        """Log a dataset as an input of the run.

        Args:
            name: for people.
            digest: SHA-256 of its content; MLflow shows the first 36 digits.
            source_uri: where it lies.
            context: what it is used for: training, validation.
            profile: JSON values about it (counts).
        """
        import json

        source = {"uri": source_uri, "sha256": digest}
        values = {
            "name": name,
            "digest": digest[:MAX_DATASET_DIGEST_CHARS],
            "source_type": "serin",
            "source": json.dumps(source),
            "profile": json.dumps(dict(profile)),
            "context": context,
        }
        self._post({"datasets": [values]}, face=True)

    def logged_model(
        self, folder: Path, name: str, digest: str, *, tags: Mapping[str, str], params: Mapping[str, Any], step: int = 0
    ) -> None:
        """Log a small folder as a LoggedModel that is an output of the run; see ``log_model``."""
        if not self.enabled:
            return
        self._is_used = True
        values = {
            "name": name,
            "tags": {**tags, DIGEST_TAG: digest, LINEAGE_TAG: self._lineage_id},
            "params": {key: str(value)[:MAX_PARAM_CHARS] for key, value in params.items()},
            "type": "llm",
            "step": step,
        }
        self._delivery.post_file({"model": values}, folder, "model")
        self._show()

    def nested(self, part: str) -> "Tracker":
        """The tracker of a run below this stage's: a trial of a sweep."""
        return Tracker(
            self._uri, self._experiment, self._lineage_id, f"{self._stage}/{part}", finish_wait_s=self._finish_wait_s
        )

    def finish(self, status: str) -> None:
        """Close the stage's run as FINISHED or FAILED, if it was ever used; waits a limited time for MLflow."""
        if not self._is_used:
            return
        self._post({"end": status, "time": _now_ms()})
        self._delivery.wait(self._finish_wait_s)
        self._delivery.close()
        self._is_used = False

    def conclude(self, status: str) -> int:
        """Close the runs of this lineage that nobody closed: the pipeline's own, and those of killed stages.

        Args:
            status: FINISHED or FAILED, for the pipeline's run; the others become KILLED.

        Returns:
            How many killed stages there were; 0 where MLflow is away, and then they are closed later.
        """
        if not self.enabled or not self._lineage_id:
            return 0
        try:
            return self._runs.conclude(self._delivery.key, status)
        except MlflowFailure:
            self._post({"conclude": status})
            return 0

    def register(self, name: str, release_id: str, source_uri: str) -> str:
        """The version of a registered model that stands for a release: found, or created.

        Returns:
            The version number; empty when tracking is off.

        Raises:
            UnavailableError: MLflow does not answer, or refuses.
        """
        if not self.enabled:
            return ""
        run_id = self.run_id
        return _asked(self._uri, lambda: self._register(name, release_id, source_uri, run_id))

    def alias(self, name: str, alias: str, release_id: str) -> None:
        """Point an alias of the registered model at a release's version.

        Raises:
            UnavailableError: MLflow does not answer, or the release is not registered.
        """
        if not self.enabled:
            return
        if _asked(self._uri, lambda: self._point(name, alias, release_id)):
            return
        raise UnavailableError(
            f"Release {release_id[:12]} is not registered in MLflow as {name!r}: run the release stage."
        )

    def _register(self, name: str, release_id: str, source_uri: str, run_id: str) -> str:
        client = self._runs.client
        _ensure_registered(client, name)
        if found := self._version_of(name, release_id):
            return found
        tags = {RELEASE_TAG: release_id, LINEAGE_TAG: self._lineage_id}
        return str(client.create_model_version(name, source=source_uri, run_id=run_id or None, tags=tags).version)

    def _point(self, name: str, alias: str, release_id: str) -> bool:
        version = self._version_of(name, release_id)
        if version:
            self._runs.client.set_registered_model_alias(name, alias, version)
        return bool(version)

    def _version_of(self, name: str, release_id: str) -> str:
        for version in self._runs.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(RELEASE_TAG) == release_id:
                return str(version.version)
        return ""

    def _post(self, record: Record, *, face: bool = False) -> None:
        if self.enabled:
            self._is_used = True
            self._delivery.post(record)
            if face:
                self._show()

    def _show(self) -> None:
        """A local database answers in milliseconds, so what a run shows of itself is there for whoever looks next."""
        if self._uri.startswith(LOCAL_SCHEMES):
            self._delivery.wait(FLUSH_WAIT_S)

    @cached_property
    def _runs(self) -> Runs:
        return Runs(self._uri)

    @cached_property
    def _delivery(self) -> Delivery:
        given = os.environ.get(RUN_ID_VARIABLE, "")
        return Delivery(self._runs, RunKey(self._experiment, self._lineage_id, self._stage, given))

    @property
    def _experiment_id(self) -> str:
        with errors(self._uri):
            return self._runs.experiment(self._experiment)


def prepare_database(tracking_uri: str) -> None:
    """Create or upgrade a sqlite tracking file once, before several processes open it and race.

    Raises:
        UnavailableError: the file cannot be made, or is no MLflow database.
    """
    if not tracking_uri.startswith("sqlite:"):
        return
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        MlflowClient(tracking_uri=tracking_uri).search_experiments(max_results=1)
    except (OSError, MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        raise UnavailableError(
            f"MLflow's database {tracking_uri} cannot be used ({reason}): name another with --tracking."
        ) from error


def _asked(uri: str, ask: Callable[[], T]) -> T:
    """What MLflow answers, at its second try if the first one found it away for a moment."""
    try:
        with errors(uri):
            return ask()
    except MlflowFailure as failure:
        if failure.kind != "away":
            raise
    time.sleep(RETRY_S)
    with errors(uri):
        return ask()


def _ensure_registered(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _portions(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """As many values as MLflow takes at once."""
    items = iter(values.items())
    while portion := dict(islice(items, MOST_OTHERS)):
        yield portion


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
