"""A small dataset in a store that counts as shared, settings that train in seconds, and a driver without training."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, ArtifactStore, Built
from serin.core.context import StageContext
from serin.core.digests import code_version
from serin.core.kubernetes import Clock
from serin.core.prompts import Prompt
from serin.core.records import Conversation, Document, Message, write_jsonl
from serin.core.tracking import Tracker
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.launcher import launch
from serin.finetune.cluster.request import LEASE, OUTCOME, Outcome, read_order
from serin.finetune.config import FinetuneConfig, TinyConfig
from serin.finetune.train import Finetuned

TINY_CONFIG = TinyConfig(
    max_steps=3,
    vocab_size=400,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=64,
    max_positions=256,
    tokens_per_batch=512,
)
CONFIG = FinetuneConfig(
    max_steps=3,
    max_length=128,
    tokens_per_batch=512,
    precision="fp32",
    num_workers=0,
    cpus_per_worker=1,
    validation_interval=3,
    tiny=TINY_CONFIG,
)


@dataclass
class Recorder:
    """A reporter that remembers."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def messages(self) -> list[str]:
        """Of all progress."""
        return [fields["message"] for event, fields in self.events if event == "progress"]


@dataclass
class World:
    """What a launch is given."""

    volume: Path
    store: ArtifactStore
    dataset: Artifact
    documents: Artifact
    report: Recorder

    def cluster(self, **changes: Any) -> ClusterConfig:
        """Settings of a RayJob, with little patience."""
        given = {
            "kind": "rayjob",
            "image": "serin/ray:0.1.0",
            "volume_claim": "shared",
            "volume_path": str(self.volume),
            "poll_s": 1.0,
            "patience_s": 20.0,
            "lease_interval_s": 0.2,
            "lease_expiry_s": 60.0,
        }
        return ClusterConfig.load({**given, **changes})

    def context(self, lineage_id: str = "run-1") -> StageContext:
        tracker = Tracker("", "assistant", lineage_id, "finetune")
        return StageContext("finetune", self.store, "assistant", lineage_id, tracker, self.report)

    def launch(
        self,
        cluster: ClusterConfig | None = None,
        lineage_id: str = "run-1",
        clock: Clock = Clock(),  # noqa: B008 - frozen
        **changes: Any,
    ) -> Finetuned:
        """Launch, with changes to the training's settings."""
        return launch(
            CONFIG.model_copy(update=changes),
            "serin://tiny",
            Prompt(),
            self.dataset,
            self.documents,
            self.context(lineage_id),
            cluster or self.cluster(),
            clock,
        )

    def given(self, cluster: ClusterConfig) -> str:
        """The same for a process of its own, as JSON."""
        return json.dumps(
            {
                "store": self.store.uri,
                "dataset": self.dataset.uri,
                "documents": self.documents.uri,
                "config": CONFIG.dump(),
                "cluster": cluster.dump(),
            }
        )


LAUNCH = """
import json, sys
from serin.core.context import stage_context
from serin.core.digests import code_version
from serin.core.kubernetes import Clock
from serin.core.prompts import Prompt
from serin.finetune.cluster.config import ClusterConfig
from serin.finetune.cluster.launcher import launch
from serin.finetune.config import FinetuneConfig
given = json.loads(sys.argv[1])
with stage_context("finetune", store_uri=given["store"], lineage_id="run-1") as context:
    opened = [context.open(given[name]) for name in ("dataset", "documents")]
    cluster = ClusterConfig.load(given["cluster"])
    launch(FinetuneConfig.load(given["config"]), "serin://tiny", Prompt(), *opened, context, cluster)
"""


def make_world(folder: Path) -> World:
    """The inputs of a launch below a folder."""
    code_version.cache_clear()  # a driver in a process of its own reads the code as it is by then
    volume = folder / "volume"
    store = ArtifactStore(str(volume / "store"), cache=folder / "cache")

    def write_dataset(output: Path, scratch: Path) -> Built:
        for name, numbers in (("train", range(30)), ("validation", range(30, 34)), ("test", range(34, 36))):
            write_jsonl(output / f"{name}.jsonl", [_conversation(number) for number in numbers])
        return Built()

    def write_documents(output: Path, scratch: Path) -> Built:
        text = "We sell lamps.\n\nEvery lamp has a price in EUR."
        write_jsonl(output / "documents.jsonl", [Document(id="d1", title="Lamps", text=text, source="lamps.md")])
        return Built()

    dataset, _ = store.produce("dataset", write_dataset, inputs={}, config={}, code="1")
    documents, _ = store.produce("documents", write_documents, inputs={}, config={}, code="1")
    return World(volume, store, dataset, documents, Recorder())


def succeed(request_uri: str) -> None:
    """What a driver leaves that has trained: two small artefacts and the outcome."""
    order, attempt = read_order(request_uri)
    store = ArtifactStore(order.request.store_uri)
    made = {}
    for kind in ("base", "model"):

        def build(output: Path, scratch: Path, kind: str = kind) -> Built:
            (output / "weights").write_text(kind)
            return Built(metadata={"val_loss": 1.0})

        made[kind], _ = store.produce(kind, build, inputs={}, config={}, code="1")
    leave(request_uri, base_uri=made["base"].uri, model_uri=made["model"].uri)
    assert attempt.outcome()


def leave(request_uri: str, **fields: str) -> None:
    """Write an outcome."""
    _, attempt = read_order(request_uri)
    outcome = Outcome(digest=attempt.digest, **fields)
    attempt.storage.write(OUTCOME, outcome.model_dump_json().encode())


def lease_of(request_uri: str) -> bytes:
    """The lease as it is now; empty when there is none yet."""
    _, attempt = read_order(request_uri)
    return attempt.storage.read(LEASE) if attempt.storage.exists(LEASE) else b""


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def _conversation(number: int) -> Conversation:
    return Conversation(
        id=f"c{number}",
        messages=(
            Message(role="user", content=f"What does lamp {number} cost?"),
            Message(role="assistant", content=f"Lamp {number} costs {number + 7} EUR."),
        ),
        context=(f"Lamp {number} costs {number + 7} EUR.",),
    )
