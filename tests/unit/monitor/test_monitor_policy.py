import pytest

from serin.core.statistics import wilson_interval
from serin.monitor.config import MonitorPolicy
from serin.monitor.policy import decide, drift_reasons
from serin.monitor.signals import IndexState, QuestionDrift, Shift, Signals

POLICY = MonitorPolicy()


def questions(novelty=0.2, mix=0.01, unknown=0.02, language=0.01):
    return QuestionDrift(
        novelty=novelty, novelty_limit=0.3, mix_distance=mix, mix_limit=0.02,
        unknown_word_share=unknown, language_shift=language,
        median_words=(8, 8), num_reference=300, num_current=60,
    )  # fmt: skip


def shift(before, now, p_value=0.001):
    return Shift(reference=before, current=now, p_value=p_value, num_reference=60, num_current=60)


def seen(events=200, sessions=80, failures=0, **fields):
    values = {
        "num_events": events,
        "num_sessions": sessions,
        "errors": wilson_interval(failures, events),
        "p95_latency_ms": 300.0,
        "p95_ttft_ms": 60.0,
        "support": shift(0.8, 0.79, 0.4),
        "refusals": shift(0.1, 0.1, 0.5),
        "retrieval": shift(0.7, 0.7, 0.5),
        "questions": questions(),
        "index": IndexState(age_days=1),
    }
    return Signals(**{**values, **fields})


DRIFTED, UNSUPPORTED = questions(novelty=0.6), shift(0.8, 0.5)


@pytest.mark.parametrize(
    ("signals", "outcome", "reason"),
    [
        (seen(), "none", "within all limits"),
        (seen(failures=20), "alert", "10.0% of 200 requests failed"),
        (seen(p95_latency_ms=20_000.0), "alert", "95% of requests get a whole answer within 20000 ms"),
        (seen(p95_ttft_ms=20_000.0), "alert", "the first token within 20000 ms"),
        (seen(support=UNSUPPORTED), "alert", "Support score went from 0.800 in the evaluation to 0.500"),
        (seen(questions=DRIFTED), "alert", "0.600 from the nearest reference question"),
        (seen(questions=questions(mix=0.05)), "alert", "Topics come in other shares"),
        (seen(questions=questions(unknown=0.6)), "alert", "60% of the questions' content words"),
        (seen(questions=questions(language=0.5)), "alert", "languages of 50%"),
        (seen(retrieval=shift(0.7, 0.4)), "reindex", "Best passage's similarity went from 0.700"),
        (seen(refusals=shift(0.1, 0.4)), "reindex", "Share of refusals went from 0.100"),
        (seen(index=IndexState(age_days=45)), "reindex", "The index is 45 days old"),
        (seen(questions=DRIFTED, support=UNSUPPORTED, drifted_before=1), "retrain", "Support score went"),
    ],
)
def test_each_signal_leads_to_its_action(signals, outcome, reason):
    decision = decide(signals, POLICY)
    assert decision.outcome == outcome
    assert reason in decision.reasons[0]


def test_drift_with_lower_quality_retrains_only_once_it_has_lasted():
    first = decide(seen(questions=DRIFTED, support=UNSUPPORTED), POLICY)
    second = decide(seen(questions=DRIFTED, support=UNSUPPORTED, drifted_before=1), POLICY)
    assert (first.outcome, second.outcome) == ("alert", "retrain")
    assert any("look 2 in a row" in reason for reason in second.reasons)


def test_lasting_drift_without_lower_quality_does_not_retrain():
    assert decide(seen(questions=DRIFTED, drifted_before=5), POLICY).outcome == "alert"


def test_errors_come_before_everything_because_they_spoil_what_else_is_seen():
    signals = seen(failures=50, retrieval=shift(0.7, 0.2), questions=DRIFTED, support=UNSUPPORTED, drifted_before=3)
    assert decide(signals, POLICY).outcome == "alert"


def test_missing_knowledge_comes_before_retraining():
    signals = seen(retrieval=shift(0.7, 0.2), questions=DRIFTED, support=UNSUPPORTED, drifted_before=3)
    decision = decide(signals, POLICY)
    assert decision.outcome == "reindex"
    assert len(decision.reasons) == 3


@pytest.mark.parametrize("counts", [{"events": 29}, {"sessions": 19}, {"events": 0, "sessions": 0}])
def test_too_little_traffic_decides_nothing_and_says_what_is_needed(counts):
    decision = decide(seen(**counts, retrieval=shift(0.7, 0.1), questions=DRIFTED), POLICY)
    assert decision.outcome == "none"
    assert "30 requests of 20 sessions are needed" in decision.reasons[0]
    assert decision.evidence["drifted"] is False


def test_an_outage_is_seen_even_in_little_traffic():
    assert decide(seen(events=8, sessions=8, failures=8), POLICY).outcome == "alert"
    assert decide(seen(events=8, sessions=8, failures=1), POLICY).outcome == "none"


@pytest.mark.parametrize(
    "change",
    [
        {"support": shift(0.8, 0.72)},  # sure, but small
        {"support": shift(0.8, 0.5, p_value=0.2)},  # large, but not sure
        {"support": shift(0.5, 0.9)},  # better
        {"refusals": shift(0.4, 0.1)},
        {"retrieval": shift(0.4, 0.7)},
        {"failures": 4},  # 2%, as tolerated
        {"questions": questions(novelty=0.31, mix=0.021)},  # within the tolerance on top of the limit
        {"index": IndexState(age_days=2, expired_share=1.0)},  # only reported by default
    ],
)
def test_changes_that_are_small_unsure_or_for_the_better_are_let_pass(change):
    assert decide(seen(**change), POLICY).outcome == "none"


def test_expired_documents_ask_for_a_new_index_where_the_policy_says_so():
    signals = seen(index=IndexState(age_days=2, expired_share=0.6))
    assert decide(signals, POLICY.model_copy(update={"max_expired_share": 0.5})).outcome == "reindex"


def test_what_could_not_be_judged_is_said():
    signals = seen(support=None, questions=None, missing={"support": "there is no evaluation."})
    decision = decide(signals, POLICY)
    assert decision.outcome == "none"
    assert decision.reasons[-1] == "Support could not be judged: there is no evaluation."
    assert drift_reasons(None, POLICY) == []


def test_the_decision_carries_its_signals_and_policy():
    decision = decide(seen(questions=DRIFTED), POLICY)
    assert decision.evidence["signals"]["questions"]["novelty"] == 0.6
    assert decision.evidence["drifted"] is True
    assert decision.policy_version == POLICY.version
    assert Signals.model_validate(decision.evidence["signals"]) == seen(questions=DRIFTED)
