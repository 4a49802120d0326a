"""A small dataset about lamps, settings that train in seconds, and what the stage is given."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, ArtifactStore
from serin.core.context import StageContext
from serin.core.prompts import Prompt
from serin.core.records import Conversation, Message
from serin.core.tracking import Tracker
from serin.finetune.config import FinetuneConfig, TinyConfig

SMALL_TINY = TinyConfig(
    max_steps=8,
    vocab_size=400,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=64,
    max_positions=256,
    tokens_per_batch=512,
)
SMALL = FinetuneConfig(
    max_steps=6,
    max_length=128,
    tokens_per_batch=512,
    precision="fp32",
    num_workers=0,
    cpus_per_worker=1,
    validation_interval=3,
    tiny=SMALL_TINY,
)


RUN_STAGE = """
import sys
from serin.core.artifacts import ArtifactStore
from serin.core.context import stage_context
from serin.core.prompts import Prompt
from serin.finetune.config import FinetuneConfig
from serin.finetune.train import finetune
import json
given = json.loads(sys.argv[1])
with stage_context("finetune", store_uri=given["store"], lineage_id="lineage-1") as context:
    opened = [context.open(given[name]) for name in ("dataset", "documents")]
    finetune(FinetuneConfig.load(given["config"]), "serin://tiny", Prompt(), *opened, context)
"""


def conversation(number: int, passages: int = 1) -> Conversation:
    """A question about a lamp's price, with passages that tell it."""
    return Conversation(
        id=f"c{number}",
        messages=(
            Message(role="user", content=f"What does lamp {number} cost?"),
            Message(role="assistant", content=f"Lamp {number} costs {number + 7} EUR."),
        ),
        context=tuple(f"Lamp {number + offset} costs {number + offset + 7} EUR." for offset in range(passages)),
    )


@dataclass
class Recorder:
    """A reporter that remembers."""

    events: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append((time.monotonic(), event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        """Fields of all events of a name."""
        return [fields for _, name, fields in self.events if name == event]


@dataclass
class Inputs:
    """What the stage is given."""

    store: ArtifactStore
    dataset: Artifact
    documents: Artifact
    prompt: Prompt
    report: Recorder

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return Path(self.store.uri.removeprefix("file://"))

    def context(self, tracking_uri: str = "", lineage_id: str = "lineage-1") -> StageContext:
        """A context of this store."""
        tracker = Tracker(tracking_uri, "assistant", lineage_id, "finetune")
        return StageContext("finetune", self.store, "assistant", lineage_id, tracker, self.report)


MakeInputs = Callable[..., Inputs]


def start_stage(inputs: Inputs, config: FinetuneConfig) -> subprocess.Popen[bytes]:
    """Run the stage in a process of its own; its log is written beside the store."""
    given = {
        "store": inputs.store.uri,
        "dataset": inputs.dataset.uri,
        "documents": inputs.documents.uri,
        "config": config.dump(),
    }
    command = [sys.executable, "-W", "ignore", "-c", RUN_STAGE, json.dumps(given)]
    with inputs.folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)
