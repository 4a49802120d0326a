"""The OpenAPI document of the endpoint, made from the models that check the requests."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serin.serve.api_models import ErrorAnswer

JSON = "application/json"
REFERENCE = "#/components/schemas/{model}"
SECURITY = {"user": "apiKey", "admin": "adminToken"}
REASONS = {
    400: "A field is wrong, or a guardrail refuses the input (code content_filter).",
    401: "The key or token is missing or wrong.",
    403: "Administration is off, or the caller may not.",
    404: "There is no such model.",
    409: "A controller with a later lease drives this, or another change came first.",
    413: "The body is larger than 1 MiB.",
    415: "The body is not declared as JSON.",
    429: "Too much at once: retry-after says when to try again.",
    500: "A fault of the endpoint's own; its log says more.",
    502: "The engine cannot be reached or broke off.",
    503: "Nothing is loaded, or what is needed does not answer: try again shortly.",
    504: "The engine was silent for too long.",
}
HEADERS = {
    "x-serin-trace-id": {"$ref": "#/components/headers/trace"},
    "x-request-id": {"$ref": "#/components/headers/request"},
}
ROUTED = {
    name: {"$ref": f"#/components/headers/{ref}"}
    for name, ref in (("x-serin-release", "release"), ("x-serin-track", "track"), ("x-session-id", "session"))
}
_HEX = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
COMPONENT_HEADERS: dict[str, dict[str, Any]] = {
    "trace": {"description": "The request's trace: the caller's with traceparent.", "required": True, "schema": _HEX},
    "request": {
        "description": "Stands for this request alone.",
        "required": True,
        "schema": {"type": "string", "pattern": "^(?:[0-9a-f]{32}|[0-9a-f]{48})$"},
    },
    "release": {"required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    "track": {"required": True, "schema": {"type": "string", "enum": ["champion", "candidate"]}},
    "session": {"required": True, "schema": {"type": "string", "minLength": 1, "maxLength": 128}},
    "retry": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
}
PARAMETERS = (
    {
        "name": "x-session-id",
        "in": "header",
        "description": "Requests of one session are answered by one release.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    },
    {
        "name": "x-serin-access",
        "in": "header",
        "description": "Narrows the caller's access labels to these, separated by commas.",
        "schema": {"type": "string"},
    },
    {
        "name": "traceparent",
        "in": "header",
        "description": "W3C trace context: the request joins this trace.",
        "schema": {"type": "string"},
    },
)


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    security: Literal["user", "admin", ""] = ""
    """Whose key it asks for."""
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    """None: plain text."""
    streams: bool = False
    """Whether the answer may come as server-sent events."""
    routed: bool = False
    """Whether a release answers, which its headers name."""
    refusals: tuple[int, ...] = ()
    """Beside those of its security."""
    unready: type[BaseModel] | None = None
    """What a 503 holds, where it is no error."""

    @property
    def operation_id(self) -> str:
        """Unique name: the method and the words of the path."""
        words = self.path.replace("{", "").replace("}", "").strip("/").replace("/", "_").replace(".", "_")
        return f"{self.method.lower()}_{words}"


def document(operations: Iterable[Operation], endpoint: str, *, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        operations: all of them.
        endpoint: the endpoint's name.
        with_keys: whether users need a key.
    """
    operations = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, with_keys=with_keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Serin endpoint {endpoint}",
            "version": version("serin"),
            "description": "OpenAI-compatible. A field that cannot be applied is refused by name, never ignored.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "headers": COMPONENT_HEADERS,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "adminToken": {"type": "http", "scheme": "bearer", "description": "An administrator's token."},
            },
        },
    }


def _operation(operation: Operation, *, with_keys: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "responses": _responses(operation, with_keys=with_keys),
    }
    if operation.security:
        needed = [{SECURITY[operation.security]: list[str]()}]
        found["security"] = needed if with_keys or operation.security == "admin" else [{}, *needed]
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": _reference(operation.body)}}}
    parameters = [*(PARAMETERS if operation.routed else ())]
    if "{id}" in operation.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}})
    if parameters:
        found["parameters"] = parameters
    return found


def _responses(operation: Operation, *, with_keys: bool) -> dict[str, Any]:
    if operation.answer is None:
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        content = {JSON: {"schema": _reference(operation.answer)}}
    if operation.streams:
        content["text/event-stream"] = {}  # a schema is of a whole body, and the events of one are of several kinds
    headers = {**HEADERS, **(ROUTED if operation.routed else {})}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "headers": headers, "content": content}}
    guarded = (401, 403) if operation.security == "admin" else (401, 403) if operation.security and with_keys else ()
    for status in sorted({*operation.refusals, *guarded}):
        responses[str(status)] = _refusal(status, ErrorAnswer)
    if operation.unready is not None:
        responses["503"] = _refusal(503, operation.unready)
    return responses


def _refusal(status: int, shape: type[BaseModel]) -> dict[str, Any]:
    headers: Mapping[str, Any] = HEADERS
    if status in (429, 502, 503, 504):
        headers = {**HEADERS, "retry-after": {"$ref": "#/components/headers/retry"}}
    return {"description": REASONS[status], "headers": headers, "content": {JSON: {"schema": _reference(shape)}}}


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    bodies = [(operation.body, "validation") for operation in operations if operation.body]
    answers = [(shape, "validation") for o in operations for shape in (o.answer, o.unready) if shape]
    wanted: Any = list(dict.fromkeys([*bodies, *answers, (ErrorAnswer, "validation")]))
    _, schema = models_json_schema(wanted, ref_template=REFERENCE)
    found: dict[str, Any] = schema["$defs"]
    return found


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}
