"""Every route in one table: what handles it, and what /openapi.json says of it."""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serin.serve import api_chat, api_other
from serin.serve import api_models as shapes
from serin.serve.api_schema import Operation, document
from serin.serve.errors import RequestError
from serin.serve.protocol import json_response
from serin.serve.requests import ChatBody, CompletionBody, EmbeddingBody, FeedbackBody, ModerationBody
from serin.serve.rollouts import RolloutRequest

if TYPE_CHECKING:
    from serin.serve.gateway import Gateway

Handler = Callable[["Gateway", Request], Awaitable[Response]]
BODY = (400, 413, 415)
"""Refusals of whatever takes a body."""
ENGINE = (429, 500, 502, 503, 504)
LOADED = (429, 500, 503)

OPERATIONS: tuple[tuple[Handler, Operation], ...] = (
    (
        api_chat.chat,
        Operation(
            "POST", "/v1/chat/completions", "Answer a dialogue", security="user", body=ChatBody,
            answer=shapes.ChatAnswer, streams=True, routed=True, refusals=(*BODY, 404, *ENGINE),
        ),
    ),
    (
        api_chat.complete,
        Operation(
            "POST", "/v1/completions", "Answer prompts", security="user", body=CompletionBody,
            answer=shapes.CompletionAnswer, streams=True, routed=True, refusals=(*BODY, 404, *ENGINE),
        ),
    ),
    (
        api_other.embeddings,
        Operation(
            "POST", "/v1/embeddings", "Embed texts", security="user", body=EmbeddingBody,
            answer=shapes.EmbeddingAnswer, refusals=(*BODY, 404, *LOADED),
        ),
    ),
    (
        api_other.moderations,
        Operation(
            "POST", "/v1/moderations", "What the input rails say of texts", security="user", body=ModerationBody,
            answer=shapes.ModerationAnswer, refusals=(*BODY, 404, *LOADED),
        ),
    ),
    (
        api_other.feedback,
        Operation(
            "POST", "/v1/feedback", "Rate an answer", security="user", body=FeedbackBody,
            answer=shapes.FeedbackAnswer, refusals=BODY,
        ),
    ),
    (
        api_other.models,
        Operation("GET", "/v1/models", "Names for model", security="user", answer=shapes.ModelList),
    ),
    (
        api_other.model,
        Operation("GET", "/v1/models/{id}", "One name", security="user", answer=shapes.Model, refusals=(404,)),
    ),
    (api_other.health, Operation("GET", "/health", "Is the process alive", answer=shapes.Health)),
    (
        api_other.ready,
        Operation("GET", "/ready", "Does the champion answer", answer=shapes.Readiness, unready=shapes.Readiness),
    ),
    (api_other.metrics, Operation("GET", "/metrics", "Prometheus metrics")),
    (
        api_other.show_rollout,
        Operation(
            "GET", "/admin/rollouts", "What is served", security="admin", answer=shapes.RolloutState, refusals=(503,)
        ),
    ),
    (
        api_other.change_rollout,
        Operation(
            "PUT", "/admin/rollouts", "Load, unload, move weights", security="admin", body=RolloutRequest,
            answer=shapes.RolloutState, refusals=(*BODY, 409),
        ),
    ),
    (
        api_other.flush,
        Operation(
            "POST", "/admin/flush", "Write the endpoint's events now", security="admin", answer=shapes.Flushed,
            refusals=(503,),
        ),
    ),
)  # fmt: skip


def routes_of(gateway: "Gateway") -> list[Route]:
    """The routes of a gateway, one for each path."""
    paths: dict[str, dict[str, Handler]] = {}
    for handler, operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = handler
    routes = [_route(gateway, path, handlers) for path, handlers in paths.items()]
    return [*routes, _route(gateway, "/openapi.json", {"GET": _describe})]


class Shortcut:
    """ASGI middleware: takes the requests that are most of the traffic past the framework's routing, to their handlers.

    Args:
        app: takes all others.
        gateway: what the handlers work with.
    """

    def __init__(self, app: ASGIApp, gateway: "Gateway") -> None:
        self._app, self._gateway = app, gateway
        self._handlers = {operation.path: handler for handler, operation in OPERATIONS if operation.streams}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await handler(self._gateway, Request(scope, receive, send))
        except RequestError as refusal:
            response = refusal.response()
        await response(scope, receive, send)


def _route(gateway: "Gateway", path: str, handlers: dict[str, Handler]) -> Route:
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](gateway, request)

    return Route(path.replace("{id}", "{id:path}"), endpoint, methods=[*handlers])


async def _describe(gateway: "Gateway", request: Request) -> Response:
    """GET /openapi.json."""
    return json_response(_document(gateway.endpoint, gateway.access.asks_for_keys))


@lru_cache(maxsize=4)
def _document(endpoint: str, with_keys: bool) -> dict[str, object]:
    return document([operation for _, operation in OPERATIONS], endpoint, with_keys=with_keys)
