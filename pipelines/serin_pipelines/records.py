"""The record of a local run: ``<home>/runs/<run id>/run.json`` and what lies beside it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from serin.core.artifacts import home
from serin.core.errors import InputError
from serin.core.processes import alive

Status = Literal["running", "succeeded", "rejected", "failed", "interrupted"]

STAGES = ("data_prep", "finetune", "index", "release", "evaluate", "deploy", "monitor", "conclude")
PIPELINE_STAGES = {
    "training": STAGES,
    "retraining": ("trigger", *STAGES),
    "index_refresh": ("data_prep", "index", "release", "evaluate", "deploy", "conclude"),
    "promotion": ("release", "evaluate", "deploy", "conclude"),
    "monitoring": ("release", "monitor", "conclude"),
    "verdict": ("deploy", "conclude"),
}
"""What each pipeline's tasks report themselves as."""


class StageRecord(BaseModel):
    """One stage of a run."""

    model_config = ConfigDict(extra="forbid")

    name: str
    status: Literal["waiting", "running", "succeeded", "failed", "skipped"] = "waiting"
    wall_s: float = 0.0
    reused: list[str] = []
    """Kinds of the artefacts that an earlier run had made already."""
    message: str = ""
    """The last progress message, or the sentence of the failure."""
    log: str = ""
    summary: dict[str, Any] = {}


class RunRecord(BaseModel):
    """A run: what was asked, how far it got, what came out."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    """Also the lineage id of everything that the run makes."""
    pipeline: str
    status: Status = "running"
    decision: str = ""
    """promote, hold, rollback, aborted, unchanged or handed over; 'gate failed' when the gate said no; of monitoring:
    none, alert, reindex or retrain."""
    release: str = ""
    """Release id of the candidate, or of the release that was looked at."""
    champion: str = ""
    """Release id that serves the endpoint at the end."""
    error: str = ""
    pid: int = 0
    started_at: str
    wall_s: float = 0.0
    source_uri: str
    store_uri: str
    tracking_uri: str
    endpoint: str
    stages: list[StageRecord] = []

    def stage(self, name: str) -> StageRecord:
        """The record of a stage, added when it is new."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        self.stages.append(StageRecord(name=name))
        return self.stages[-1]

    @property
    def folder(self) -> Path:
        """Where the run's logs and files are."""
        return runs_folder() / self.run_id

    def save(self) -> None:
        """Write the record in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".run.json.partial"
        aside.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        aside.replace(self.folder / "run.json")


def runs_folder() -> Path:
    """The folder of all runs."""
    return home() / "runs"


def new_run_id() -> str:
    """Sortable and unique: UTC time and four random hex digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"


def load_runs() -> list[RunRecord]:
    """All runs, newest first; one whose process is gone without an outcome is 'interrupted'."""
    records = []
    for path in sorted(runs_folder().glob("*/run.json"), reverse=True):
        try:
            record = RunRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            continue
        if record.status == "running" and not alive(record.pid):
            record.status = "interrupted"
            record.error = "The process of this run is gone; 'serin run' continues from what it finished."
        records.append(record)
    return records


def last_run() -> RunRecord:
    """The newest run.

    Raises:
        InputError: there is none.
    """
    runs = load_runs()
    if not runs:
        raise InputError(f"There is no run in {runs_folder()}: start one with 'serin run'.")
    return runs[0]
