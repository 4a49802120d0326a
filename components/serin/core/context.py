"""What a stage is given besides its inputs: where things are kept, who asks, how to report."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serin.core.artifacts import Artifact, ArtifactStore, Built, Origin
from serin.core.config import Section
from serin.core.digests import canonical_json, code_version
from serin.core.errors import ConfigError, SerinError
from serin.core.journal import Journal
from serin.core.processes import die_with
from serin.core.telemetry import PARENT_VARIABLE, Reporter, reporter_for, silence_dependencies
from serin.core.tracking import Tracker

logger = logging.getLogger(__name__)

RUN_VARIABLE = "SERIN_RUN_ID"
"""On a cluster: the id of the Kubeflow run, the lineage id of runs that are given none."""


class PipelineArtifact(Protocol):
    """The part of a KFP artefact that we use."""

    path: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class StageContext:
    """Handed to every stage's logic."""

    stage: str
    store: ArtifactStore
    endpoint: str
    lineage_id: str
    tracker: Tracker
    report: Reporter

    @property
    def journal(self) -> Journal:
        """The endpoint's journal."""
        return Journal(self.store.storage, self.endpoint)

    def progress(self, message: str, fraction: float | None = None) -> None:
        """Say what is going on; ``fraction`` (0 to 1) is how much of the stage is done, where it is known."""
        self.report("progress", message=message, fraction=fraction)

    def produce(
        self,
        kind: str,
        build: Callable[[Path, Path], Built],
        *,
        inputs: Mapping[str, Artifact | str],
        config: Section | Mapping[str, Any],
    ) -> Artifact:
        """``ArtifactStore.produce`` with this stage's code version, lineage and tracking.

        Args:
            kind: artefact kind.
            build: writes the files; see ``ArtifactStore.produce``.
            inputs: each input as an artefact (its digest and URI are recorded) or as a bare digest.
            config: everything else that decides the result.
        """
        settings = config.dump() if isinstance(config, Section) else dict(config)
        digests = {name: value if isinstance(value, str) else value.digest for name, value in inputs.items()}
        sources = {name: value.uri for name, value in inputs.items() if isinstance(value, Artifact)}
        artifact, reused = self.store.produce(
            kind,
            build,
            inputs=digests,
            config=settings,
            code=code_version(self.stage),
            sources=sources,
            origin=Origin(lineage_id=self.lineage_id, mlflow_run_id=self.tracker.run_id),
        )
        if reused and artifact.manifest.lineage_id != self.lineage_id:
            self.report("reused", kind=kind, digest=artifact.digest, lineage_id=artifact.manifest.lineage_id)
        self.tracker.tags(
            {
                f"serin.{kind}.digest": artifact.digest,
                f"serin.{kind}.uri": artifact.uri,
                f"serin.{kind}.inputs": canonical_json(digests),
            }
        )
        return artifact

    def open(self, source: "str | PipelineArtifact") -> Artifact:
        """Open an artefact by URI, or by the KFP artefact that points at it."""
        return self.store.open(source if isinstance(source, str) else str(source.metadata["uri"]))

    def export(self, artifact: Artifact, output: PipelineArtifact) -> None:
        """Let a KFP output point at an artefact: its manifest becomes the file that the UI shows."""
        output.metadata.update(
            uri=artifact.uri, digest=artifact.digest, kind=artifact.manifest.kind, lineage_id=self.lineage_id
        )
        path = Path(output.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(artifact.manifest.model_dump_json(indent=1), encoding="utf-8")

    def finished(self, **summary: Any) -> None:
        """Report the stage's result in a few JSON values, for the run's summary."""
        self.report("finished", summary=json.loads(json.dumps(summary, default=str)))


@contextmanager
def stage_context(
    stage: str,
    *,
    store_uri: str,
    tracking_uri: str = "",
    lineage_id: str = "",
    endpoint: str = "assistant",
    compiled_for: str = "",
) -> Iterator[StageContext]:
    """Everything around a stage: logging, telemetry switched off, the MLflow run opened and closed.

    A ``SerinError`` is reported as one sentence and goes on to the caller.

    Args:
        stage: its name.
        store_uri: where artefacts, releases and the journal are kept.
        tracking_uri: MLflow; empty for none.
        lineage_id: ties a run's work together; empty: ``$SERIN_RUN_ID``.
        endpoint: whose work it is.
        compiled_for: the stage's code version that the pipeline was compiled from, so that what Kubeflow's cache
            took for the same is the same; empty: not checked.

    Raises:
        ConfigError: this image holds other code than the pipeline was compiled from.
    """
    if compiled_for and compiled_for != code_version(stage):
        raise ConfigError(
            f"The pipeline was compiled from code {compiled_for} of {stage}, and this image holds "
            f"{code_version(stage)}: compile it again with the image of the same version."
        )
    lineage_id = lineage_id or os.environ.get(RUN_VARIABLE, "")
    silence_dependencies()
    if parent := os.environ.get(PARENT_VARIABLE):
        die_with(int(parent))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    report = reporter_for(stage)
    tracker = Tracker(tracking_uri, endpoint, lineage_id, stage)
    context = StageContext(
        stage=stage,
        store=ArtifactStore(store_uri),
        endpoint=endpoint,
        lineage_id=lineage_id,
        tracker=tracker,
        report=report,
    )
    report("started")
    try:
        yield context
    except BaseException as error:
        message = str(error) if isinstance(error, SerinError) else f"{type(error).__name__}: {error}"
        report("failed", message=message, expected=isinstance(error, SerinError))
        _close(tracker, "FAILED")
        raise
    _close(tracker, "FINISHED")
    report("closed")


def _close(tracker: Tracker, status: str) -> None:
    try:
        tracker.finish(status)
    except Exception:  # the stage's own outcome is what counts
        logger.exception("The MLflow run could not be closed.")
