"""Compare two systems by files of item values: what any evaluation harness can write, judged by the same gate.

A file holds one object (JSON lines) or row (Parquet) for each item: ``id``; the metrics as numbers or booleans; and,
where there are any, ``group`` (items of one group are not independent), ``suite``, ``digest`` (of the item: both sides
must have seen the same), ``contaminated`` and slice labels as text (``language``, ``channel``, ...).  Metrics may also
stand in an object ``metrics`` and labels in an object ``slices``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from serin.core.artifacts import Artifact
from serin.core.digests import digest_of
from serin.core.errors import InputError
from serin.core.records import read_jsonl
from serin.core.statistics import Interval
from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.metrics import compare, item_values, slices_of, summarise
from serin.evaluate.results import Answer, Comparison, Outcome, Results, definition
from serin.evaluate.run import read_results
from serin.evaluate.summary import SUITES, group_of, item_key

RESERVED = frozenset({"id", "group", "suite", "digest", "contaminated", "metrics", "slices"})
DEFAULT_SUITE = "items"
MAX_LABEL_CHARS = 64
"""Longer text is content, not a slice."""
MAX_SLICES = 50
"""A label with more values than this tells items apart, not slices."""
SHOWN = 3


@dataclass
class Items:
    """One system's values."""

    name: str
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric to item to value."""
    groups: dict[str, str] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Item to label to value."""
    suites: dict[str, dict[str, str]] = field(default_factory=dict)
    """Suite to item to its digest, empty where none is given."""
    contaminated: set[str] = field(default_factory=set)


def read_items(path: Path) -> Items:
    """Read a file of item values.

    Raises:
        InputError: it is not there, is no JSON lines or Parquet, or a line is not what it should be, which is named.
    """
    items, seen = Items(path.name), set()
    for where, row in _rows(path):
        item = row.get("id")
        if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
            raise InputError(f"{where} has no 'id': give each item one, the same in both files.")
        item = str(item)
        if item in seen:
            raise InputError(f"{where} repeats the id {item!r}: give each item one line.")
        seen.add(item)
        _take(items, item, row, where)
    if not seen:
        raise InputError(f"{path} holds no items: write one object a line.")
    return items


def items_of(evaluation: Artifact, name: str) -> Items:
    """The candidate's values in an evaluation artefact: its answers to given passages, and those of declared suites."""
    answers = [one for one in read_jsonl(evaluation.path / "candidate.jsonl", Answer) if one.source == "given"]
    items = Items(name, values=item_values(answers, []))
    for one in answers:
        items.groups[one.id], items.labels[one.id] = one.group, dict(one.labels)
        items.suites.setdefault("conversations", {})[one.id] = digest_of([one.question, one.reference, one.passages])
    if SUITES.format(role="candidate") in evaluation.manifest.files:
        _take_outcomes(items, read_jsonl(evaluation.path / SUITES.format(role="candidate"), Outcome))
    items.contaminated = set(read_results(evaluation).contaminated)
    return items


def _take_outcomes(items: Items, outcomes: Iterable[Outcome]) -> None:
    """Values of suites, without what clocks said: those of two evaluations do not compare."""
    for one in outcomes:
        item = item_key(one)
        items.groups[item], items.labels[item] = group_of(one), dict(one.labels)
        items.suites.setdefault(one.suite, {})[item] = one.digest
        for name, value in one.values.items():
            items.values.setdefault(f"{one.suite}.{name}", {})[item] = value


def not_worse_policy(candidate: Items, champion: Items, margin: float) -> GatePolicy:
    """What is judged by when no policy is given: no shared metric may be worse by the margin, in its own unit."""
    names = sorted(set(candidate.values) & set(champion.values))
    rules = [Rule(metric=name, kind="non_inferiority", against="champion", margin=margin) for name in names]
    if not rules:
        raise InputError(f"{candidate.name} and {champion.name} share no metric: name them alike.")
    return GatePolicy(rules=tuple(rules))


def compare_items(candidate: Items, champion: Items, policy: GatePolicy, config: EvaluateConfig) -> Results:
    """Results as of an evaluation, for the gate; the champion is also the baseline of rules that name one.

    Raises:
        InputError: the files share no item or no metric.
    """
    common = set(candidate.groups) & set(champion.groups)
    if not common:
        raise InputError(f"{candidate.name} and {champion.name} share no item id: they must hold the same items.")
    names = sorted(set(candidate.values) & set(champion.values))
    if not names:
        raise InputError(f"{candidate.name} and {champion.name} share no metric: name them alike.")
    known = {name: definition(name) for name in names}
    lower = {name for name, metric in known.items() if metric.unit != "value" and not metric.higher_is_better}
    lower |= set(policy.lower_is_better)
    labels = {item: candidate.labels.get(item, {}) for item in common}

    def compared(chosen: set[str]) -> dict[str, Comparison]:
        found = {
            name: compare(name, _only(candidate.values[name], chosen), champion.values[name], candidate.groups, config,
                          higher_is_better=name not in lower)
            for name in names
        }  # fmt: skip
        return {name: one for name, one in found.items() if one is not None}

    by_slice = {name: compared(members) for name, members in slices_of(labels, max_values=MAX_SLICES).items()}
    whole = compared(common)
    values = {
        role: {
            name: interval for name in side.values if (interval := summarise(side.values[name], side.groups, config))
        }
        for role, side in (("candidate", candidate), ("champion", champion), ("baseline", champion))
    }
    suites, broken = _suites(candidate, champion)
    return Results(
        release_ids={"candidate": candidate.name, "champion": champion.name},
        values=values,
        comparisons={"champion": whole, "baseline": whole},
        num_items={"given": len(common)},
        slices={role: {name: one for name, one in by_slice.items() if one} for role in ("champion", "baseline")},
        suites=suites,
        broken_suites=broken,
        contaminated=tuple(sorted(candidate.contaminated | champion.contaminated)),
    )


def _means(items: Items, config: EvaluateConfig) -> dict[str, Interval]:
    found = {name: summarise(values, items.groups, config) for name, values in items.values.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(f"{path} is no file: give JSON lines or Parquet with one item each.")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq
        from pyarrow import ArrowInvalid

        try:
            rows = pq.read_table(path).to_pylist()
        except (ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is not readable Parquet ({type(error).__name__}): write it again.") from error
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))
        return
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path} line {number} is no JSON object: write one object a line.")
                yield f"{path} line {number}", row
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON lines ({error}): write one object a line.") from error


def _take(items: Items, item: str, row: Mapping[str, Any], where: str) -> None:
    items.groups[item] = _text(row, "group", where)
    items.suites.setdefault(_text(row, "suite", where) or DEFAULT_SUITE, {})[item] = _text(row, "digest", where)
    if row.get("contaminated") is True:
        items.contaminated.add(item)
    loose = {name: value for name, value in row.items() if name not in RESERVED}
    metrics = _object(row, "metrics", where) | {
        name: value for name, value in loose.items() if isinstance(value, bool | int | float)
    }
    for name, value in metrics.items():
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or not isfinite(value):
            raise InputError(f"{where} has {name} = {value!r}: a metric is a finite number, or is left out.")
        items.values.setdefault(name, {})[item] = float(value)
    labels = _object(row, "slices", where) | {
        name: value for name, value in loose.items() if isinstance(value, str) and 0 < len(value) <= MAX_LABEL_CHARS
    }
    items.labels[item] = {name: str(value) for name, value in labels.items() if value is not None}


def _object(row: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = row.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{where} has {name!r} that is no object: write names and values.")
    return dict(value or {})


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where} has {name!r} that is no text: write it as text, or leave it out.")
    return str(value)


def _suites(candidate: Items, champion: Items) -> tuple[dict[str, str], dict[str, str]]:
    """Digest of each suite's items, and what is wrong with those that the two saw differently."""
    digests, broken = {}, {}
    for name in sorted({*candidate.suites, *champion.suites}):
        one, other = candidate.suites.get(name, {}), champion.suites.get(name, {})
        digests[name] = digest_of(one or other)
        changed = sorted(item for item in one.keys() & other.keys() if one[item] != other[item])
        if missing := sorted(other.keys() - one.keys()):
            broken[name] = f"the candidate has no value for {_named(missing)}."
        elif missing := sorted(one.keys() - other.keys()):
            broken[name] = f"the champion has no value for {_named(missing)}."
        elif changed:
            broken[name] = f"the two saw different items under the same id ({_named(changed)})."
    return digests, broken


def _named(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} items ({', '.join(items[:SHOWN])}{more})"


def _only(values: Mapping[str, float], chosen: set[str]) -> dict[str, float]:
    return {item: value for item, value in values.items() if item in chosen}
