"""Evaluate a candidate against the baseline and the champion, and judge it at the gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact, Built
from serin.core.context import StageContext
from serin.core.decision import Decision
from serin.core.digests import digest_of, digest_of_file
from serin.core.journal import Entry
from serin.core.records import Conversation, Message, write_jsonl
from serin.core.reference import REFERENCE_FILE
from serin.core.release import Release, load_release
from serin.evaluate.answers import answer_conversations
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.gate import decide
from serin.evaluate.items import Loaded
from serin.evaluate.judge import METRIC as JUDGE_METRIC
from serin.evaluate.judge import judge
from serin.evaluate.measure import Measured, Measuring, load_suites
from serin.evaluate.metrics import compare, item_values, reference_of, refusal_matrix
from serin.evaluate.report import write_report
from serin.evaluate.report_lineage import Behind
from serin.evaluate.results import GAP, JudgeSummary, Results
from serin.evaluate.retrieval import ask_index
from serin.evaluate.review import KIND, METRIC, preferences
from serin.evaluate.sampling import held_out, num_held_out, seen_in_training, suite_digest
from serin.evaluate.summary import SUITES, Observed, content_of, is_clock, own_suites, summarise_all

REPORT, RESULTS, DECISION = "report.html", "results.json", "decision.json"
SHOWN = (
    "token_f1", "exact_match", "number_accuracy", "refusal_accuracy", "support_score", "bits_per_byte",
    "retrieved_token_f1", "retrieved_support_score", "recall_at_5",
)  # fmt: skip
"""Metrics in a run's summary; all of them are in the results."""
SHOWN_OF_SUITES = (
    "token_f1", "intent_accuracy", "choice_accuracy", "text_bits_per_byte", "abstention_recall",
    "false_abstention_rate", "block_rate", "over_block_rate", "leak_rate", "latency_p95_s",
)  # fmt: skip
"""The same of each declared suite."""


@dataclass(frozen=True)
class Evaluation:
    """What the stage returns."""

    artifact: Artifact
    """Kind 'evaluation': results.json, decision.json, reference.jsonl, answers and suite outcomes of each role,
    report.html."""
    decision: Decision
    """``pass`` or ``fail``."""


def evaluate(
    config: EvaluateConfig,
    candidate: Release,
    baseline: Release,
    champion: Release | None,
    dataset: Artifact,
    context: StageContext,
) -> Evaluation:
    """Measure the releases on held-out data and declared suites, compare them item by item, and judge the candidate.

    Releases with the same model, index, prompt and settings as one evaluated before on the same data are not asked
    again.  The journal gets one entry of kind ``gate`` for each different evaluation.

    Raises:
        ConfigError: a suite or the judge's key is missing.
        InputError: the dataset has no held-out conversations, or a suite's source cannot be used.
        IntegrityError: a part of a release is damaged.
        ServingError: suites ask the endpoint, and the gateway or an engine does not start.
    """
    roles, skipped = _roles(candidate, baseline, champion)
    loaded = load_suites(config)
    reviews = context.journal.find(kind=KIND, release_id=candidate.id)
    observed = {role: _observe(config, release, role, dataset, context) for role, release in roles.items()}
    measured = Measuring(config, roles, loaded, context).run()
    observed = {role: _with_suites(one, role, measured) for role, one in observed.items()}
    judgements = _judgements(config, reviews, observed, context)

    def build(output: Path, scratch: Path) -> Built:
        items = held_out(config, dataset)
        results = summarise_all(config, observed, skipped)
        results = results.model_copy(update=_suite_facts(items, loaded, measured, dataset, observed, results))
        results = reviewed(results, reviews, observed, config)
        results = _with_judge(results, judgements, observed, config)
        decision = decide(results, config.gate)
        (output / RESULTS).write_text(results.model_dump_json(indent=1), encoding="utf-8")
        (output / DECISION).write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        write_jsonl(output / REFERENCE_FILE, [reference_of(one.release.id, one.answers) for one in observed.values()])
        for role, one in observed.items():
            write_jsonl(output / f"{role}.jsonl", one.answers)
        content = _content(output, results, decision, observed)
        for role, one in observed.items():
            if one.outcomes:
                write_jsonl(output / SUITES.format(role=role), one.outcomes)
        answers = {role: one.answers for role, one in observed.items()}
        behind = Behind.of(roles)
        outcomes = {role: one.outcomes for role, one in observed.items()}
        write_report(output / REPORT, results, decision, answers, config, dataset.digest, behind, outcomes)
        refusals = refusal_matrix(observed["candidate"].answers)
        metadata = {"outcome": decision.outcome, "metrics": _flat(results), "refusals": refusals}
        return Built(metadata=metadata, content=content)

    keyed = {
        **config.dump(),
        "skipped": skipped,
        "outcomes": {role: _digest(one) for role, one in observed.items()},
        **({"reviews": [one.hash for one in reviews]} if reviews else {}),
        **({"judged": _judged_digest(judgements)} if judgements else {}),
    }
    artifact = context.produce(
        "evaluation",
        build,
        inputs={"dataset": dataset, **{f"{role}_release": one.release.id for role, one in observed.items()}},
        config=keyed,
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
    results = results.model_copy(update={"review_agreement": agreement})
    return _with_gains(results, METRIC, gains, observed, config)


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
    of_suites = [f"{one.name}.{name}" for one in results.suite_info for name in SHOWN_OF_SUITES]
    return {
        "outcome": evaluation.decision.outcome,
        "reasons": list(evaluation.decision.reasons),
        "metrics": {
            role: {name: round(values[name].estimate, 4) for name in (*SHOWN, *of_suites) if name in values}
            for role, values in results.values.items()
        },
        "gain_over_baseline": gain.improvement.dump() if gain else None,
        "report": str(evaluation.artifact.path / REPORT),
    }


def suites_of(
    items: Sequence[Conversation], observed: Mapping[str, Observed], loaded: Sequence[Loaded] = ()
) -> dict[str, str]:
    """Suite to the digest of its items: what a policy may pin."""
    golden = {one.id: [one.question, sorted(one.document_ids)] for one in observed["candidate"].golden}
    declared = {one.suite.name: one.digest for one in loaded}
    return {"conversations": suite_digest(items), **({"golden": digest_of(golden)} if golden else {}), **declared}


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


def _with_suites(one: Observed, role: str, measured: Measured) -> Observed:
    timed = measured.timed if role == "candidate" else {}
    return Observed(one.release, one.answers, one.golden, one.values, measured.outcomes.get(role, []), timed)


def _suite_facts(
    items: Sequence[Conversation],
    loaded: Sequence[Loaded],
    measured: Measured,
    dataset: Artifact,
    observed: Mapping[str, Observed],
    results: Results,
) -> dict[str, Any]:
    """What the results say of the suites: digests, contents, faults, items seen in training."""
    digests = suites_of(items, observed, loaded)
    digests |= {one.name: one.digest for one in measured.infos if one.digest and one.name not in digests}
    absent = dict(results.not_applicable)
    for one in measured.infos:
        if one.skipped:
            absent[one.name] = one.skipped
    available = {"conversations": num_held_out(dataset)}
    return {
        "suites": digests,
        "suite_info": (*own_suites(dataset.uri, digests, observed, available), *measured.infos),
        "broken_suites": measured.broken,
        "contaminated": seen_in_training(_dialogues(items, loaded), dataset),
        "not_applicable": absent,
    }


def _dialogues(items: Sequence[Conversation], loaded: Sequence[Loaded]) -> dict[str, tuple[Message, ...]]:
    """Item to the turns that training data could hold: with the right answer, where the item has one."""
    found = {item.id: item.messages for item in items}
    for one in loaded:
        for item in one.items:
            if item.references and item.messages:
                answer = Message(role="assistant", content=item.references[0])
                found[f"{one.suite.name}/{item.id}"] = (*item.messages, answer)
    return found


def _judgements(
    config: EvaluateConfig, reviews: Sequence[Entry], observed: Mapping[str, Observed], context: StageContext
) -> dict[str, tuple[dict[str, float], JudgeSummary]]:
    """Role compared with to the judge's gains and what is to be said of them."""
    if not config.gate.judge.url:
        return {}
    answers = {role: one.answers for role, one in observed.items()}
    others = {role: of_one for role, of_one in answers.items() if role != "candidate"}
    human, _ = preferences(reviews, answers["candidate"], others)
    found = {}
    for role, of_one in others.items():
        judged = judge(config, answers["candidate"], of_one, human.get(role, {}), context)
        found[role] = (judged.gains, judged.summary)
    return found


def _with_judge(
    results: Results,
    judgements: Mapping[str, tuple[dict[str, float], JudgeSummary]],
    observed: Mapping[str, Observed],
    config: EvaluateConfig,
) -> Results:
    gains = {role: of_role for role, (of_role, _) in judgements.items()}
    absent = dict(results.not_applicable)
    for _, summary in judgements.values():
        if summary.why_missing:
            absent[JUDGE_METRIC] = summary.why_missing
    summaries = {role: summary for role, (_, summary) in judgements.items()}
    results = results.model_copy(update={"judge": summaries, "not_applicable": absent})
    return _with_gains(results, JUDGE_METRIC, gains, observed, config)


def _with_gains(
    results: Results,
    metric: str,
    gains: Mapping[str, Mapping[str, float]],
    observed: Mapping[str, Observed],
    config: EvaluateConfig,
) -> Results:
    """The results with a comparison that is made of preferences: role to item to gain."""
    groups = {answer.id: answer.group for answer in observed["candidate"].answers}
    comparisons = {role: dict(found) for role, found in results.comparisons.items()}
    for role, of_items in gains.items():
        level = dict.fromkeys(of_items, 0.0)
        if role in comparisons and (found := compare(metric, of_items, level, groups, config)):
            comparisons[role][metric] = found
    return results.model_copy(update={"comparisons": comparisons})


def _judged_digest(judgements: Mapping[str, tuple[dict[str, float], JudgeSummary]]) -> str:
    return digest_of({role: [gains, summary.model_dump(mode="json")] for role, (gains, summary) in judgements.items()})


def _digest(one: Observed) -> str:
    """Of a release's outcomes, without what clocks said."""
    return digest_of([item.model_dump(mode="json", exclude={"timings"}) for item in one.outcomes])


def _content(output: Path, results: Results, decision: Decision, observed: Mapping[str, Observed]) -> Any:
    """What identifies the evaluation: its files, or all but what clocks said where one had a say."""
    if not any(is_clock(name) for name in results.values["candidate"]):
        return None
    files = {
        path.name: digest_of_file(path) for path in sorted(output.iterdir()) if path.name not in (RESULTS, DECISION)
    }
    return content_of(results, decision.outcome, files, observed)


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
    """Role and metric to estimate; gaps are in the results alone, there are too many to plot."""
    return {
        f"{role}.{name}": one.estimate
        for role, values in results.values.items()
        for name, one in values.items()
        if GAP not in name
    }
