import gzip
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from serin.core.errors import InputError
from serin.core.grounding import FLAGS, ground
from serin.core.grounding.claims import claims_of
from serin.core.grounding.model import WEIGHTS, GroundingModel, shipped_model
from serin.core.grounding.score import Grounding, ground_afresh
from serin.core.grounding.training.changes import KINDS, change
from serin.core.grounding.words import passage_of, read

KETTLE = (
    "The Alpine kettle holds two litres and boils in four minutes. It costs 89.00 EUR. Its lid is not dishwasher safe. "
    "Orders above 50 EUR are delivered free of charge within three working days by Maria Keller's team in Lyon."
)
OTHER = "Gift cards are valid for two years from the day on which they were bought and cannot be paid out."
CONTEXT = [OTHER, KETTLE]
DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def flags(answer: str) -> set[str]:
    return set(ground(answer, CONTEXT).flags)


def score(answer: str) -> float:
    return ground(answer, CONTEXT).support_score


def test_an_answer_of_the_passages_words_is_supported_and_has_no_flag():
    found = ground("The Alpine kettle holds two litres and costs 89 EUR.", CONTEXT)
    assert found.support_score > 0.7
    assert found.flags == ()


def test_a_number_is_compared_by_value_however_it_is_written():
    assert "number_mismatch" not in flags("The Alpine kettle holds 2 litres and costs 89,00 €.")
    assert "number_mismatch" not in flags("Orders above fifty EUR are delivered free of charge.")


def test_a_changed_price_is_a_price_and_a_number_mismatch():
    assert {"number_mismatch", "price_mismatch"} <= flags("The Alpine kettle holds two litres and costs 98 EUR.")
    assert score("The Alpine kettle holds two litres and costs 98 EUR.") < 0.6


def test_a_changed_number_that_is_no_price_is_no_price_mismatch():
    found = flags("The Alpine kettle holds two litres and boils in 14 minutes.")
    assert "number_mismatch" in found
    assert "price_mismatch" not in found


@pytest.mark.parametrize(
    ("true", "false"),
    [
        ("The Alpine kettle holds two litres.", "The Alpine kettle holds five litres."),
        ("Its lid is not dishwasher safe.", "Its lid is dishwasher safe."),
        ("Orders above 50 EUR are delivered free of charge.", "Orders above 50 EUR are not delivered free of charge."),
        ("The kettle boils in four minutes.", "The kettle plays music from the radio every morning."),
        ("Orders are delivered by Maria Keller's team.", "Orders are delivered by Oskar Brandt's team."),
    ],
)
def test_a_false_answer_scores_less_than_the_true_one(true: str, false: str):
    assert score(false) < score(true) - 0.1


@pytest.mark.parametrize(
    ("true", "false"),
    [
        ("Visit your local Department of Social Services.", "Visit your local Office of Social Services."),
        ("The monastery lies in the Khumbu region of Nepal.", "The monastery lies in the Nepal region of Nepal."),
        ("You can no longer collect vouchers.", "You can longer collect vouchers."),
        ("The desk opens from 8 to 17 on Mondays.", "The desk opens from 8 to 12 on Mondays."),
    ],
)
def test_a_fact_of_the_same_passage_at_the_wrong_place_scores_less(true: str, false: str):
    context = [
        "Visit your local Department of Social Services on Main Street. The Office closes at noon. The monastery lies "
        "in the Khumbu region of Nepal. You can no longer collect vouchers. The desk opens from 8 to 17 on Mondays and "
        "from 9 to 12 on Fridays."
    ]
    assert ground(false, context).support_score < ground(true, context).support_score - 0.05


def test_an_added_negation_is_flagged():
    assert "negation_mismatch" in flags("Orders above 50 EUR are not delivered free of charge within three days.")


def test_a_negation_of_the_sentence_before_is_not_one_that_the_answer_lacks():
    assert not flags("Orders above 50 EUR are delivered free of charge within three working days.")
    assert "negation_mismatch" in flags("Its lid is dishwasher safe.")


def test_an_answer_of_other_things_is_unsupported():
    found = ground("You can grow tomatoes on a balcony if they get enough sun and water every day.", CONTEXT)
    assert found.support_score < 0.5
    assert "unsupported" in found.flags


def test_the_edges_are_defined():
    assert ground("", CONTEXT).support_score == 0.0
    assert ground("The kettle boils.", []).flags == ("unsupported",)
    assert ground("Yes, sure!", CONTEXT).support_score == 1.0
    assert ground("?!", CONTEXT).support_score == 0.0
    assert ground("日本語の答え", ["日本語の文書"]).support_score >= 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, I don't have that information.",
        "Sorry, we are unable to help you with that request.",
        "Unfortunately, I could not find details on the lid.",
        "Yes, I don't know much about kettles. I'm not sure whether it is safe.",
        "Hello! Which of the kettles are you referring to?",
        "Can you be more specific about which kettle you are looking for?",
        "Je suis désolé, mais je n'ai pas d'informations sur ce point.",
    ],
)
def test_an_answer_that_only_says_what_its_speaker_does_not_know_claims_nothing(answer: str):
    assert ground(answer, CONTEXT) == Grounding(1.0)


def test_beside_a_lack_of_information_the_rest_is_judged():
    lack = "I do not have specific information about its colour, but "
    assert score(lack + "the Alpine kettle holds two litres.") > 0.7
    assert "number_mismatch" in flags(lack + "the Alpine kettle holds nine litres.")
    assert claims_of(lack + "it is red.", [passage_of(KETTLE)]).strip() == ", but it is red."


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know, the kettle costs 98 EUR.",
        "I can't tell you how happy I am that the kettle costs 98 EUR.",
        "We cannot deliver orders to Lyon.",
        "I do not have no information that the kettle is red.",
        "I'm not sure why Oskar Brandt sells green kettles in Graz.",
        "Did you know that tomatoes grow on a balcony in Graz?",
        "Do you mean that the kettle costs 98 EUR?",
    ],
)
def test_a_claim_beside_or_in_the_form_of_not_knowing_is_judged(answer: str):
    assert "unsupported" in flags(answer)


def test_flags_come_in_their_order_and_scores_repeat():
    found = ground("Oskar Brandt sells 17 kettles, never for less than 98 EUR in Graz.", CONTEXT)
    assert list(found.flags) == [flag for flag in FLAGS if flag in found.flags]
    assert ground("Oskar Brandt sells 17 kettles, never for less than 98 EUR in Graz.", CONTEXT) == found


def test_french_answers_are_read_too():
    context = ["La bouilloire coûte 89,00 € et ne passe pas au lave-vaisselle. La livraison prend trois jours."]
    assert ground("La bouilloire coûte 89 €.", context).support_score > 0.5
    assert "number_mismatch" in ground("La bouilloire coûte 79 €.", context).flags


def test_words_that_ran_together_and_units_are_read_apart():
    assert [word.stem for word in read("PO BOX 826831Sacramento 10GB")][-4:] == ["826831", "sacramento", "10", "gb"]
    assert [word.stem for word in read("1. First\n2) Second")] == [word.stem for word in read("First\nSecond")]


def test_a_very_long_text_takes_bounded_time():
    started = time.thread_time()
    ground("kettle 89 not Lyon " * 5_000, ["kettle 89 not Lyon " * 50_000])
    assert time.thread_time() - started < 8


def test_an_answer_of_100_words_takes_a_few_milliseconds_with_five_passages():
    answer = " ".join((KETTLE + " " + OTHER).split() * 2)[:600]
    context = [f"{KETTLE} {OTHER} {KETTLE} Version {number}." for number in range(5)]
    ground(answer, context)
    taken = []
    for _ in range(7):
        started = time.thread_time()
        ground_afresh(answer, context)
        taken.append(time.thread_time() - started)
    assert statistics.median(taken) < 0.02


def test_weights_of_other_features_are_refused(tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    save_file(load_file(WEIGHTS), tmp_path / "old.safetensors", metadata={"model": "{}"})
    with pytest.raises(InputError, match="other features"):
        GroundingModel.load(tmp_path / "old.safetensors")


def test_a_saved_model_is_the_same_when_loaded(tmp_path: Path):
    model = shipped_model()
    model.save(tmp_path / "again.safetensors", {})
    again = GroundingModel.load(tmp_path / "again.safetensors")
    assert again.thresholds == model.thresholds
    assert again.blend == model.blend
    assert all((again.sites[kind].weights == model.sites[kind].weights).all() for kind in KINDS)


def test_a_margin_in_training_is_the_one_of_the_shipped_model():
    torch = pytest.importorskip("torch")
    from serin.core.grounding.training.examples import _example
    from serin.core.grounding.training.places import _answers, _margins, _values

    model = shipped_model()
    texts = [
        "The kettle holds five litres.",
        "Its lid is dishwasher safe. It does not cost 89 EUR.",
        "Ask Maria Keller in Graz. " * 9,
    ]
    found = [_example("mtrag", 0, "number", False, text, (OTHER, KETTLE)) for text in texts]
    overlap = np.array([model.overlap.logit(one.reading.overlap) for one in found])
    weights = [torch.tensor(np.append(model.sites[kind].weights, model.sites[kind].bias)) for kind in KINDS]
    margins = _margins(_answers(found, overlap), weights, torch.tensor(_values(model.blend), dtype=torch.float64))
    np.testing.assert_allclose(margins.numpy(), [model.margin(one.reading) for one in found], atol=1e-6)


def test_changes_change_one_place_and_repeat_by_their_seed():
    import random

    for kind in KINDS:
        made = change(kind, KETTLE, OTHER, ["Oskar Brandt", "Graz"], random.Random(3))
        assert made is not None
        assert made.text != KETTLE
        assert made == change(kind, KETTLE, OTHER, ["Oskar Brandt", "Graz"], random.Random(3))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")
def test_judged_answers_are_told_apart_better_than_by_their_share_of_known_words():
    path = DATA / "begin_groundedness" / "dev" / "begin_dev_wow.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream][:200]
    good = [ground(r["response"], [r["knowledge"]]).support_score for r in rows if r["begin_label"][:5] == "Fully"]
    bad = [ground(r["response"], [r["knowledge"]]).support_score for r in rows if r["begin_label"][:5] != "Fully"]
    right = statistics.fmean((a > b) + (a == b) / 2 for a in good for b in bad)
    assert right > 0.95
    assert passage_of.cache_info().maxsize is not None
