"""From what was observed to results: values with intervals, paired comparisons, slices, gaps.  Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serin.core.digests import digest_of
from serin.core.release import Release
from serin.core.statistics import Interval, bootstrap_quantile
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.gaps import gaps_of
from serin.evaluate.metrics import ItemValues, compare, slices_of, summarise
from serin.evaluate.results import (
    GAP,
    METRICS,
    Answer,
    Comparison,
    Gap,
    GoldenResult,
    Outcome,
    Results,
    SuiteInfo,
    definition,
)

OTHERS = ("baseline", "champion")
SUITES = "suites-{role}.jsonl"
"""File of a role's outcomes in an evaluation artefact."""
CLOCK = ("ttft_s", "inter_token_s", "latency_s", "cost")
"""Metrics of an outcome that a clock gives."""
QUANTILES = {"p50": 0.5, "p95": 0.95}
CLOCK_UNITS = ("seconds", "cost")


@dataclass(frozen=True)
class Observed:
    """One release's answers, hits and outcomes."""

    release: Release
    answers: list[Answer]
    golden: list[GoldenResult]
    values: ItemValues = field(repr=False)
    """Of answers and hits."""
    outcomes: Sequence[Outcome] = ()
    """Of the declared suites."""
    timed: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    """Of the candidate: role compared with to its outcomes of latency suites beside that one."""


def summarise_all(config: EvaluateConfig, observed: Mapping[str, Observed], skipped: Mapping[str, str]) -> Results:
    """Values of each release, and the candidate's differences from the others.

    Args:
        config: intervals and seed.
        observed: role to what was seen; 'candidate' is there.
        skipped: role that is not compared with to the reason.
    """
    candidate = observed["candidate"]
    groups, labels = _groups(candidate), _labels(candidate)
    values = {role: values_of(one) for role, one in observed.items()}
    slices = _slices(candidate)
    counts = {source: sum(one.source == source for one in candidate.answers) for source in ("given", "retrieved")}
    gaps = {role: gaps_of(of_role, labels, groups, config) for role, of_role in values.items()}
    roles = [role for role in OTHERS if role in observed]
    return Results(
        release_ids={role: one.release.id for role, one in observed.items()},
        values={
            role: {**_means(of_role, groups, config), **_further(observed[role], groups, gaps[role], config)}
            for role, of_role in values.items()
        },
        comparisons={role: _compared(_beside(candidate, role), values[role], groups, config) for role in roles},
        not_applicable=_absent(config, observed, skipped),
        num_items={**counts, "golden": len(candidate.golden)},
        by_language=_by_language(observed, groups, config),
        slices={role: _by_slice(_beside(candidate, role), values[role], slices, groups, config) for role in roles},
        slice_values={
            role: {
                name: found
                for name, members in slices.items()
                if (found := _means(_within(of_role, members), groups, config))
            }
            for role, of_role in values.items()
        },
        gaps=gaps,
    )


def item_key(outcome: Outcome) -> str:
    """An item's id among those of all suites."""
    return f"{outcome.suite}/{outcome.id}"


def group_of(outcome: Outcome) -> str:
    """An item's group among those of all suites; empty where it has none."""
    return f"{outcome.suite}/{outcome.group}" if outcome.group else ""


def values_of(one: Observed) -> ItemValues:
    """Every metric with one value for each item, those of declared suites as 'suite.metric'; in the report's order."""
    order = [metric.name for metric in METRICS if metric.name in one.values]
    return {name: one.values[name] for name in order} | outcome_values(one.outcomes)


def outcome_values(outcomes: Iterable[Outcome]) -> ItemValues:
    """'suite.metric' to item to value."""
    found: ItemValues = {}
    for one in outcomes:
        for name, value in {**one.values, **clock_values(one)}.items():
            found.setdefault(f"{one.suite}.{name}", {})[item_key(one)] = value
    return found


def clock_values(outcome: Outcome) -> dict[str, float]:
    """The metrics of an outcome that a clock gave."""
    return {name: outcome.timings[name] for name in CLOCK if name in outcome.timings}


def is_clock(metric: str) -> bool:
    """Whether a clock gave a metric, so that it is another value every time."""
    return definition(metric).unit in CLOCK_UNITS


def content_of(results: Results, outcome: str, files: Mapping[str, Any], observed: Mapping[str, Observed]) -> Any:
    """What identifies an evaluation in which clocks had a say: all but what they said.

    Args:
        results: of the evaluation.
        outcome: of its gate.
        files: name of each further file to its digest.
        observed: role to what was seen.
    """
    values = results.model_dump(mode="json", exclude={"values", "comparisons", "slices", "slice_values", "gaps"})
    for name in ("values", "comparisons"):
        tables: dict[str, dict[str, Any]] = getattr(results, name)
        values[name] = {role: _without_clock(of_role) for role, of_role in tables.items()}
    suites = {
        role: digest_of([item.model_dump(mode="json", exclude={"timings"}) for item in one.outcomes])
        for role, one in observed.items()
    }
    return digest_of({"results": digest_of(_plain(values)), "outcome": outcome, "files": dict(files), "suites": suites})


def own_suites(
    dataset_uri: str, digests: Mapping[str, str], observed: Mapping[str, Observed], available: Mapping[str, int]
) -> tuple[SuiteInfo, ...]:
    """What the dataset's own suites consist of.

    Args:
        dataset_uri: where they come from.
        digests: suite to the digest of its items.
        observed: role to what was seen.
        available: suite to the items that the dataset holds.
    """
    candidate = observed["candidate"]
    golden = ("recall_at_5", "recall_at_10", "ndcg_at_10", "reciprocal_rank")
    given = [one for one in candidate.answers if one.source == "given"]
    found = {
        "conversations": (
            len(given),
            [name for name in values_of(candidate) if name not in golden and "." not in name],
        ),
        "golden": (len(candidate.golden), [name for name in golden if name in candidate.values]),
    }
    return tuple(
        SuiteInfo(
            name=name,
            kind=name,
            source=dataset_uri,
            digest=digests[name],
            num_items=number,
            num_available=available.get(name, number),
            metrics=tuple(metrics),
            labels=tuple(sorted({label for one in given for label in one.labels})) if name == "conversations" else (),
        )
        for name, (number, metrics) in found.items()
        if name in digests
    )


def _groups(candidate: Observed) -> dict[str, str]:
    return {answer.id: answer.group for answer in candidate.answers} | {
        item_key(one): group_of(one) for one in candidate.outcomes
    }


def _labels(candidate: Observed) -> dict[str, dict[str, str]]:
    """Item to its labels: answers to given passages, and items of suites."""
    given = {one.id: one.labels for one in candidate.answers if one.source == "given"}
    return given | {item_key(one): one.labels for one in candidate.outcomes}


def _slices(candidate: Observed) -> dict[str, set[str]]:
    """Slice to its items; each suite is cut by itself, and slices of one name are one."""
    parts = [{one.id: one.labels for one in candidate.answers if one.source == "given"}]
    for name in dict.fromkeys(one.suite for one in candidate.outcomes):
        parts.append({item_key(one): one.labels for one in candidate.outcomes if one.suite == name})
    found: dict[str, set[str]] = {}
    for part in parts:
        for name, members in slices_of(part).items():
            found[name] = found.get(name, set()) | members
    return dict(sorted(found.items()))


def _beside(candidate: Observed, role: str) -> ItemValues:
    """The candidate's values to compare with a release: what clocks said in that release's company."""
    values = values_of(candidate)
    return values | outcome_values(candidate.timed.get(role, ()))


def _within(values: ItemValues, members: set[str]) -> ItemValues:
    cut = {name: {item: value for item, value in of.items() if item in members} for name, of in values.items()}
    return {name: of for name, of in cut.items() if of}


def _means(values: ItemValues, groups: Mapping[str, str], config: EvaluateConfig) -> dict[str, Interval]:
    found = {name: summarise(of_items, groups, config) for name, of_items in values.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def _further(
    one: Observed, groups: Mapping[str, str], gaps: Sequence[Gap], config: EvaluateConfig
) -> dict[str, Interval]:
    """Values of the whole release: precision of abstaining, quantiles of times, gaps between slices."""
    found: dict[str, Interval] = {}
    abstained: ItemValues = {}
    for outcome in one.outcomes:
        name = f"{outcome.suite}.abstention_precision"
        if outcome.values.get("abstention_recall") == 1.0:
            abstained.setdefault(name, {})[item_key(outcome)] = 1.0
        elif outcome.values.get("false_abstention_rate") == 1.0:
            abstained.setdefault(name, {})[item_key(outcome)] = 0.0
    found |= _means(abstained, groups, config)
    for name, of_items in outcome_values(one.outcomes).items():
        if not name.endswith("_s") or not is_clock(name) or len(of_items) < 2:
            continue
        for short, quantile in QUANTILES.items():
            found[f"{name.removesuffix('_s')}_{short}_s"] = bootstrap_quantile(
                list(of_items.values()),
                quantile,
                confidence=config.confidence,
                resamples=config.resamples,
                seed=config.seed,
            )
    return found | {f"{gap.metric}{GAP}{gap.label}": gap.difference for gap in gaps}


def _compared(
    candidate: ItemValues, other: ItemValues, groups: Mapping[str, str], config: EvaluateConfig
) -> dict[str, Comparison]:
    found = {
        name: compare(name, of_items, other[name], groups, config)
        for name, of_items in candidate.items()
        if name in other
    }
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def _by_slice(
    candidate: ItemValues,
    other: ItemValues,
    slices: Mapping[str, set[str]],
    groups: Mapping[str, str],
    config: EvaluateConfig,
) -> dict[str, dict[str, Comparison]]:
    found = {name: _compared(_within(candidate, members), other, groups, config) for name, members in slices.items()}
    return {name: compared for name, compared in found.items() if compared}


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


def _absent(config: EvaluateConfig, observed: Mapping[str, Observed], skipped: Mapping[str, str]) -> dict[str, str]:
    """Why metrics of the gate's rules are not there, where that is known."""
    absent = dict(skipped)
    if not observed["candidate"].golden:
        why = "the dataset holds no golden questions." if config.num_golden else "num_golden is 0."
        absent |= dict.fromkeys(("recall_at_5", "recall_at_10", "ndcg_at_10", "reciprocal_rank"), why)
    declared = {suite.name for suite in config.suites}
    for rule in config.gate.rules:
        suite, dot, _ = rule.metric.partition(GAP)[0].partition(".")
        if dot and suite not in declared:
            absent[rule.metric] = f"no suite {suite!r} is declared."
    if not config.gate.judge.url:
        absent["judge_preference"] = "no judge model is set."
    return absent


def _without_clock(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in values.items() if not is_clock(name)}


def _plain(value: Any) -> Any:
    """JSON values in which a number that JSON has not is text."""
    if isinstance(value, Interval):
        return _plain(value.dump())
    if isinstance(value, Comparison):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return repr(value) if isinstance(value, float) and value - value != 0 else value
