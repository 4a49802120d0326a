"""Recorded requests of two releases, from JSONL or Parquet, for the judge and for simulations."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serin.core.errors import ConfigError, InputError
from serin.deploy.config import JudgePolicy, MetricPolicy
from serin.deploy.judge_metrics import built_in, metrics_of
from serin.deploy.judge_sessions import Observations, Request, observe_requests, seconds

SESSION_FIELDS = ("session", "session_id")
PARQUET_MAGIC = b"PAR1"
HIGHER_IS_BETTER = re.compile(r"(?i)score|support|accura|quality|valid|success|reward|correct")
KINDS = ("rate", "log_mean", "bounded_mean")


def read_requests(path: Path, *, of_candidate: bool) -> list[Request]:
    """The requests of a file: one object each, with ``session`` (or ``session_id``), ``time`` and metric fields.

    Args:
        path: JSON lines, or Parquet (told by its content).
        of_candidate: whose requests they are.

    Raises:
        InputError: the file is absent, empty or not readable, or a line is not a request; the line is named.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file: give recorded requests as JSON lines or Parquet.")
    requests = []
    for place, row in _rows(path):
        session = next((row[name] for name in SESSION_FIELDS if row.get(name) not in (None, "")), None)
        if session is None:
            raise InputError(f"{place} has no 'session': name the session that each request belongs to.")
        if row.get("time") is None:
            raise InputError(f"{place} has no 'time': give ISO 8601 or seconds, so that both sides can be lined up.")
        try:
            time_s = seconds(row["time"])
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        requests.append(Request(of_candidate=of_candidate, session=str(session), time_s=time_s, fields=row.get))
    if not requests:
        raise InputError(f"{path} holds no request.")
    return requests


def observe_files(stable: Sequence[Request], canary: Sequence[Request], policy: JudgePolicy) -> Observations:
    """Both sides' sessions, lined up by time - or in order of arrival where they were not recorded together.

    They were not if less than half of the canary's requests lie between the stable side's first and last.

    Raises:
        InputError: no metric of the policy has a value in both, or a value does not fit its metric.
    """
    first, last = min(one.time_s for one in stable), max(one.time_s for one in stable)
    apart = sum(first <= one.time_s <= last for one in canary) * 2 < len(canary)
    both = [*_in_order(stable), *_in_order(canary)] if apart else [*stable, *canary]
    seen = observe_requests(both, policy)
    observations = Observations(sessions=seen.sessions, trips=seen.trips, apart=apart)
    sides = [
        {name for one in seen.sessions if one.of_candidate == side for name in one.samples} for side in (True, False)
    ]
    if not sides[0] & sides[1]:
        names = ", ".join(metric.name for metric in metrics_of(policy))
        raise InputError(
            f"After the warm-up, no metric has values on both sides (asked: {names}; "
            f"found: {', '.join(fields_of([*stable, *canary])) or 'none'}): name one with --metric."
        )
    return observations


def policy_for(base: JudgePolicy, names: Sequence[str], requests: Sequence[Request]) -> JudgePolicy:
    """A policy that judges the named metrics alone; all of them must be proven harmless.

    A name is a metric of the base policy, or a field, optionally ``NAME:KIND`` or ``NAME:KIND:lower`` (or higher).

    Raises:
        ConfigError: a name is not of that form.
        InputError: no request has the field, or its values fit no kind.
    """
    known = {metric.name: metric for metric in metrics_of(base)}
    own = {metric.name for metric in base.metrics} | {metric.name for metric in built_in(base) if metric.required}
    chosen = []
    for text in names:
        name, kind, better = _parts(text)
        if not kind and name in own and name in known:
            metric = known[name]
        elif not kind and name in known:
            metric = _with_margins(name, known[name].kind, known[name].better)
        else:
            found = _values(name, requests)
            metric = _with_margins(name, kind or _kind_of(name, found), better or _direction_of(name))
        chosen.append(metric.model_copy(update={"required": metric.limit is not None}))
    return base.model_copy(update={"metrics": tuple(chosen), "default_metrics": False})


def without_absent(policy: JudgePolicy, observations: Observations) -> JudgePolicy:
    """The policy's metrics, none required that has no value anywhere: for data that was not made for it."""
    present = {name for session in observations.sessions for name in session.samples}
    kept = tuple(
        metric if metric.name in present else metric.model_copy(update={"required": False})
        for metric in metrics_of(policy)
    )
    return policy.model_copy(update={"metrics": kept, "default_metrics": False})


def fields_of(requests: Iterable[Request]) -> list[str]:
    """The names of all fields beside session and time."""
    names: dict[str, None] = {}
    for request in requests:
        row = getattr(request.fields, "__self__", None)
        names |= dict.fromkeys(row if isinstance(row, Mapping) else ())
    return [name for name in names if name not in (*SESSION_FIELDS, "time")]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with a name for it, such as 'line 3 of a.jsonl'."""
    with path.open("rb") as file:
        magic = file.read(len(PARQUET_MAGIC))
    if magic == PARQUET_MAGIC:
        yield from _parquet_rows(path)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is neither UTF-8 JSON lines nor Parquet: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"Line {number} of {path.name}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is not JSON ({error}): give one object a line.") from error
        if not isinstance(row, dict):
            raise InputError(f"{place} is not an object: give one object a line, with 'session' and 'time'.")
        yield place, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        rows = pq.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is not readable Parquet: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield f"Row {number} of {path.name}", row


def _in_order(requests: Sequence[Request]) -> list[Request]:
    """The requests at times from 0 to 1 by their order, so that two recordings can be compared at all."""
    ordered = sorted(requests, key=lambda one: (one.time_s, one.session))
    return [
        Request(one.of_candidate, one.session, place / len(ordered), one.fields, one.extra)
        for place, one in enumerate(ordered)
    ]


def _parts(text: str) -> tuple[str, Any, Any]:
    name, kind, better = (*text.split(":"), "", "")[:3]
    if not name or text.count(":") > 2 or kind not in ("", *KINDS) or better not in ("", "lower", "higher"):
        raise ConfigError(
            f"--metric {text!r} is not NAME, NAME:KIND or NAME:KIND:lower|higher (kinds: {', '.join(KINDS)})."
        )
    return name, kind, better


def _values(name: str, requests: Sequence[Request]) -> list[Any]:
    found = [value for request in requests if (value := request.fields(name)) is not None]
    if not found:
        raise InputError(f"No request has {name!r}; there are: {', '.join(fields_of(requests)) or 'no other fields'}.")
    return found


def _kind_of(name: str, values: Sequence[Any]) -> str:
    """What a field's values look like: 0, 1 or texts a rate, named scores in 0 to 1 bounded, else a positive number."""
    if all(isinstance(value, (bool, str)) or value in (0, 1) for value in values):
        return "rate"
    numbers = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    if len(numbers) < len(values):
        raise InputError(
            f"{name} has values that are no numbers, such as {next(v for v in values if v not in numbers)!r}."
        )
    bounded = all(0 <= value <= 1 for value in numbers)
    if bounded and (HIGHER_IS_BETTER.search(name) or min(numbers) == 0):
        return "bounded_mean"
    if min(numbers) > 0:
        return "log_mean"
    raise InputError(
        f"{name} reaches from {min(numbers):g} to {max(numbers):g}: a metric is 0/1, in 0 to 1, or positive."
    )


def _direction_of(name: str) -> str:
    return "higher" if HIGHER_IS_BETTER.search(name) and not name.lower().startswith("in") else "lower"


def _with_margins(name: str, kind: str, better: str) -> MetricPolicy:
    tolerated, limit = {"rate": (0.0, 0.05), "log_mean": (1.1, 1.4), "bounded_mean": (0.05, 0.15)}[kind]
    return MetricPolicy.model_validate(
        {"name": name, "kind": kind, "better": better, "tolerated": tolerated, "limit": limit}
    )
