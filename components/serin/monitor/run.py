"""One look at an endpoint: read its events, compute the signals, decide, write the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.decision import Decision
from serin.core.digests import digest_of, digest_of_text
from serin.core.errors import StorageError
from serin.core.events import EndpointEvent, read_events
from serin.core.records import SPLITS, Conversation, Document, read_jsonl
from serin.core.reference import REFERENCE_FILE, Reference
from serin.core.release import Release, open_part
from serin.monitor.config import MonitorConfig
from serin.monitor.drift import ReferenceQuestions, question_drift
from serin.monitor.evidently_report import write_evidently
from serin.monitor.page import write_page
from serin.monitor.policy import decide
from serin.monitor.signals import IndexState, QuestionDrift, Signals, quality_signals, service_signals

REPORT, SIGNALS, DECISION = "report.html", "signals.json", "decision.json"


@dataclass(frozen=True)
class Look:
    """What the stage returns."""

    artifact: Artifact
    """Kind 'monitoring': signals.json, decision.json, report.html, evidently.json and, on alarm, evidently.html."""
    decision: Decision
    """``none``, ``alert``, ``reindex`` or ``retrain``."""


def monitor(config: MonitorConfig, release: Release, dataset: Artifact, context: StageContext) -> Decision:
    """Compare a release's traffic with its evaluation and its dataset; see ``watch``."""
    return watch(config, release, dataset, context).decision


def watch(config: MonitorConfig, release: Release, dataset: Artifact, context: StageContext) -> Look:
    """Look at the traffic of a release since its rollout began, decide, and journal it (kind ``monitor``).

    The same traffic, seen again on the same day, gives the same look and no second journal entry.

    Args:
        config: window and policy.
        release: whose traffic.
        dataset: the questions that it was made for.
        context: the stage's.
    """
    now = datetime.now(UTC)
    events = read_events(
        context.store.storage, context.endpoint, release_id=release.id, since=_since(config, release, context, now)
    )
    evaluation = _evaluation_of(release, context)
    drifted_before = _drifted_before(release, events, context)
    context.progress(f"comparing {len(events)} requests with the reference")

    def build(output: Path, scratch: Path) -> Built:
        reference = _reference_of(release, evaluation)
        signals = _signals(config, release, dataset, events, reference, drifted_before, now, context)
        decision = decide(signals, config.policy)
        (output / SIGNALS).write_text(signals.model_dump_json(indent=1), encoding="utf-8")
        (output / DECISION).write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        html = config.evidently_html or decision.outcome != "none"
        write_evidently(output, reference, _questions(dataset).texts, events, config, html=html)
        write_page(output / REPORT, release.id, signals, decision, config.policy)
        metadata = {"outcome": decision.outcome, "num_events": len(events)}
        return Built(metadata=metadata, content=decision.model_dump(mode="json"))  # Evidently's ids are random

    artifact = context.produce(
        "monitoring",
        build,
        inputs={
            "dataset": dataset,
            "release": release.id,
            "events": digest_of([event.model_dump(mode="json") for event in events]),
            **({"evaluation": evaluation} if evaluation else {}),
        },
        config={**config.dump(), "drifted_before": drifted_before, "day": now.date().isoformat()},
    )
    decision = Decision.model_validate_json((artifact.path / DECISION).read_text(encoding="utf-8"))
    _record(release, artifact, decision, context)
    return Look(artifact=artifact, decision=decision)


def headline(look: Look) -> dict[str, Any]:
    """What a run's summary shows."""
    return {
        "outcome": look.decision.outcome,
        "reasons": list(look.decision.reasons),
        "report": str(look.artifact.path / REPORT),
    }


def _since(config: MonitorConfig, release: Release, context: StageContext, now: datetime) -> str | None:
    own = context.journal.find(release_id=release.id)
    starts = [entry.time for entry in own if entry.kind == "rollout" and entry.decision == "started"]
    starts = starts or [entry.time for entry in own if entry.kind == "promotion"]
    begun = starts[-1] if starts else None
    if config.window_hours is None:
        return begun
    window = (now - timedelta(hours=config.window_hours)).isoformat(timespec="milliseconds")
    return max(window, begun) if begun else window


def _signals(
    config: MonitorConfig,
    release: Release,
    dataset: Artifact,
    events: Sequence[EndpointEvent],
    reference: Reference | None,
    drifted_before: int,
    now: datetime,
    context: StageContext,
) -> Signals:
    shifts, missing = quality_signals(events, reference, config)
    questions = _question_drift(config, dataset, events, missing)
    return Signals(
        **service_signals(events),
        **shifts,
        questions=questions,
        index=_index_state(release, now, context),
        drifted_before=drifted_before,
        missing=missing,
    )


def _question_drift(
    config: MonitorConfig, dataset: Artifact, events: Sequence[EndpointEvent], missing: dict[str, str]
) -> QuestionDrift | None:
    asked = one_question_a_session(events)
    reference = _questions(dataset)
    if not asked:
        missing["questions"] = "the events hold no text; the guardrail policy's keep_text decides on that."
    elif len(set(reference.groups)) < 2:
        missing["questions"] = "the dataset holds too few questions to compare with."
    else:
        return question_drift(reference, asked, config)
    return None


def one_question_a_session(events: Sequence[EndpointEvent]) -> list[str]:
    """The text of one request of each session, the same one every time: those of a session are not independent."""
    chosen: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.question.strip():
            rank = digest_of_text(event.trace_id)
            chosen[event.session_id] = min(chosen.get(event.session_id, (rank, event.question)), (rank, event.question))
    return [question for _, question in chosen.values()]


def _questions(dataset: Artifact) -> ReferenceQuestions:
    texts, groups, held_out = [], [], set()
    for split in SPLITS:
        for conversation in read_jsonl(dataset.path / f"{split}.jsonl", Conversation):
            group = conversation.group or conversation.id
            turns = [turn.content for turn in conversation.messages if turn.role == "user"]
            texts += turns
            groups += [group] * len(turns)
            if split == "test":
                held_out.add(group)
    return ReferenceQuestions(tuple(texts), tuple(groups), len(held_out))


def _evaluation_of(release: Release, context: StageContext) -> Artifact | None:
    """The latest evaluation that measured the release, as candidate, baseline or champion."""
    for entry in reversed(context.journal.find(kind="gate")):
        uri = entry.evidence.get("evaluation", {}).get("uri")
        if not uri:
            continue
        try:
            evaluation = context.open(uri)
        except StorageError:
            continue  # cleaned up since
        if _reference_of(release, evaluation):
            return evaluation
    return None


def _reference_of(release: Release, evaluation: Artifact | None) -> Reference | None:
    if evaluation is None or not (evaluation.path / REFERENCE_FILE).is_file():
        return None
    records = read_jsonl(evaluation.path / REFERENCE_FILE, Reference)
    return next((record for record in records if record.release_id == release.id), None)


def _index_state(release: Release, now: datetime, context: StageContext) -> IndexState:
    index = open_part(release.index, context.store)
    made = datetime.fromisoformat(index.manifest.created_at)
    return IndexState(
        age_days=round((now - made).total_seconds() / 86_400, 2), expired_share=_expired_share(index, now, context)
    )


def _expired_share(index: Artifact, now: datetime, context: StageContext) -> float | None:
    if not (uri := index.manifest.sources.get("documents")):
        return None
    try:
        documents = read_jsonl(context.open(uri).path / "documents.jsonl", Document)
    except StorageError:
        return None  # cleaned up since
    ends = [end for document in documents if (end := document.metadata.get("valid_until"))]
    return sum(end < now.date().isoformat() for end in ends) / len(ends) if ends else None


def _drifted_before(release: Release, events: Sequence[EndpointEvent], context: StageContext) -> int:
    """Looks in a row that ended in drift, each at traffic that the one after it had more of."""
    last_time = events[-1].time if events else ""
    count = 0
    for entry in reversed(context.journal.find(kind="monitor", release_id=release.id)):
        seen = entry.evidence.get("signals", {}).get("last_time", "")
        if seen >= last_time:
            continue  # the same traffic, seen before
        if not entry.evidence.get("drifted"):
            break
        count, last_time = count + 1, seen
    return count


def _record(release: Release, artifact: Artifact, decision: Decision, context: StageContext) -> None:
    signals = Signals.model_validate(decision.evidence["signals"])
    numbers = {"events": signals.num_events, "sessions": signals.num_sessions, "error_share": signals.errors.estimate}
    for name in ("support", "refusals", "retrieval"):
        if shift := getattr(signals, name):
            numbers[name] = shift.current
    if signals.questions:
        numbers |= {"novelty": signals.questions.novelty, "mix_distance": signals.questions.mix_distance}
    context.tracker.metrics({f"monitor.{name}": value for name, value in numbers.items()})
    context.tracker.tags({"serin.monitor": decision.outcome})
    context.tracker.artifact(artifact.path / REPORT)
    known = context.journal.find(kind="monitor", release_id=release.id)
    if known and known[-1].evidence.get("report", {}).get("digest") == artifact.digest:
        return
    context.journal.append(
        "monitor",
        release_id=release.id,
        decision=decision.outcome,
        reasons=decision.reasons,
        evidence={**decision.evidence, "report": {"uri": artifact.uri, "digest": artifact.digest}},
        policy_version=decision.policy_version,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )
