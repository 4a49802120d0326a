"""What the judge measures: the built-in metrics, those a policy declares, and how a value is read from a request."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from serin.core.errors import ConfigError, InputError
from serin.deploy.config import JudgePolicy, MetricPolicy

Fields = Callable[[str], Any]
"""A request's field by name; None where it has none."""


def metrics_of(policy: JudgePolicy) -> tuple[MetricPolicy, ...]:
    """The metrics that a policy judges: the built-in ones, replaced and added to by its own.

    Raises:
        ConfigError: the policy declares no metric, or one twice.
    """
    names = [metric.name for metric in policy.metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"The judge's metric {twice[0]!r} is declared twice: name each metric once.")
    chosen = {metric.name: metric for metric in built_in(policy)} if policy.default_metrics else {}
    chosen |= {metric.name: metric for metric in policy.metrics}
    if not chosen:
        raise ConfigError("The judge has no metric: declare some in 'metrics', or leave default_metrics on.")
    return tuple(chosen.values())


def built_in(policy: JudgePolicy) -> tuple[MetricPolicy, ...]:
    """The built-in metrics with the policy's dials.

    Errors and time to first token have most of alpha, for they are what most often breaks.  The rest rolls back on
    gross harm only: answers may well become longer or more cautious on purpose.
    """
    support_drop = policy.tolerated_support_drop
    return (
        MetricPolicy(
            name="errors", kind="rate", tolerated=0.0, limit=policy.max_error_increase, required=True, weight=29
        ),
        MetricPolicy(
            name="ttft",
            kind="log_mean",
            tolerated=policy.tolerated_ttft_ratio,
            limit=policy.max_ttft_ratio,
            required=True,
            weight=36,
        ),
        MetricPolicy(
            name="support",
            kind="bounded_mean",
            better="higher",
            tolerated=policy.max_support_drop / 3 if support_drop is None else support_drop,
            limit=policy.max_support_drop,
            required=True,
            weight=12,
        ),
        MetricPolicy(name="inter_token", kind="log_mean", tolerated=1.5, weight=4),
        MetricPolicy(name="latency", kind="log_mean", tolerated=2.0, weight=4),
        MetricPolicy(name="tokens", kind="log_mean", tolerated=3.0, weight=1),
        MetricPolicy(name="cost", kind="log_mean", tolerated=2.0, weight=2),
        MetricPolicy(name="guardrail_blocks", kind="rate", tolerated=0.1, weight=2),
        MetricPolicy(name="guardrail_flags", kind="rate", tolerated=0.2, weight=1),
        MetricPolicy(name="invalid_format", kind="rate", tolerated=0.05, weight=3),
        MetricPolicy(name="refusals", kind="rate", tolerated=0.15, weight=2),
        MetricPolicy(name="cut_short", kind="rate", tolerated=0.2, weight=2),
        MetricPolicy(name="negative_feedback", kind="rate", tolerated=0.1, weight=2),
    )


def value_of(metric: MetricPolicy, fields: Fields, extra: Mapping[str, Any]) -> float | None:
    """A metric's value for one request, None where it has none.

    A value under the metric's own name (or ``field``) wins, in ``extra`` first; else a built-in metric is worked out
    from the fields of an endpoint event.

    Raises:
        InputError: the value does not fit the metric's kind.
    """
    name = metric.field or metric.name
    found = extra.get(name)
    if found is None:
        found = fields(name)
    if found is None and (reader := _READERS.get(metric.name)):
        found = reader(fields)
    return None if found is None else _checked(metric, found)


def _checked(metric: MetricPolicy, found: Any) -> float | None:
    if isinstance(found, str) and metric.kind == "rate":
        return float(bool(found))  # an error's code; an empty text is none
    if not isinstance(found, (bool, int, float)) or math.isnan(found):
        raise InputError(f"{metric.name} is {found!r}: a {metric.kind} needs a number.")
    value = float(found)
    if metric.kind == "log_mean" and not 0 < value < math.inf:
        raise InputError(f"{metric.name} is {found!r}: a log_mean needs a positive number.")
    if metric.kind == "bounded_mean" and not 0 <= value <= 1:
        raise InputError(f"{metric.name} is {found!r}: a bounded_mean needs a number from 0 to 1.")
    if metric.kind == "rate" and value not in (0.0, 1.0):
        raise InputError(f"{metric.name} is {found!r}: a rate needs 0 or 1 (a score is a bounded_mean).")
    return value


def failed(fields: Fields) -> bool | None:
    """Whether a request failed on our side; None where its fields do not tell."""
    status = fields("status")
    if isinstance(status, (int, float)):
        return status >= 500
    told = next((value for name in ("error", "failed") if (value := fields(name)) is not None), None)
    return None if told is None else bool(told)


def _answered(fields: Fields) -> bool:
    return fields("status") in (None, 200)


def _positive(name: str) -> Callable[[Fields], float | None]:
    def read(fields: Fields) -> float | None:
        value = fields(name)
        return value if isinstance(value, (int, float)) and value > 0 and _answered(fields) else None

    return read


def _inter_token(fields: Fields) -> float | None:
    """Milliseconds a token after the first, of a streamed answer of at least three tokens."""
    ttft, latency, tokens = fields("ttft_ms"), fields("latency_ms"), fields("completion_tokens")
    if not ttft or not latency or not tokens or tokens < 3 or latency <= ttft:
        return None
    return float(latency - ttft) / (tokens - 1)


def _actions(suffix: str) -> Callable[[Fields], bool | None]:
    def read(fields: Fields) -> bool | None:
        actions = fields("guardrail_actions")
        return None if actions is None else any(str(action).endswith(suffix) for action in actions)

    return read


def _invalid_format(fields: Fields) -> bool | None:
    valid = fields("format_valid")
    return None if valid is None else not valid


def _refused(fields: Fields) -> bool | None:
    refused = fields("refused")
    return None if refused is None or not _answered(fields) else bool(refused)


def _cut_short(fields: Fields) -> bool | None:
    """An answer that is empty, or that ended at its token limit."""
    reason, tokens = fields("finish_reason"), fields("completion_tokens")
    if not _answered(fields) or (reason is None and tokens is None):
        return None
    return reason == "length" or tokens == 0


def _disliked(fields: Fields) -> bool | None:
    feedback = fields("feedback")
    return feedback < 0 if isinstance(feedback, (int, float)) else None


def _first_token(fields: Fields) -> float | None:
    value = fields("ttft_ms")
    return value if isinstance(value, (int, float)) and value > 0 else None


_READERS: dict[str, Callable[[Fields], Any]] = {
    "errors": failed,
    "ttft": _first_token,
    "support": lambda fields: fields("support_score"),
    "inter_token": _inter_token,
    "latency": _positive("latency_ms"),
    "tokens": _positive("completion_tokens"),
    "cost": _positive("cost"),
    "guardrail_blocks": _actions(":block"),
    "guardrail_flags": _actions(""),
    "invalid_format": _invalid_format,
    "refusals": _refused,
    "cut_short": _cut_short,
    "negative_feedback": _disliked,
}
