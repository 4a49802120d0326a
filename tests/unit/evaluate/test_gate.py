import math

import pytest
from pydantic import ValidationError

from serin.core.config import Section
from serin.core.statistics import Interval
from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.gate import decide
from serin.evaluate.results import Comparison, Results

SUPERIOR = Rule(metric="token_f1", kind="superiority", against="baseline")
NOT_WORSE = Rule(metric="token_f1", kind="non_inferiority", against="champion", margin=0.02)
FLOOR = Rule(metric="recall_at_5", kind="floor", limit=0.5, min_items=10, optional=True)


def seen(improvement=(0.1, 0.05, 0.15), count=100, against="baseline", not_applicable=None, **values):
    comparison = Comparison(improvement=Interval(*improvement, count))
    return Results(
        release_ids={"candidate": "c"},
        values={"candidate": {name: Interval(value, value, value, count) for name, value in values.items()}},
        comparisons={against: {"token_f1": comparison}},
        not_applicable=not_applicable or {},
    )


def outcome(results, *rules):
    return decide(results, GatePolicy(rules=rules)).outcome


@pytest.mark.parametrize(
    ("low", "margin", "expected"),
    [(0.001, 0.0, "pass"), (0.0, 0.0, "fail"), (-0.01, 0.0, "fail"), (0.05, 0.05, "fail"), (0.06, 0.05, "pass")],
)
def test_superiority_needs_the_lower_end_above_the_margin(low, margin, expected):
    rule = SUPERIOR.model_copy(update={"margin": margin})
    assert outcome(seen((0.1, low, 0.2)), rule) == expected


@pytest.mark.parametrize(("low", "expected"), [(-0.019, "pass"), (0.0, "pass"), (-0.02, "fail"), (-0.3, "fail")])
def test_non_inferiority_allows_a_loss_within_the_margin(low, expected):
    assert outcome(seen((0.0, low, 0.2), against="champion"), NOT_WORSE) == expected


def test_floors_and_ceilings_bound_the_candidates_own_value():
    assert outcome(seen(recall_at_5=0.5), FLOOR) == "pass"
    assert outcome(seen(recall_at_5=0.49), FLOOR) == "fail"
    ceiling = Rule(metric="empty_share", kind="ceiling", limit=0.1)
    assert outcome(seen(empty_share=0.1), ceiling) == "pass"
    assert outcome(seen(empty_share=0.2), ceiling) == "fail"


def test_a_missing_metric_fails_and_is_named():
    decision = decide(seen(), GatePolicy(rules=(FLOOR, SUPERIOR)))
    assert decision.outcome == "fail"
    assert decision.reasons[0].startswith("Golden recall in the first 5 is missing")


def test_a_missing_comparison_fails_even_when_other_rules_hold():
    assert outcome(seen(against="baseline"), SUPERIOR, NOT_WORSE) == "fail"


def test_too_few_items_fail_and_say_how_many_are_needed():
    decision = decide(seen(count=12), GatePolicy(rules=(SUPERIOR,)))
    assert decision.outcome == "fail"
    assert "rests on 12 independent items and the rule needs 30: add at least 18 more" in decision.reasons[0]


@pytest.mark.parametrize("values", [(math.nan, 0.1, 0.2), (0.1, math.nan, 0.2), (0.1, 0.05, math.inf)])
def test_a_value_that_is_not_a_number_fails(values):
    decision = decide(seen(values), GatePolicy(rules=(SUPERIOR,)))
    assert decision.outcome == "fail"
    assert "not a number" in decision.reasons[0]
    assert decision.evidence["rules"][0]["observed"] is not None


def test_comparing_with_the_champion_is_passed_over_when_it_is_the_candidate():
    results = seen(not_applicable={"champion": "the candidate is the champion already."})
    decision = decide(results, GatePolicy(rules=(SUPERIOR, NOT_WORSE)))
    assert decision.outcome == "pass"
    assert decision.reasons[-1].endswith("against the champion: the candidate is the champion already.")


def test_an_optional_rule_is_passed_over_only_for_a_declared_reason():
    declared = seen(not_applicable={"recall_at_5": "the dataset holds no golden questions."})
    assert outcome(declared, SUPERIOR, FLOOR) == "pass"
    assert outcome(seen(), SUPERIOR, FLOOR) == "fail"
    assert outcome(declared, SUPERIOR, FLOOR.model_copy(update={"optional": False})) == "fail"


def test_a_gate_that_judges_nothing_does_not_pass():
    decision = decide(seen(not_applicable={"champion": "there is none."}), GatePolicy(rules=(NOT_WORSE,)))
    assert decision.outcome == "fail"
    assert "judges nothing" in decision.reasons[0]


def test_reasons_are_sentences_with_failures_first_and_evidence_keeps_the_rules_order():
    policy = GatePolicy(rules=(SUPERIOR, FLOOR))
    decision = decide(seen(recall_at_5=0.2), policy)
    assert decision.reasons[0].startswith("Golden recall")
    assert all(reason.endswith(".") for reason in decision.reasons)
    assert [rule["outcome"] for rule in decision.evidence["rules"]] == ["passed", "failed"]
    assert decision.policy_version == policy.version
    assert policy.version != GatePolicy().version


@pytest.mark.parametrize(
    "values",
    [
        {"metric": "token_f1", "kind": "superiority"},
        {"metric": "token_f1", "kind": "floor"},
        {"metric": "token_f1", "kind": "floor", "limit": 0.5, "against": "baseline"},
        {"metric": "token_f1", "kind": "superiority", "against": "baseline", "limit": 0.5},
        {"metric": "token_f1", "kind": "superiority", "against": "baseline", "margin": -1},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValidationError):
        Rule.model_validate(values)


def test_the_default_gate_asks_for_a_better_model_than_the_base_and_no_worse_than_the_champion():
    kinds = [(rule.metric, rule.kind, rule.against) for rule in GatePolicy().rules]
    assert kinds == [
        ("token_f1", "superiority", "baseline"),
        ("token_f1", "non_inferiority", "champion"),
        ("recall_at_5", "floor", None),
    ]


def test_floats_that_kfp_makes_of_ints_are_restored():
    config: Section = EvaluateConfig.load({"num_conversations": 40.0, "gate": {"rules": [SUPERIOR.dump()]}})
    assert config.dump()["num_conversations"] == 40
