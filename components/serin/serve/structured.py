"""Structured answers: which ``response_format`` can be asked for, and whether an answer keeps to it.

Schemas come from callers.  Their patterns run on a regular-expression engine whose time is linear in the text, and a
reference to anything outside the schema is refused rather than fetched.
"""

import json
from typing import Any

import jsonschema_rs

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 100
_LINEAR = jsonschema_rs.RegexOptions()


class SchemaError(ValueError):
    """A schema that cannot be applied; the text says why."""


def validator_of(schema: dict[str, Any] | bool) -> jsonschema_rs.Validator:
    """The schema, ready to check answers.

    Raises:
        SchemaError: it is no JSON Schema, is too large, or refers to something outside itself.
    """
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise SchemaError(f"is nested more than {MAX_SCHEMA_DEPTH} deep")
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise SchemaError(f"is larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        return jsonschema_rs.validator_for(schema, pattern_options=_LINEAR, offline=True, validate_formats=False)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        first = str(error).strip().splitlines()[0]
        raise SchemaError(f"is no schema that can be applied: {first}") from error


def keeps_to(response_format: dict[str, Any], text: str) -> bool:
    """Whether an answer is the JSON that was asked for.

    Args:
        response_format: OpenAI's ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": ...}``.
        text: the whole answer.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    if response_format["type"] == "json_object":
        return isinstance(value, dict)
    try:
        return validator_of(response_format["json_schema"].get("schema", True)).is_valid(value)
    except (SchemaError, ValueError):
        return False


def _depth(value: Any) -> int:
    """How deep objects and lists lie in each other; looks no further than the limit."""
    depth, level = 0, [value]
    while level and depth <= MAX_SCHEMA_DEPTH:
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for items in inner for item in items]
        depth += bool(inner)
    return depth


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
