"""The monitor's policy: signals in, none, alert, reindex or retrain out.  Pure."""

from serin.core.decision import Decision
from serin.monitor.config import MonitorPolicy
from serin.monitor.signals import QuestionDrift, Shift, Signals


def decide(signals: Signals, policy: MonitorPolicy) -> Decision:
    """What the signals call for.

    ``alert``: errors or latency (whose cause must be found before quality can be judged), or a lone sign of drift or
    of lower quality.  ``reindex``: passages fit the questions less, more questions go unanswered, or the index is too
    old.  ``retrain``: the questions have drifted for several looks and answers rest less on the passages.

    Args:
        signals: one look at the traffic.
        policy: limits.
    """
    drift = drift_reasons(signals.questions, policy) if _enough(signals, policy) else []
    outcome, reasons = _outcome(signals, policy, drift)
    return Decision(
        outcome=outcome,
        reasons=(*reasons, *_unseen(signals)),
        evidence={"signals": signals.dump(), "drifted": bool(drift)},
        policy_version=policy.version,
    )


def drift_reasons(questions: QuestionDrift | None, policy: MonitorPolicy) -> list[str]:
    """Sentences on how the questions differ from the reference; empty when they do not."""
    if questions is None:
        return []
    reasons = []
    novelty_limit = questions.novelty_limit * policy.topic_tolerance
    if questions.novelty > novelty_limit:
        reasons.append(
            f"Questions on other topics: those of {questions.num_current} sessions are {questions.novelty:.3f} from "
            f"the nearest reference question (cosine distance), above the limit of {novelty_limit:.3f}."
        )
    mix_limit = questions.mix_limit * policy.topic_tolerance
    if questions.mix_distance > mix_limit:
        reasons.append(
            f"Topics come in other shares: the questions are {questions.mix_distance:.3f} from the reference "
            f"(energy coefficient), above the limit of {mix_limit:.3f}."
        )
    if questions.unknown_word_share > policy.max_unknown_word_share:
        reasons.append(
            f"{questions.unknown_word_share:.0%} of the questions' content words occur in no reference question; "
            f"{policy.max_unknown_word_share:.0%} are tolerated."
        )
    if questions.language_shift > policy.max_language_shift:
        reasons.append(
            f"The languages of {questions.language_shift:.0%} of the questions have changed; "
            f"{policy.max_language_shift:.0%} are tolerated."
        )
    return reasons


def _outcome(signals: Signals, policy: MonitorPolicy, drift: list[str]) -> tuple[str, list[str]]:
    if broken := _error_reasons(signals, policy):
        return "alert", broken
    if not _enough(signals, policy):
        return "none", [
            f"The window holds {signals.num_events} requests of {signals.num_sessions} sessions, and "
            f"{policy.min_events} requests of {policy.min_sessions} sessions are needed to judge quality and drift."
        ]
    if slow := _latency_reasons(signals, policy):
        return "alert", slow
    support = _shift_reason("Support score", signals.support, policy, policy.max_support_drop)
    if stale := _knowledge_reasons(signals, policy):
        return "reindex", [*stale, *support, *drift]
    if drift and support and signals.drifted_before + 1 >= policy.drifted_looks:
        return "retrain", [*support, *drift, f"It is look {signals.drifted_before + 1} in a row with drift."]
    if drift or support:
        return "alert", [*support, *drift]
    return "none", _calm(signals, policy)


def _enough(signals: Signals, policy: MonitorPolicy) -> bool:
    return signals.num_events >= policy.min_events and signals.num_sessions >= policy.min_sessions


def _error_reasons(signals: Signals, policy: MonitorPolicy) -> list[str]:
    errors = signals.errors
    failures = round(errors.estimate * errors.count)
    if failures < policy.min_failures or errors.low <= policy.max_error_share:
        return []
    return [
        f"{errors.estimate:.1%} of {errors.count} requests failed (surely above {errors.low:.1%}); "
        f"{policy.max_error_share:.1%} are tolerated."
    ]


def _latency_reasons(signals: Signals, policy: MonitorPolicy) -> list[str]:
    levels = (
        ("a whole answer", signals.p95_latency_ms, policy.max_p95_latency_ms),
        ("the first token", signals.p95_ttft_ms, policy.max_p95_ttft_ms),
    )
    return [
        f"95% of requests get {what} within {value:.0f} ms; the service level is {limit:.0f} ms."
        for what, value, limit in levels
        if value is not None and value > limit
    ]


def _knowledge_reasons(signals: Signals, policy: MonitorPolicy) -> list[str]:
    reasons = _shift_reason("Best passage's similarity", signals.retrieval, policy, policy.max_retrieval_drop)
    reasons += _shift_reason("Share of refusals", signals.refusals, policy, policy.max_refusal_rise, bad=1)
    if signals.index and signals.index.age_days > policy.max_index_age_days:
        reasons.append(
            f"The index is {signals.index.age_days:.0f} days old; {policy.max_index_age_days:.0f} are tolerated."
        )
    expired = signals.index.expired_share if signals.index else None
    if expired is not None and policy.max_expired_share is not None and expired > policy.max_expired_share:
        reasons.append(
            f"{expired:.0%} of the dated documents are past their date; {policy.max_expired_share:.0%} are tolerated."
        )
    return reasons


def _shift_reason(name: str, shift: Shift | None, policy: MonitorPolicy, margin: float, bad: int = -1) -> list[str]:
    """A sentence when a mean has moved in the bad direction, surely and by more than a margin."""
    if shift is None or shift.p_value > policy.alpha or bad * shift.change <= margin:
        return []
    return [
        f"{name} went from {shift.reference:.3f} in the evaluation to {shift.current:.3f} "
        f"(p = {shift.p_value:.4f}, {shift.num_current} sessions); a change of {margin:.2f} is tolerated."
    ]


def _calm(signals: Signals, policy: MonitorPolicy) -> list[str]:
    questions = signals.questions
    novelty = (
        f"{questions.novelty:.3f} (limit {questions.novelty_limit * policy.topic_tolerance:.3f})"
        if questions
        else "not known"
    )
    return [
        f"{signals.num_events} requests of {signals.num_sessions} sessions are within all limits: "
        f"errors {signals.errors.estimate:.1%}, support {_mean(signals.support)}, refusals {_mean(signals.refusals)}, "
        f"novelty of the questions {novelty}."
    ]


def _mean(shift: Shift | None) -> str:
    return f"{shift.current:.3f}" if shift else "not known"


def _unseen(signals: Signals) -> list[str]:
    return [f"{name.capitalize()} could not be judged: {reason}" for name, reason in sorted(signals.missing.items())]
