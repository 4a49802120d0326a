"""The routes beside chat: models, embeddings, moderations, feedback, health, metrics, administration."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from serin.core.errors import FencedError, SerinError
from serin.core.events import Feedback
from serin.serve.api_edge import current_trace
from serin.serve.api_outcome import RETRY_AFTER_S, release_headers
from serin.serve.errors import RequestError, wrong
from serin.serve.guardrails import Verdict
from serin.serve.protocol import json_response, read_json
from serin.serve.requests import EmbeddingBody, FeedbackBody, ModerationBody, parsed
from serin.serve.rollouts import RolloutRequest, SupersededError
from serin.serve.runtime import Runtime

if TYPE_CHECKING:
    from serin.core.embedding import Embedder
    from serin.serve.gateway import Gateway

T = TypeVar("T")
TEXTS_AT_ONCE = 8
"""Texts that are embedded before a search may have its turn."""


async def embeddings(gateway: "Gateway", request: Request) -> Response:
    """POST /v1/embeddings: the vectors of the embedder that the champion's index was made with."""
    key_id = gateway.access.require_user(request)
    body = parsed(EmbeddingBody, await read_json(request))
    rollout = gateway.rollout()
    runtime = rollout.champion
    embedder = runtime.reader.embedder
    gateway.require_model(body.model, embedder.name)
    if body.dimensions not in (None, embedder.dimensions):
        raise wrong("dimensions", f"is {body.dimensions}: this embedder has {embedder.dimensions}")
    texts = [body.input] if isinstance(body.input, str) else body.input
    with rollout.lease(), gateway.admitted(key_id):
        vectors = await _embedded(runtime, embedder, texts)
        tokens = await _in_turn(runtime, lambda: embedder.count_tokens(texts))
    write = _base64 if body.encoding_format == "base64" else _floats
    answer = {
        "object": "list",
        "model": embedder.name,
        "data": [
            {"object": "embedding", "index": number, "embedding": write(vector)}
            for number, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_response(answer, headers=release_headers(runtime, "champion"))


async def moderations(gateway: "Gateway", request: Request) -> Response:
    """POST /v1/moderations: what the champion's input rails say."""
    key_id = gateway.access.require_user(request)
    body = parsed(ModerationBody, await read_json(request))
    gateway.require_model(body.model)
    rollout = gateway.rollout()
    guardrails = rollout.champion.guardrails
    texts = _moderated(body)
    with rollout.lease(), gateway.admitted(key_id):
        verdicts = await asyncio.to_thread(lambda: [guardrails.check("input", text) for text in texts])
    answer = {
        "id": f"modr-{current_trace(request).request_id}",
        "model": gateway.endpoint,
        "results": [_moderation(verdict) for verdict in verdicts],
    }
    return json_response(answer, headers=release_headers(rollout.champion, "champion"))


async def feedback(gateway: "Gateway", request: Request) -> Response:
    """POST /v1/feedback: taken for any answer id, since answers are written later than they are given."""
    gateway.access.require_user(request)
    body = parsed(FeedbackBody, await read_json(request))
    is_trace = "-" not in body.id
    item = Feedback(
        answer_id="" if is_trace else body.id,
        trace_id=body.id if is_trace else body.id.partition("-")[2][:32],
        rating=body.rating,
        comment=body.comment or "",
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        session_id=body.session_id or "",
    )
    gateway.recorder.add_feedback(item)
    return json_response({"object": "feedback", "id": body.id})


async def models(gateway: "Gateway", request: Request) -> Response:
    """GET /v1/models."""
    gateway.access.require_user(request)
    return json_response({"object": "list", "data": [_model(name) for name in _names(gateway)]})


async def model(gateway: "Gateway", request: Request) -> Response:
    """GET /v1/models/{id}."""
    gateway.access.require_user(request)
    name = request.path_params["id"]
    if name not in _names(gateway):
        raise RequestError(404, f"There is no model {name!r}: /v1/models lists them.", code="model_not_found")
    return json_response(_model(name))


async def health(gateway: "Gateway", request: Request) -> Response:
    """GET /health: the process is alive."""
    return json_response({"status": "ok"})


async def ready(gateway: "Gateway", request: Request) -> Response:
    """GET /ready: the champion's engine answers; it also stands in for a candidate that does not."""
    rollout = gateway.rollouts.current
    if rollout is None:
        return json_response({"status": "not ready", "reason": "No release is loaded yet."}, 503)
    if not await rollout.champion.backend.healthy():
        return json_response({"status": "not ready", "reason": "The engine of the champion does not answer."}, 503)
    return json_response({"status": "ready"})


async def metrics(gateway: "Gateway", request: Request) -> Response:
    """GET /metrics."""
    rollout = gateway.rollouts.current
    engines = [(r.release.id, track, r.backend.alive) for r, track in rollout.loaded()] if rollout else []
    text = gateway.metrics.text(rollout.weight_percent if rollout else 0.0, engines)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def show_rollout(gateway: "Gateway", request: Request) -> Response:
    """GET /admin/rollouts."""
    gateway.access.require_admin(request)
    gateway.rollout()
    return json_response(await _state(gateway))


async def change_rollout(gateway: "Gateway", request: Request) -> Response:
    """PUT /admin/rollouts: load, unload, move weights."""
    by = gateway.access.require_admin(request)
    try:
        await gateway.rollouts.change(RolloutRequest.load(await read_json(request)), by=by)
    except FencedError as error:
        raise RequestError(409, str(error), code="fenced") from error
    except SupersededError as error:
        raise RequestError(409, str(error), code="superseded") from error
    except SerinError as error:
        raise RequestError(400, str(error), code=type(error).__name__) from error
    return json_response(await _state(gateway))


async def _state(gateway: "Gateway") -> dict[str, Any]:
    state = await gateway.rollouts.state() or {}
    counts = gateway.mirror.counts() if gateway.mirror is not None else None
    return {
        **state,
        "mirrored": asdict(counts) if counts is not None else None,
        "follows_journal": gateway.follows_journal,
    }


async def flush(gateway: "Gateway", request: Request) -> Response:
    """POST /admin/flush: write the buffered events now."""
    gateway.access.require_admin(request)
    try:
        return json_response({"written": await asyncio.to_thread(gateway.recorder.flush)})
    except SerinError as error:
        raise RequestError(503, str(error), code=type(error).__name__, retry_after_s=RETRY_AFTER_S) from error


async def _embedded(runtime: Runtime, embedder: "Embedder", texts: Sequence[str]) -> list[Any]:
    vectors: list[Any] = []
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[begin : begin + TEXTS_AT_ONCE]
        vectors += list(await _in_turn(runtime, lambda batch=batch: embedder.encode(batch)))  # type: ignore[misc]
    return vectors


async def _in_turn(runtime: Runtime, work: Callable[[], T]) -> T:
    """Run something beside the searches of requests."""
    return await asyncio.get_running_loop().run_in_executor(runtime.searches, work)


def _floats(vector: Any) -> list[float]:
    return [float(value) for value in vector]


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _moderated(body: ModerationBody) -> list[str]:
    """The texts to look at; the parts of one message are one text, as OpenAI has it."""
    if isinstance(body.input, str):
        return [body.input]
    texts = [item for item in body.input if isinstance(item, str)]
    return texts or ["\n".join(item.text for item in body.input if not isinstance(item, str))]


def _moderation(verdict: Verdict) -> dict[str, Any]:
    acting = {action.split(":")[1] for action in verdict.actions}
    scores: dict[str, float] = verdict.scores
    rails = sorted({"injection", "length", "pii"} | scores.keys() | acting | verdict.rails.keys())
    return {
        "flagged": bool(acting),
        "blocked": verdict.blocked,
        "categories": {rail: rail in acting for rail in rails},
        "category_scores": {rail: float(scores.get(rail, rail in acting)) for rail in rails},
        "category_applied_input_types": {rail: ["text"] for rail in rails},
        "actions": list(verdict.actions),
    }


def _names(gateway: "Gateway") -> list[str]:
    rollout = gateway.rollouts.current
    return [gateway.endpoint, *([rollout.champion.reader.embedder.name] if rollout else [])]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "serin"}
