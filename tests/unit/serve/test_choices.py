"""What comes out of a choice for what goes in."""

import random

import pytest

from serin.core.policy import BannedRail, GuardrailPolicy
from serin.serve.choices import Choice
from serin.serve.guardrails import Guardrails

ANSWER = "Write to help@corner.example or call us; we answer within two days, always and without fail. " * 3


def entry(token: str) -> dict:
    return {"token": token, "logprob": -1.0, "bytes": list(token.encode()), "top_logprobs": []}


def run(policy: GuardrailPolicy, tokens: list[str], finish: str = "stop") -> tuple[Choice, list]:
    choice = Choice(0, Guardrails(policy), (), with_logprobs=True)
    parts = [part for token in tokens if (part := choice.take(token, (entry(token),))) is not None]
    return choice, [*parts, choice.end(finish)]


def tokens_of(text: str, seed: int) -> list[str]:
    rng, tokens = random.Random(seed), []
    while text:
        size = rng.randint(1, 6)
        tokens.append(text[:size])
        text = text[size:]
    return tokens


@pytest.mark.parametrize("seed", range(5))
def test_logprobs_come_with_the_text_that_they_belong_to(seed):
    policy = GuardrailPolicy(pii={"output": "off"})
    tokens = tokens_of("Grüße: " + ANSWER, seed)
    choice, parts = run(policy, tokens)
    assert choice.text == "".join(tokens)
    assert "".join(part.text for part in parts) == choice.text
    assert [e["token"] for e in choice.logprobs] == tokens
    out, seen = "", ""
    for part in parts:
        out += part.text
        seen += "".join(e["token"] for e in part.logprobs)
        assert len(seen) <= len(out)
    assert parts[-1].finish_reason == "stop"


def test_logprobs_of_text_that_a_rail_changed_are_left_out():
    tokens = ["Write", " to", " help@", "corner.", "example", " now", "."]
    choice, _ = run(GuardrailPolicy(), tokens)
    assert choice.text == "Write to <EMAIL> now."
    assert [e["token"] for e in choice.logprobs] == ["Write", " to"]
    choice, _ = run(GuardrailPolicy(hold_back_chars=1), ["Yes", ", ", "we", " do", ". " * 200, *tokens])
    assert choice.text.endswith("<EMAIL> now.")
    assert "help@" not in "".join(e["token"] for e in choice.logprobs)
    assert choice.logprobs[0]["token"] == "Yes"


def test_a_stop_sequence_that_cuts_a_token_keeps_its_beginning():
    choice = Choice(0, Guardrails(GuardrailPolicy()), (), with_logprobs=True)
    choice.take("Yes, w", (entry("Yes"), entry(","), entry(" we"), entry(" do")))
    choice.end("stop")
    assert [e["token"] for e in choice.logprobs] == ["Yes", ",", " we"]


def test_a_blocked_choice_says_so_and_gives_nothing_more():
    policy = GuardrailPolicy(banned=BannedRail(phrases=("secret sauce",)), hold_back_chars=20)
    choice, parts = run(policy, tokens_of("It is a long story, and the secret sauce is salt.", 1))
    assert parts[-1].finish_reason == choice.finish_reason == "content_filter"
    assert "sauce" not in choice.text
    assert parts[-1].text == ""


def test_a_replaced_answer_keeps_the_logprobs_of_the_common_beginning():
    choice, _ = run(GuardrailPolicy(), ["Yes", ",", " it", " is", "."])
    choice.replace("Yes, perhaps.")
    assert choice.text == "Yes, perhaps."
    assert [e["token"] for e in choice.logprobs] == ["Yes", ","]
