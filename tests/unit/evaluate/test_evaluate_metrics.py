import math
import statistics

import pytest
from scipy import stats

from serin.core.generation import Generator
from serin.core.paired import sign_flip_test
from serin.core.query import Query
from serin.core.records import Conversation, Message
from serin.core.serving import search_query
from serin.evaluate.answers import reference_losses
from serin.evaluate.config import EvaluateConfig
from serin.evaluate.metrics import compare, item_values, reference_of, summarise
from serin.evaluate.results import BY_NAME, Answer, GoldenResult, definition
from serin.evaluate.retrieval import ndcg, recall, reciprocal_rank
from serin.evaluate.sampling import choose

CONFIG = EvaluateConfig(resamples=1000)


def an_answer(**fields):
    values = {
        "id": "a", "group": "", "language": "en", "source": "given", "question": "q",
        "reference": "It costs 12 euros.", "answer": "It costs 12 euros.", "finish_reason": "stop",
    }  # fmt: skip
    return Answer(**{**values, **fields})


def a_result(wanted, found):
    return GoldenResult(id="g", question="q", language="en", document_ids=tuple(wanted), found_ids=tuple(found))


def a_conversation(name, group):
    messages = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    return Conversation(id=name, messages=messages, group=group)


def test_every_metric_of_an_answer_has_a_name_in_the_report():
    full = an_answer(passages=("It costs 12 euros.",), answer_bits=10.0, answer_loss=0.5)
    retrieved = an_answer(source="retrieved", passages=("x",))
    values = item_values([full, retrieved], [a_result(["d"], ["d"])])
    assert set(values) == set(BY_NAME) - {"human_preference", "judge_preference"}  # which are of whole releases
    assert values["bits_per_byte"]["a"] == pytest.approx(10 / 18)


def test_metrics_that_do_not_apply_to_an_item_are_absent():
    values = item_values([an_answer(reference="No figures here.")], [])
    assert "number_accuracy" not in values
    assert "support_score" not in values
    assert "answer_loss" not in values


@pytest.mark.parametrize(
    ("answer", "metric", "expected"),
    [
        ({"answer": "12.00 EUR"}, "number_accuracy", 1.0),
        ({"answer": "13 euros"}, "number_accuracy", 0.0),
        ({"reference": "12 or 14", "answer": "14"}, "number_accuracy", 0.5),
        ({"answer": ""}, "empty_share", 1.0),
        ({"finish_reason": "length"}, "truncated_share", 1.0),
        ({"answer": "I cannot find that."}, "refusal_accuracy", 0.0),
        ({"answer": "I don't know.", "reference": "I cannot find that."}, "refusal_accuracy", 1.0),
        ({"answer": "it costs 12,00 euros"}, "exact_match", 1.0),
    ],
)
def test_values_of_single_answers(answer, metric, expected):
    assert item_values([an_answer(**answer)], [])[metric]["a"] == expected


def test_live_retrieval_has_metrics_of_its_own():
    values = item_values([an_answer(source="retrieved", passages=("It costs 12 euros.",))], [])
    assert set(values) == {"retrieved_token_f1", "retrieved_support_score"}


def test_conversations_of_one_group_count_as_one():
    values = {f"i{n}": float(n < 8) for n in range(10)}
    groups = {f"i{n}": "same" if n < 8 else f"g{n}" for n in range(10)}
    interval = summarise(values, groups, CONFIG)
    assert interval.count == 3
    assert interval.estimate == pytest.approx(1 / 3)


def test_a_comparison_says_what_so_many_items_could_show_and_how_likely_chance_is():
    candidate, other = {str(n): n % 3 / 2 for n in range(40)}, {str(n): n % 2 / 2 for n in range(40)}
    found = compare("token_f1", candidate, other, {}, CONFIG)
    deviation = statistics.stdev(found.gains)
    assert found.detectable_difference == pytest.approx((1.96 + 0.8416) * deviation / math.sqrt(40), rel=1e-3)
    assert found.p_value == pytest.approx(stats.ttest_1samp(found.gains, 0).pvalue, abs=0.005)
    assert found.p_value == sign_flip_test([-gain for gain in found.gains], alternative="two-sided")


@pytest.mark.parametrize(
    ("name", "label", "higher"),
    [
        ("token_f1", "Token F1", True),
        ("faq.token_f1", "Token F1 (faq)", True),
        ("docs.recall_at_7", "Recall in the first 7 (docs)", True),
        ("speed.ttft_p95_s", "Time to the first token, p95 (speed)", False),
        ("faq.token_f1.gap.language", "Token F1 (faq): gap by language", False),
        ("lm.arc_easy.acc_norm", "arc_easy.acc_norm (lm)", True),
        ("lm.wikitext.word_perplexity", "wikitext.word_perplexity (lm)", False),
    ],
)
def test_every_name_of_a_metric_has_a_definition(name, label, higher):
    found = definition(name)
    assert (found.name, found.label, found.higher_is_better) == (name, label, higher)


def test_one_group_has_no_interval():
    assert summarise({"a": 1.0, "b": 0.0}, {"a": "g", "b": "g"}, CONFIG) is None
    assert summarise({}, {}, CONFIG) is None


def test_a_comparison_pairs_items_and_turns_metrics_where_lower_is_better():
    candidate, other = {"a": 0.1, "b": 0.3, "c": 0.0}, {"a": 0.2, "b": 0.3, "d": 1.0}
    better = compare("bits_per_byte", candidate, other, {}, CONFIG)
    assert better.improvement.estimate == pytest.approx(0.05)
    assert (better.won, better.lost, better.tied, better.improvement.count) == (1, 0, 1, 2)
    assert compare("token_f1", candidate, other, {}, CONFIG).improvement.estimate == pytest.approx(-0.05)


def test_golden_measures_by_hand():
    result = a_result(["a", "b"], ["x", "a", "a", "y", "z", "b"])
    assert recall(result, 5) == 0.5
    assert recall(result, 10) == 1.0
    assert reciprocal_rank(result) == 0.5
    gain = 1 / math.log2(3) + 1 / math.log2(6)  # a is second, and b fifth once a counts only once
    assert ndcg(result, 10) == pytest.approx(gain / (1 + 1 / math.log2(3)))
    assert (recall(a_result(["a"], []), 5), reciprocal_rank(a_result(["a"], []))) == (0.0, 0.0)


def test_the_choice_takes_every_group_before_any_twice_and_does_not_depend_on_order():
    pool = [a_conversation(f"c{i}", "big" if i < 20 else f"g{i}") for i in range(25)]
    chosen = choose(pool, 6, seed=1)
    assert len({one.group for one in chosen}) == 6
    assert [one.id for one in choose(pool[::-1], 6, seed=1)] == [one.id for one in chosen]
    assert [one.id for one in choose(pool, 3, seed=1)] == [one.id for one in chosen][:3]
    assert [one.id for one in choose(pool, 6, seed=2)] != [one.id for one in chosen]
    assert len(choose(pool, 99, seed=1)) == 25


def test_the_search_query_is_made_of_the_last_user_turns():
    roles = ("user", "assistant", "user", "assistant", "user")
    turns = [Message(role=role, content=str(number)) for number, role in enumerate(roles)]
    assert search_query(turns, 1) == Query("4")
    assert search_query(turns, 2) == Query("4", ("2",))
    assert search_query(turns, 9) == Query("4", ("2", "0"))


def test_the_reference_for_monitoring_prefers_live_retrieval():
    answers = [an_answer(), an_answer(id="b", source="retrieved", answer="I don't know.", retrieval_scores=(0.4, 0.6))]
    reference = reference_of("r", answers)
    assert (reference.source, reference.refused, reference.top_scores) == ("retrieved", (True,), (0.6,))
    assert reference.support_scores == ()


def test_the_loss_of_a_reference_does_not_depend_on_its_batch_and_agrees_with_the_model(tiny_model):
    import torch

    generator = Generator.load(tiny_model, num_threads=1)
    prompts = [[{"role": "user", "content": text}] for text in ("Where?", "Where is my order, please?")]
    references = ["It arrives in two days.", "Here."]
    together = reference_losses(generator, prompts, references)
    alone = [reference_losses(generator, [prompts[i]], [references[i]])[0] for i in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    opening = generator.encode(prompts[0])
    whole = generator.tokenizer.apply_chat_template(
        [*prompts[0], {"role": "assistant", "content": references[0]}], tokenize=True, return_dict=False
    )
    labels = torch.tensor([[-100] * len(opening) + whole[len(opening) :]])
    with torch.inference_mode():
        expected = generator.model(input_ids=torch.tensor([whole]), labels=labels).loss
    assert together[0][0] / together[0][1] == pytest.approx(float(expected), rel=1e-4)


def test_a_reference_beyond_the_models_context_has_no_loss(tiny_model):
    generator = Generator.load(tiny_model, num_threads=1)
    losses = reference_losses(generator, [[{"role": "user", "content": "a"}]], ["Ça coûte 12,50 €. " * 200])
    assert losses == [None]
