"""MLflow: one parent run per lineage id, a nested run per stage, and the registry's aliases.

MLflow mirrors what happened so that people find it; artefact manifests and the journal are the record.  Runs are
found or created by tags, and every call names its run id, so a stage that runs again continues its own run.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serin.core.errors import UnavailableError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LINEAGE_TAG = "serin.lineage_id"
STAGE_TAG = "serin.stage"
RELEASE_TAG = "serin.release_id"
PARENT_TAG = "mlflow.parentRunId"
ALIASES = ("candidate", "champion", "previous")
RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
"""Set in a task's pod by Kubeflow Pipelines' MLflow plugin, which has made a run for the task already."""


class Tracker:
    """The MLflow run of one stage; made when it is first used.

    Args:
        tracking_uri: MLflow tracking URI; empty switches tracking off.
        experiment: experiment name: the endpoint's.
        lineage_id: ties the stages of one pipeline run together.
        stage: this stage's name.
    """

    def __init__(self, tracking_uri: str, experiment: str, lineage_id: str, stage: str) -> None:
        self._uri, self._experiment, self._lineage_id, self._stage = (
            tracking_uri,
            experiment,
            lineage_id,
            stage,
        )

    @property
    def enabled(self) -> bool:
        """Whether there is a tracking server or file."""
        return bool(self._uri)

    @cached_property
    def client(self) -> "MlflowClient":
        """The MLflow client of this tracker's URI."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    @cached_property
    def run_id(self) -> str:
        """The stage's run, found or created below the run of its lineage id; empty when tracking is off.

        Where Kubeflow's MLflow plugin has made a run for the task, that one is used and tagged.

        Raises:
            UnavailableError: MLflow cannot be reached.
        """
        if not self.enabled:
            return ""
        from mlflow.exceptions import MlflowException

        try:
            if given := os.environ.get(RUN_ID_VARIABLE):
                return self._attach(given)
            parent = self._find_or_create(f"pipeline {self._lineage_id}", {STAGE_TAG: "pipeline"})
            return self._find_or_create(self._stage, {STAGE_TAG: self._stage, PARENT_TAG: parent})
        except MlflowException as error:
            raise UnavailableError(f"MLflow at {self._uri} cannot be used: {error.message}") from error

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; ones that are set already stay as they are (MLflow refuses to change them)."""
        if not self.enabled:
            return
        known = self._run().data.params
        for name, value in values.items():
            if name not in known:
                self.client.log_param(self.run_id, name, str(value)[:500])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step."""
        if not self.enabled:
            return
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, float(value), step=step)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        if not self.enabled:
            return
        for name, value in values.items():
            self.client.set_tag(self.run_id, name, value)

    def artifact(self, path: Path) -> None:
        """Log a file."""
        if self.enabled:
            self.client.log_artifact(self.run_id, str(path))

    def finish(self, status: str) -> None:
        """Close the stage's run as FINISHED or FAILED, if it was ever used."""
        if "run_id" in self.__dict__ and self.run_id:
            self.client.set_terminated(self.run_id, status)

    def conclude(self, status: str) -> int:
        """Close the runs of this lineage that nobody closed: the pipeline's own, and those of killed stages.

        Args:
            status: FINISHED or FAILED, for the pipeline's run; the others become KILLED.

        Returns:
            How many killed stages there were.
        """
        if not self.enabled or not self._lineage_id:
            return 0
        query = f"tags.`{LINEAGE_TAG}` = '{self._lineage_id}' and attributes.status = 'RUNNING'"
        killed = 0
        for run in self.client.search_runs([self._experiment_id], query):
            own = run.data.tags.get(STAGE_TAG)
            if own == self._stage:
                continue
            self.client.set_terminated(run.info.run_id, status if own == "pipeline" else "KILLED")
            killed += own != "pipeline"
        return killed

    def register(self, name: str, release_id: str, source_uri: str) -> str:
        """The version of a registered model that stands for a release: found, or created.

        Returns:
            The version number; empty when tracking is off.
        """
        if not self.enabled:
            return ""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(RELEASE_TAG) == release_id:
                return str(version.version)
        created = self.client.create_model_version(
            name,
            source=source_uri,
            run_id=self.run_id,
            tags={RELEASE_TAG: release_id, LINEAGE_TAG: self._lineage_id},
        )
        return str(created.version)

    def alias(self, name: str, alias: str, release_id: str) -> None:
        """Point an alias of the registered model at a release's version."""
        if not self.enabled:
            return
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(RELEASE_TAG) == release_id:
                self.client.set_registered_model_alias(name, alias, str(version.version))
                return
        raise UnavailableError(
            f"Release {release_id[:12]} is not registered in MLflow as {name!r}: run the release stage."
        )

    def _run(self) -> "Run":
        return self.client.get_run(self.run_id)

    @cached_property
    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self._experiment)
        if found:
            return str(found.experiment_id)
        return str(self.client.create_experiment(self._experiment, artifact_location=_artifact_root(self._uri)))

    def _attach(self, run_id: str) -> str:
        for tag, value in {STAGE_TAG: self._stage, LINEAGE_TAG: self._lineage_id}.items():
            self.client.set_tag(run_id, tag, value)
        return run_id

    def _find_or_create(self, name: str, tags: dict[str, str]) -> str:
        tags = {**tags, LINEAGE_TAG: self._lineage_id}
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self.client.search_runs([self._experiment_id], query, max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        return str(self.client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id)


def _artifact_root(tracking_uri: str) -> str | None:
    """Files of a sqlite tracking database lie beside it, not in whatever folder the process runs in."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


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
