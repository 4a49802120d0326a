"""Constrained decoding: what ends by itself keeps to its schema; what cannot be enforced is refused."""

import json
from pathlib import Path

import jsonschema_rs
import pytest

from serin.core.generation import Decoder, Generator, Row
from serin.core.generation.constraints import FormatError

SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {
            "intent": {"enum": ["refund", "order status", "other"]},
            "urgent": {"type": "boolean"},
            "days": {"type": "integer", "minimum": 0, "maximum": 30},
        },
        "required": ["intent", "urgent", "days"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "maxLength": 6},
                        "price": {"type": ["number", "null"], "minimum": 0, "maximum": 99},
                    },
                    "required": ["name", "price"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["items"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "reference": {
        "$defs": {"c": {"enum": ["EUR", "GBP"]}},
        "type": "object",
        "properties": {"currency": {"$ref": "#/$defs/c"}},
        "required": ["currency"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator.load(tiny_model)


def response_format(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def row(generator: Generator, wanted: dict | None, seed: int | None = None, most: int = 150) -> Row:
    return generator.row(
        [{"role": "user", "content": "Where is my order?"}],
        max_new_tokens=most,
        temperature=0.0 if seed is None else 1.0,
        seed=seed or 0,
        constraint=generator.constraints.constraint(wanted) if wanted else None,
    )


def finish(generator: Generator, rows: list[Row]) -> None:
    decoder = Decoder(generator)
    decoder.join(rows)
    while decoder.rows:
        decoder.step()
    assert [row.error for row in rows] == [None] * len(rows)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_that_ends_by_itself_keeps_to_its_schema(generator: Generator, name: str):
    rows = [row(generator, response_format(SCHEMAS[name]), seed) for seed in range(6)]
    finish(generator, rows)
    ended = [generator.decode(r.tokens) for r in rows if r.finish_reason == "stop"]
    assert ended
    for text in ended:
        assert jsonschema_rs.is_valid(SCHEMAS[name], json.loads(text)), text
        assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) or name == "nested"


def test_an_answer_cut_by_length_says_so(generator: Generator):
    cut = row(generator, response_format(SCHEMAS["flat"]), most=4)
    finish(generator, [cut])
    assert cut.finish_reason == "length"
    with pytest.raises(ValueError, match=r"."):
        json.loads(generator.decode(cut.tokens))


def test_a_json_object_begins_as_one(generator: Generator):
    rows = [row(generator, {"type": "json_object"}, seed, most=60) for seed in range(4)]
    finish(generator, rows)
    assert all(generator.decode(r.tokens).startswith("{") for r in rows)
    assert all(isinstance(json.loads(generator.decode(r.tokens)), dict) for r in rows if r.finish_reason == "stop")


def test_constrained_rows_leave_their_neighbours_as_they_are(generator: Generator):
    alone, beside = row(generator, None, most=30), row(generator, None, most=30)
    finish(generator, [alone])
    constrained = row(generator, response_format(SCHEMAS["flat"]))
    finish(generator, [constrained, beside])
    assert beside.tokens == alone.tokens
    assert json.loads(generator.decode(constrained.tokens))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "array", "minItems": 3, "maxItems": 1},
        False,
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(generator: Generator, schema):
    with pytest.raises(FormatError, match="cannot be enforced"):
        generator.constraints.constraint(response_format(schema))
