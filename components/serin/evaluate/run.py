"""Evaluate a candidate against the baseline and the champion, and judge it at the gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.decision import Decision
from serin.core.digests import digest_of
from serin.core.journal import Entry
from serin.core.records import Conversation, write_jsonl
from serin.core.reference import REFERENCE_FILE
from serin.core.release import Release, load_release
from serin.core.statistics import Interval
from serin.evaluate.answers import answer_conversations
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.gate import decide
from serin.evaluate.metrics import (
    ItemValues,
    compare,
    item_values,
    reference_of,
    refusal_matrix,
    slices_of,
    summarise,
)
from serin.evaluate.report import write_report
from serin.evaluate.report_lineage import Behind
from serin.evaluate.results import METRICS, Answer, Comparison, GoldenResult, Results
from serin.evaluate.retrieval import ask_index
from serin.evaluate.review import KIND, METRIC, preferences
from serin.evaluate.sampling import held_out, seen_in_training, suite_digest

REPORT, RESULTS, DECISION = "report.html", "results.json", "decision.json"
OTHERS = ("baseline", "champion")
SHOWN = (
    "token_f1", "exact_match", "number_accuracy", "refusal_accuracy", "support_score", "bits_per_byte",
    "retrieved_token_f1", "retrieved_support_score", "recall_at_5",
)  # fmt: skip
"""Metrics in a run's summary; all of them are in the results."""


@dataclass(frozen=True)
class Evaluation:
    """What the stage returns."""

    artifact: Artifact
    """Kind 'evaluation': results.json, decision.json, reference.jsonl, answers of each role, report.html."""
    decision: Decision
    """``pass`` or ``fail``."""


@dataclass(frozen=True)
class Observed:
    """One release's answers and hits."""

    release: Release
    answers: list[Answer]
    golden: list[GoldenResult]
    values: ItemValues = field(repr=False)


def evaluate(
    config: EvaluateConfig,
    candidate: Release,
    baseline: Release,
    champion: Release | None,
    dataset: Artifact,
    context: StageContext,
) -> Evaluation:
    """Measure the releases on held-out data, compare them item by item, and judge the candidate.

    Releases with the same model, index, prompt and settings as one evaluated before on the same data are not asked
    again.  The journal gets one entry of kind ``gate`` for each different evaluation.

    Raises:
        InputError: the dataset has no held-out conversations.
        IntegrityError: a part of a release is damaged.
    """
    roles, skipped = _roles(candidate, baseline, champion)
    reviews = context.journal.find(kind=KIND, release_id=candidate.id)
    observed = {role: _observe(config, release, role, dataset, context) for role, release in roles.items()}

    def build(output: Path, scratch: Path) -> Built:
        items = held_out(config, dataset)
        results = summarise_all(config, observed, skipped).model_copy(
            update={"suites": suites_of(items, observed), "contaminated": seen_in_training(items, dataset)}
        )
        results = reviewed(results, reviews, observed, config)
        decision = decide(results, config.gate)
        (output / RESULTS).write_text(results.model_dump_json(indent=1), encoding="utf-8")
        (output / DECISION).write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        write_jsonl(output / REFERENCE_FILE, [reference_of(one.release.id, one.answers) for one in observed.values()])
        for role, one in observed.items():
            write_jsonl(output / f"{role}.jsonl", one.answers)
        answers = {role: one.answers for role, one in observed.items()}
        behind = Behind.of(roles)
        write_report(output / REPORT, results, decision, answers, config, dataset.digest, behind)
        refusals = refusal_matrix(observed["candidate"].answers)
        return Built(metadata={"outcome": decision.outcome, "metrics": _flat(results), "refusals": refusals})

    artifact = context.produce(
        "evaluation",
        build,
        inputs={"dataset": dataset, **{f"{role}_release": one.release.id for role, one in observed.items()}},
        config={**config.dump(), "skipped": skipped, **({"reviews": [one.hash for one in reviews]} if reviews else {})},
    )
    decision = Decision.model_validate_json((artifact.path / DECISION).read_text(encoding="utf-8"))
    _record(candidate, artifact, decision, context)
    return Evaluation(artifact=artifact, decision=decision)


def reviewed(
    results: Results, reviews: Sequence[Entry], observed: Mapping[str, Observed], config: EvaluateConfig
) -> Results:
    """The results with what reviewers prefer, of the answers that are there now."""
    others = {role: one.answers for role, one in observed.items() if role != "candidate"}
    gains, agreement = preferences(reviews, observed["candidate"].answers, others)
    groups = {answer.id: answer.group for answer in observed["candidate"].answers}
    comparisons = {role: dict(found) for role, found in results.comparisons.items()}
    for role, of_items in gains.items():
        level = dict.fromkeys(of_items, 0.0)
        if role in comparisons and (found := compare(METRIC, of_items, level, groups, config)):
            comparisons[role][METRIC] = found
    return results.model_copy(update={"comparisons": comparisons, "review_agreement": agreement})


def champion_of(context: StageContext) -> Release | None:
    """The release that the endpoint serves now; None before the first promotion."""
    release_id = context.journal.champion()
    return load_release(context.store.storage, release_id) if release_id else None


def read_results(evaluation: Artifact) -> Results:
    """The results inside an evaluation artefact."""
    return Results.model_validate(json.loads((evaluation.path / RESULTS).read_text(encoding="utf-8")))


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """What a run's summary shows: the main metrics of each release, the gain over the base model, the report."""
    results = read_results(evaluation.artifact)
    gain = results.comparisons.get("baseline", {}).get("token_f1")
    return {
        "outcome": evaluation.decision.outcome,
        "reasons": list(evaluation.decision.reasons),
        "metrics": {
            role: {name: round(values[name].estimate, 4) for name in SHOWN if name in values}
            for role, values in results.values.items()
        },
        "gain_over_baseline": gain.improvement.dump() if gain else None,
        "report": str(evaluation.artifact.path / REPORT),
    }


def summarise_all(config: EvaluateConfig, observed: Mapping[str, Observed], skipped: Mapping[str, str]) -> Results:
    """Values of each release, and the candidate's differences from the others.

    Args:
        config: intervals and seed.
        observed: role to what was seen; 'candidate' is there.
        skipped: role that is not compared with to the reason.
    """
    candidate = observed["candidate"]
    groups = {answer.id: answer.group for answer in candidate.answers}
    absent = dict(skipped)
    if not candidate.golden:
        why = "the dataset holds no golden questions." if config.num_golden else "num_golden is 0."
        absent |= dict.fromkeys(("recall_at_5", "recall_at_10", "ndcg_at_10", "reciprocal_rank"), why)
    counts = {source: sum(one.source == source for one in candidate.answers) for source in ("given", "retrieved")}
    return Results(
        release_ids={role: one.release.id for role, one in observed.items()},
        values={role: _values(one.values, groups, config) for role, one in observed.items()},
        comparisons={role: _compare(candidate, observed[role], groups, config) for role in OTHERS if role in observed},
        not_applicable=absent,
        num_items={**counts, "golden": len(candidate.golden)},
        by_language=_by_language(observed, groups, config),
        slices={role: _by_slice(candidate, observed[role], groups, config) for role in OTHERS if role in observed},
    )


def _roles(
    candidate: Release, baseline: Release, champion: Release | None
) -> tuple[dict[str, Release], dict[str, str]]:
    roles, skipped = {"candidate": candidate, "baseline": baseline}, {}
    if champion is None:
        skipped["champion"] = "the endpoint has no champion yet."
    elif champion.id == candidate.id:
        skipped["champion"] = "the candidate is the champion already."
    else:
        roles["champion"] = champion
    return roles, skipped


def _observe(config: EvaluateConfig, release: Release, role: str, dataset: Artifact, context: StageContext) -> Observed:
    found = ask_index(config, release, dataset, context)
    answers = answer_conversations(config, release, role, dataset, found, context)
    return Observed(release, answers, found.golden, item_values(answers, found.golden))


def _values(values: ItemValues, groups: Mapping[str, str], config: EvaluateConfig) -> dict[str, Interval]:
    found = {metric.name: summarise(values.get(metric.name, {}), groups, config) for metric in METRICS}
    return {name: interval for name, interval in found.items() if interval is not None}


def _compare(
    candidate: Observed, other: Observed, groups: Mapping[str, str], config: EvaluateConfig
) -> dict[str, Comparison]:
    names = [metric.name for metric in METRICS if metric.name in candidate.values and metric.name in other.values]
    found = {name: compare(name, candidate.values[name], other.values[name], groups, config) for name in names}
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def _by_language(
    observed: Mapping[str, Observed], groups: Mapping[str, str], config: EvaluateConfig
) -> dict[str, dict[str, Interval]]:
    languages = {answer.id: answer.language for answer in observed["candidate"].answers}
    found: dict[str, dict[str, Interval]] = {}
    for language in sorted(set(languages.values())):
        for role, one in observed.items():
            scores = one.values.get("token_f1", {})
            interval = summarise({i: s for i, s in scores.items() if languages.get(i) == language}, groups, config)
            if interval is not None:
                found.setdefault(language, {})[role] = interval
    return found


def _by_slice(
    candidate: Observed, other: Observed, groups: Mapping[str, str], config: EvaluateConfig
) -> dict[str, dict[str, Comparison]]:
    labels = {answer.id: answer.labels for answer in candidate.answers if answer.source == "given"}
    found: dict[str, dict[str, Comparison]] = {}
    for name, members in slices_of(labels).items():
        values = {
            metric: {item: value for item, value in of_items.items() if item in members}
            for metric, of_items in candidate.values.items()
        }
        compared = _compare(replace(candidate, values=values), other, groups, config)
        if compared:
            found[name] = compared
    return found


def suites_of(items: Sequence[Conversation], observed: Mapping[str, Observed]) -> dict[str, str]:
    """Suite to the digest of its items: what a policy may pin."""
    golden = {one.id: [one.question, sorted(one.document_ids)] for one in observed["candidate"].golden}
    return {"conversations": suite_digest(items), **({"golden": digest_of(golden)} if golden else {})}


def _record(candidate: Release, artifact: Artifact, decision: Decision, context: StageContext) -> None:
    context.tracker.metrics(artifact.metadata["metrics"])
    context.tracker.tags({"serin.gate": decision.outcome})
    context.tracker.artifact(artifact.path / REPORT)
    known = context.journal.find(kind="gate", release_id=candidate.id)
    if known and known[-1].evidence.get("evaluation", {}).get("digest") == artifact.digest:
        return
    evaluation = {"uri": artifact.uri, "digest": artifact.digest, "metrics": artifact.metadata["metrics"]}
    context.journal.append(
        "gate",
        release_id=candidate.id,
        decision=decision.outcome,
        reasons=decision.reasons,
        evidence={**decision.evidence, "evaluation": evaluation},
        policy_version=decision.policy_version,
        lineage_id=context.lineage_id,
        mlflow_run_id=context.tracker.run_id,
    )


def _flat(results: Results) -> dict[str, float]:
    return {f"{role}.{name}": one.estimate for role, values in results.values.items() for name, one in values.items()}
