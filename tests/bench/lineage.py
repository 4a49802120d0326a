"""How long ``serin lineage`` takes on a store with many releases, as a user types it: ``make bench-lineage``.

Records of 10,000 releases are written (three artefacts each, four journal entries, fifty answers for every hundredth),
the catalogue is made once, and every kind of question is asked three times as a process of its own.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serin.core.artifacts import FileEntry, Manifest
from serin.core.events import EndpointEvent, write_events
from serin.core.journal import GENESIS, Entry
from serin.core.policy import default_policy
from serin.core.prompts import Prompt
from serin.core.release import Part, Release
from serin.core.serving import ServingConfig
from serin.core.storage import storage_for

DOCUMENTS = 300


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def artifact(root: Path, kind: str, name: str, sources: dict[str, Part], files: dict[str, bytes] | None = None) -> Part:
    key = digest(f"{kind}{name}")[:24]
    folder = root / kind / key
    folder.mkdir(parents=True)
    for file, data in (files or {}).items():
        (folder / file).write_bytes(data)
    manifest = Manifest(
        kind=kind, key=key, digest=digest(f"{kind}{name}content"), lineage_id=f"run-{name}",
        files={file: FileEntry(sha256="0" * 64, size=len(data)) for file, data in (files or {}).items()},
        inputs={role: part.digest for role, part in sources.items()},
        sources={role: part.uri for role, part in sources.items()},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return Part(kind=kind, digest=manifest.digest, uri=folder.as_uri())


def write_store(root: Path, releases: int) -> dict[str, str]:
    """Write the records; returns an id of each kind to ask for."""
    storage, asked = storage_for(str(root)), {}
    documents = {}
    journal, previous, number = root / "endpoints" / "assistant" / "journal", GENESIS, 0
    journal.mkdir(parents=True)
    for i in range(releases):
        version = i // 100  # documents change less often than models
        if version not in documents:
            lines = "".join(json.dumps({"id": f"document-{j}"}) + "\n" for j in range(version, version + DOCUMENTS))
            documents[version] = artifact(root, "documents", f"d{version}", {}, {"documents.jsonl": lines.encode()})
        data = artifact(root, "dataset", str(i), {}, {"train.jsonl": b'{"id": "chat-%d"}\n' % i})
        base = artifact(root, "base", str(i), {"documents": documents[version]})
        model = artifact(root, "model", str(i), {"base": base, "dataset": data})
        index = artifact(root, "index", str(i), {"documents": documents[version]})
        release = Release(
            model=model, index=index, data=data, prompt=Prompt(), guardrails=default_policy().dump(),
            serving=ServingConfig().dump(), code_version="test",
        )  # fmt: skip
        folder = root / "releases" / release.id
        folder.mkdir(parents=True)
        (folder / "release.json").write_text(release.model_dump_json(), encoding="utf-8")
        for kind in ("release", "gate", "rollout", "promotion"):
            number += 1
            draft = Entry(
                number=number, time=f"2026-01-01T00:00:00.{number:06d}", kind=kind, release_id=release.id,
                decision="pass", lineage_id=f"run-{i}", previous_hash=previous, hash="",
            )  # fmt: skip
            entry = draft.model_copy(update={"hash": draft.expected_hash()})
            (journal / f"{number:08d}.json").write_text(entry.model_dump_json(), encoding="utf-8")
            previous = entry.hash
        if i % 100 == 0:
            traces = [digest(f"{i}-{j}")[:32] for j in range(50)]
            write_events(storage, "assistant", [event(release.id, trace) for trace in traces])
            asked |= {"trace": traces[7]}
    last = {"release": release.id[:12], "model": model.digest[:16], "index": index.digest[:16], "run": f"run-{i}"}
    return asked | last | {"document": "document-42", "conversation": f"chat-{i}"}


def event(release_id: str, trace_id: str) -> EndpointEvent:
    return EndpointEvent(
        trace_id=trace_id, time="2026-01-01T00:00:00.000+00:00", session_id="s", endpoint="assistant",
        release_id=release_id, track="champion", status=200,
    )  # fmt: skip


def timed(identifier: str, store: Path, home: Path) -> tuple[float, float, int]:
    """Seconds of one command by the clock and of the processor, and how many releases it names."""
    command = [sys.executable, "-m", "serin_pipelines.cli", "lineage", identifier, "--store", str(store), "--json"]
    started, before = time.perf_counter(), cpu_s()
    done = subprocess.run(command, env={**os.environ, "SERIN_HOME": str(home)}, capture_output=True, check=True)
    return time.perf_counter() - started, cpu_s() - before, len(json.loads(done.stdout)["releases"])


def cpu_s() -> float:
    """Processor seconds of the commands so far: what a busy machine does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=10_000)
    releases = parser.parse_args().releases
    with tempfile.TemporaryDirectory(prefix="serin-lineage-") as folder:
        store, home = Path(folder) / "store", Path(folder) / "home"
        asked = write_store(store, releases)
        first_s, _, _ = timed(asked["release"], store, home)
        figures = {"releases": releases, "catalogue_made_s": round(first_s, 1)}
        for kind, identifier in asked.items():
            times, cpu, counts = zip(*(timed(identifier, store, home) for _ in range(3)), strict=True)
            figures[f"{kind}_s"], figures[f"{kind}_cpu"] = round(sorted(times)[1], 3), round(sorted(cpu)[1], 3)
            print(f"{kind:<14}{sorted(times)[1]:7.3f} s {sorted(cpu)[1]:7.3f} s CPU{counts[0]:8d} releases")
        figures["slowest_s"] = max(
            value for name, value in figures.items() if name.endswith("_s") and "made" not in name
        )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
