import math
import re

import numpy as np
import pytest
from pydantic import ValidationError

from serin.core.config import Section
from serin.core.statistics import Interval, bootstrap_mean
from serin.evaluate.config import EvaluateConfig, GatePolicy, Rule
from serin.evaluate.gate import decide
from serin.evaluate.results import Comparison, Results

SUPERIOR = Rule(metric="token_f1", kind="superiority", against="baseline")
NOT_WORSE = Rule(metric="token_f1", kind="non_inferiority", against="champion", margin=0.02)
FLOOR = Rule(metric="recall_at_5", kind="floor", limit=0.5, min_items=10, optional=True)


def gains(improvement, count):
    """Values whose mean is the estimate and whose spread fits the interval."""
    estimate, low, high = improvement
    if not all(map(math.isfinite, improvement)):
        return (0.1,) * count
    half = (high - low) / 2 / 1.96 * math.sqrt(count)
    return tuple(estimate + (half if i % 2 else -half) for i in range(count))


def seen(improvement=(0.1, 0.05, 0.15), count=100, against="baseline", not_applicable=None, **values):
    comparison = Comparison(improvement=Interval(*improvement, count), gains=gains(improvement, count))
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
    assert outcome(seen((0.1, low, 0.2 - low)), rule) == expected


@pytest.mark.parametrize(("low", "expected"), [(-0.019, "pass"), (0.0, "pass"), (-0.02, "fail"), (-0.3, "fail")])
def test_non_inferiority_allows_a_loss_within_the_margin(low, expected):
    assert outcome(seen((0.0, low, -low), against="champion"), NOT_WORSE) == expected


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


def differing(mean, count, seed=0, deviation=0.3):
    values = np.random.default_rng(seed).normal(mean, deviation, count)
    values += mean - values.mean()
    interval = bootstrap_mean(values, resamples=1_000)
    return Comparison(improvement=interval, gains=tuple(values.tolist()))


def judged_by(policy, comparisons=None, slices=None, **more):
    results = Results(
        release_ids={"candidate": "c"},
        values={"candidate": {}},
        comparisons={"champion": comparisons or {}},
        slices={"champion": slices or {}},
        **more,
    )
    return decide(results, policy)


def test_a_better_metric_among_many_is_held_to_holms_correction():
    alone = Rule(metric="a", kind="superiority", against="champion")
    barely = {"a": differing(0.06, 100)}  # p about 0.02 one-sided
    assert judged_by(GatePolicy(rules=(alone,)), barely).outcome == "pass"
    others = [Rule(metric=name, kind="superiority", against="champion") for name in "bcd"]
    crowd = {**barely, **{name: differing(0.2, 100) for name in "bcd"}}
    assert judged_by(GatePolicy(rules=(alone, *others)), crowd).outcome == "pass"  # the least of them is tested last
    weak = {**barely, **{name: differing(0.06, 100, seed=1) for name in "bcd"}}
    decision = judged_by(GatePolicy(rules=(alone, *others)), weak)
    assert decision.outcome == "fail"
    first = decision.evidence["rules"][0]
    assert first["p_value"] < 0.025 < first["p_adjusted"]


def test_an_open_question_says_how_many_items_would_answer_it():
    rule = Rule(metric="a", kind="non_inferiority", against="champion", margin=0.02)
    decision = judged_by(GatePolicy(rules=(rule,)), {"a": differing(0.0, 100)})
    assert decision.outcome == "fail"
    # (1.96 + 0.84)^2 * 0.3^2 / 0.02^2
    (needed,) = re.findall(r"about (\d+) would tell", decision.reasons[0])
    assert int(needed) == pytest.approx(1_766, rel=0.1)
    assert decision.evidence["rules"][0]["detectable_difference"] == pytest.approx(0.084, abs=0.01)


def test_every_slice_with_enough_items_is_judged_and_the_harmed_one_is_named():
    rule = Rule(metric="a", kind="no_regression", against="champion", slices=("language:*",), min_items=30)
    slices = {
        "language:en": {"a": differing(0.1, 200)},
        "language:fr": {"a": differing(-0.3, 60)},
        "language:de": {"a": differing(-0.9, 12)},
        "channel:web": {"a": differing(-0.9, 90)},
    }
    decision = judged_by(GatePolicy(rules=(rule,)), slices=slices)
    assert decision.outcome == "fail"
    assert "in language:fr is surely worse" in decision.reasons[0]
    assert [one["slice"] for one in decision.evidence["rules"][0]["slices_judged"]] == ["language:en", "language:fr"]
    assert judged_by(GatePolicy(rules=(rule,)), slices={"language:en": slices["language:en"]}).outcome == "pass"


def test_a_slice_that_is_named_must_be_there_with_enough_items():
    rule = Rule(metric="a", kind="no_regression", against="champion", slices=("language:de",), min_items=30)
    few = judged_by(GatePolicy(rules=(rule,)), slices={"language:de": {"a": differing(0.5, 12)}})
    assert few.outcome == "fail"
    assert "add at least 18 more" in few.reasons[0]
    gone = judged_by(GatePolicy(rules=(rule,)), slices={})
    assert gone.outcome == "fail"
    assert "in language:de against the champion is missing" in gone.reasons[0]


def test_no_regression_passes_what_non_inferiority_leaves_open():
    noisy = {"a": differing(-0.01, 60)}
    rules = {kind: Rule(metric="a", kind=kind, against="champion", margin=0.02) for kind in NOT_PROVEN}
    outcomes = {kind: judged_by(GatePolicy(rules=(rule,)), noisy).outcome for kind, rule in rules.items()}
    assert outcomes == NOT_PROVEN


NOT_PROVEN = {"non_inferiority": "fail", "no_regression": "pass"}
HOLDS = GatePolicy(rules=(Rule(metric="a", kind="superiority", against="champion"),))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"contaminated": ("x1", "x2")}, "2 items were seen in training (x1, x2)"),
        ({"broken_suites": {"faq": "the candidate has no value for 1 items (a)."}}, "Suite 'faq' cannot be compared"),
    ],
)
def test_items_that_measure_nothing_fail_the_gate_whatever_the_numbers(more, words):
    clearly = {"a": differing(0.5, 100)}
    assert judged_by(HOLDS, clearly).outcome == "pass"
    decision = judged_by(HOLDS, clearly, **more)
    assert decision.outcome == "fail"
    assert words in decision.reasons[0]


def test_a_pinned_suite_must_be_there_unchanged():
    pinned = HOLDS.model_copy(update={"suites": {"faq": "abcd"}})
    clearly = {"a": differing(0.5, 100)}
    assert judged_by(pinned, clearly, suites={"faq": "abcd" + "0" * 60}).outcome == "pass"
    assert "has changed" in judged_by(pinned, clearly, suites={"faq": "0" * 64}).reasons[0]
    assert "is missing" in judged_by(pinned, clearly).reasons[0]


def test_a_limit_can_ask_for_the_whole_interval():
    values = {"candidate": {"block_rate": Interval(0.95, 0.88, 0.98, 100)}}
    results = Results(release_ids={"candidate": "c"}, values=values)
    floor = Rule(metric="block_rate", kind="floor", limit=0.9)
    assert decide(results, GatePolicy(rules=(floor,))).outcome == "pass"
    surely = decide(results, GatePolicy(rules=(floor.model_copy(update={"surely": True}),)))
    assert surely.outcome == "fail"
    assert re.search(r"about 19[67] would tell", surely.reasons[0])  # 100 * (0.07 / 0.05)^2


def test_a_rule_on_a_suite_that_is_not_there_says_why_and_is_passed_over_only_where_it_may_be():
    rule = Rule(metric="lm.arc_easy.acc", kind="floor", limit=0.2)
    results = Results(
        release_ids={"candidate": "c"},
        values={"candidate": {"a": Interval(1.0, 1.0, 1.0, 100)}},
        not_applicable={"lm": "lm-evaluation-harness is not installed."},
    )
    other = Rule(metric="a", kind="floor", limit=0.5)
    failed = decide(results, GatePolicy(rules=(rule, other)))
    assert failed.outcome == "fail"
    assert "is missing from the evaluation, and a missing metric fails. lm-evaluation-harness" in failed.reasons[0]
    passed = decide(results, GatePolicy(rules=(rule.model_copy(update={"optional": True}), other)))
    assert passed.outcome == "pass"


def test_a_comparison_without_values_by_item_is_not_believed():
    bare = {"a": Comparison(improvement=Interval(0.5, 0.4, 0.6, 100))}
    decision = judged_by(HOLDS, bare)
    assert decision.outcome == "fail"
    assert "no values by item" in decision.reasons[0]
