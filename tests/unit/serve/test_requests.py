"""What request bodies may hold, and how a refusal names what is wrong."""

import pytest

from serin.serve.errors import RequestError
from serin.serve.requests import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    FeedbackBody,
    ModerationBody,
    parse_chat,
    parse_completion,
)
from serin.serve.structured import SchemaError, keeps_to, validator_of

HI = {"messages": [{"role": "user", "content": "Hi"}]}


def refusal(body: dict, parse=lambda body: parse_chat(body, ("user", "assistant"))) -> RequestError:
    with pytest.raises(RequestError) as refused:
        parse(body)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "leave it out"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "not both"),
        ({"top_logprobs": 2}, "top_logprobs", "goes with logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "goes with stream"),
        ({"stream_options": {"include_usage": True, "x": 1}, "stream": True}, "stream_options.x", "not supported"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"seed": 1.5}, "seed", "1.5"),
        ({"n": 0}, "n", "0"),
        ({"n": True}, "n", "True"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"user": ""}, "user", "at least 1"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"response_format": {"type": "yaml"}}, "response_format", "yaml"),
    ],
)
def test_a_refusal_names_the_field_and_the_problem(fields, param, said):
    error = refusal({**HI, **fields})
    assert error.param == param
    assert said in error.message


def test_a_whole_number_may_be_written_as_any_number():
    assert parse_chat({**HI, "max_tokens": 3.0}, ("user",)).max_tokens == 3


def test_what_clients_send_unasked_changes_nothing():
    plain = parse_chat(HI, ("user",))
    neutral = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "store": False,
               "functions": None, "response_format": {"type": "text"}, "stream": None}  # fmt: skip
    assert parse_chat({**HI, **neutral}, ("user",)) == plain


def test_parts_of_a_message_are_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parse_chat({"messages": [{"role": "user", "content": parts}]}, ("user",))
    assert chat.messages[0]["content"] == "ab"


def test_roles_that_the_caller_does_not_take_are_refused():
    body = {"messages": [{"role": "system", "content": "Be kind."}, *HI["messages"]]}
    assert refusal(body).param == "messages.0.role"
    assert parse_chat(body, ("system", "user")).messages[0]["role"] == "system"


def test_a_completion_takes_one_prompt_or_several():
    assert parse_completion({"prompt": "a"}).prompts == ("a",)
    assert parse_completion({"prompt": ["a", "b"], "n": 2}).sampling.n == 2
    assert refusal({"prompt": [1, 2]}, parse_completion).param == "prompt"
    assert refusal({"prompt": "a", "suffix": "b"}, parse_completion).param == "suffix"
    assert refusal({"prompt": "a", "echo": True}, parse_completion).param == "echo"


@pytest.mark.parametrize("model", [ChatBody, CompletionBody, EmbeddingBody, ModerationBody, FeedbackBody])
def test_every_field_of_a_body_is_explained_or_plain(model):
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["description"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strange"}, "no schema"),
        ({"$ref": "https://example.com/x.json"}, "no schema"),
        ({"description": "x" * (65 << 10)}, "larger"),
    ],
)
def test_a_schema_that_cannot_be_applied_says_why(schema, said):
    with pytest.raises(SchemaError, match=said):
        validator_of(schema)


def test_answers_are_held_against_the_form():
    schema = {"type": "object", "properties": {"a": {"pattern": "^(x+)+$"}}, "required": ["a"]}
    asked = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert keeps_to(asked, '{"a": "xx"}')
    assert not keeps_to(asked, '{"a": "' + "x" * 5000 + '!"}'), "in linear time"
    assert not keeps_to(asked, "{}")
    assert not keeps_to({"type": "json_object"}, "[1]")
    assert not keeps_to({"type": "json_object"}, '{"a": NaN}')
    assert not keeps_to({"type": "json_object"}, "[" * 100_000)
