"""The evaluation's report: one HTML file without anything from outside, verdict first, figures drawn."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from serin.core.decision import Decision
from serin.core.page import Section, digest, page
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.report_evidence import evidence_section
from serin.evaluate.report_examples import examples_section, failures_of
from serin.evaluate.report_gate import gate_section, verdict_section
from serin.evaluate.report_lineage import Behind, lineage_section
from serin.evaluate.report_measures import measures_section, safety_section, speed_section
from serin.evaluate.report_slices import slices_section
from serin.evaluate.results import Answer, Outcome, Results


def write_report(
    path: Path,
    results: Results,
    decision: Decision,
    answers: Mapping[str, Sequence[Answer]],
    config: EvaluateConfig,
    dataset_digest: str,
    behind: Behind | None = None,
    outcomes: Mapping[str, Sequence[Outcome]] | None = None,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        results: what was measured.
        decision: what the gate made of it.
        answers: role to answers, for the examples.
        config: the settings, which the report states.
        dataset_digest: of the dataset, likewise.
        behind: the releases and what they were made from, for the picture of it; None leaves it out.
        outcomes: role to what it made of the suites' items, for those that went wrong.
    """
    release = results.release_ids["candidate"][:12]
    words = "passes the gate" if decision.outcome == "pass" else "does not pass the gate"
    sections = [
        verdict_section(results, decision),
        gate_section(results, decision),
        measures_section(results, decision, config),
        safety_section(results, decision, failures_of(outcomes or {}, config)),
        speed_section(results, decision),
        slices_section(results, decision),
        examples_section(answers, config),
        evidence_section(results, decision),
        lineage_section(behind or Behind(), decision),
        Section("What was not compared", _absent(results)),
    ]
    facts = _facts(results, config, decision, dataset_digest)
    html = page(f"Release {release} {words}", kind="Evaluation", sections=sections, facts=facts)
    path.write_text(html, encoding="utf-8")


def _absent(results: Results) -> str:
    items = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in results.not_applicable.items())
    broken = "".join(f"<li>Suite {escape(name)}: {escape(why)}</li>" for name, why in results.broken_suites.items())
    skipped = "".join(
        f"<li>Suite {escape(one.name)}: {escape(one.skipped)}</li>" for one in results.suite_info if one.skipped
    )
    return f"<ul>{items}{broken}{skipped}</ul>" if items or broken or skipped else ""


def _facts(results: Results, config: EvaluateConfig, decision: Decision, dataset_digest: str) -> dict[str, str]:
    counts = results.num_items
    return {
        **{f"{role.capitalize()} release": digest(one, whole=True) for role, one in results.release_ids.items()},
        "Dataset": digest(dataset_digest, whole=True),
        **{f"Suite {name}": digest(one, whole=True) for name, one in results.suites.items()},
        "Gate policy": digest(decision.policy_version, whole=True),
        "Answered with given passages": f"{counts.get('given', 0)} conversations",
        "Answered with live retrieval": f"{counts.get('retrieved', 0)} conversations",
        "Golden questions": str(counts.get("golden", 0)),
        "Items seen in training": str(len(results.contaminated)),
        "Intervals": f"{config.confidence:.0%}, BCa bootstrap, {config.resamples} resamples, seed {config.seed}",
    }
