"""The engine: one process, one model, an OpenAI-compatible server on loopback for the gateway in front of it.

    python -m serin.serve.engine --model-dir MODEL --port 0 --ready-file FILE

It loads the model, listens, writes ``{"port": ..., "pid": ...}`` to the ready file, and decodes concurrent requests in
one batch.  A request's ``model`` is the engine's own name (or none) for the base, or an adapter's.  A full queue
answers 429; a client that goes away frees its place.  Adapters come and go over ``/admin/adapters``, for the holder of
the token in the environment variable ``SERIN_ENGINE_TOKEN`` only.
"""

import argparse
import asyncio
import hmac
import logging
import os
import secrets
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serin.core.errors import InputError, SerinError
from serin.core.generation import Generator, Row
from serin.core.processes import die_with_parent
from serin.core.telemetry import silence_dependencies
from serin.serve.decoding import BusyError, Job, Scheduler
from serin.serve.engine_wire import EventStream, whole
from serin.serve.errors import RequestError, wrong
from serin.serve.hosting import Departure, bound_socket, exit_with, run_on_loop, serve_on, write_ready
from serin.serve.protocol import read_json
from serin.serve.requests import Body, ChatRequest, Name, parse_chat, parsed
from serin.serve.supervisor import TOKEN_VARIABLE

if TYPE_CHECKING:
    from serin.core.generation.lora import Adapter

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 256
MAX_ROWS = 16
MAX_WAITING = 64
RETRY_AFTER_S = 1
ROLES = ("system", "user", "assistant")
STATUS_CLIENT_GONE = 499


class AdapterBody(Body):
    """POST /admin/adapters."""

    name: Name
    folder: Annotated[str, Field(min_length=1, max_length=4096)]


class Engine:
    """Routes of the engine.

    Args:
        scheduler: decodes.
        model_name: what the base model calls itself.
        token: of the admin routes; without one they refuse everyone.
    """

    def __init__(self, scheduler: Scheduler, model_name: str, token: str = "") -> None:
        self._scheduler, self._generator = scheduler, scheduler.generator
        self._model_name, self._token = model_name, token
        self._adapters: dict[str, Adapter] = {}
        self._decoding: asyncio.Task[None] | None = None

    def add_adapter(self, name: str, folder: Path) -> None:
        """Serve an adapter under a name; the same folder again changes nothing.

        Raises:
            InputError: it cannot be applied, or the name is taken.
        """
        known, folder = self._adapters.get(name), folder.resolve()
        if known is not None and known.folder == folder:
            return
        if known is not None or name == self._model_name:
            raise InputError(f"The name {name} is taken: remove the other adapter first, or choose another name.")
        self._adapters[name] = self._generator.adapter(name, folder)

    def app(self) -> Starlette:
        """The HTTP application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/admin/adapters", self._add_adapter, methods=["POST"]),
                Route("/admin/adapters/{name:path}", self._remove_adapter, methods=["DELETE"]),
            ],
            exception_handlers={RequestError: _refuse},
        )

    async def run(self, listener: socket.socket, ready_file: Path | None) -> None:
        """Serve until a signal comes; the ready file is written once requests are answered."""

        async def ready() -> None:
            if ready_file:
                write_ready(ready_file, listener)

        self._decoding = asyncio.create_task(self._scheduler.run())
        try:
            await serve_on(self.app(), listener, ready)
        finally:
            self._decoding.cancel()
            await asyncio.wait({self._decoding})

    async def _chat(self, request: Request) -> Response:
        chat = parse_chat(await read_json(request), ROLES)
        job = await self._submit(chat)
        completion_id, model = f"chatcmpl-{uuid.uuid4().hex}", chat.model or self._model_name
        if chat.stream:
            return EventStream(job, completion_id, model, chat.include_usage)
        departure = Departure(request.receive)
        try:
            return JSONResponse(await whole(job, completion_id, model))
        except asyncio.CancelledError:
            if departure.ended_task():
                return Response(status_code=STATUS_CLIENT_GONE)
            raise
        except Exception:
            logger.exception("A request failed while its answer was being decoded.")
            return RequestError(500, "Decoding failed: see the engine's log.").response()
        finally:
            departure.close()

    async def _models(self, _: Request) -> Response:
        names = [self._model_name, *self._adapters]
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "serin"} for name in names]}
        )

    async def _health(self, _: Request) -> Response:
        alive = self._decoding is not None and not self._decoding.done()
        active, waiting = self._scheduler.load
        status = "ok" if alive else "decoding has stopped"
        return JSONResponse({"status": status, "active": active, "waiting": waiting}, 200 if alive else 503)

    async def _add_adapter(self, request: Request) -> Response:
        self._require_token(request)
        body = parsed(AdapterBody, await read_json(request))
        try:
            await asyncio.to_thread(self.add_adapter, body.name, Path(body.folder))
        except InputError as error:
            raise RequestError(400, str(error), param="folder") from error
        return JSONResponse({"name": body.name})

    async def _remove_adapter(self, request: Request) -> Response:
        self._require_token(request)
        self._adapters.pop(request.path_params["name"], None)
        return JSONResponse({"name": request.path_params["name"]})

    def _require_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not self._token or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise RequestError(401, "The engine's admin routes are for the gateway that started it.")

    async def _submit(self, request: ChatRequest) -> Job:
        try:
            return self._scheduler.submit(await self._rows(request), request.stop)
        except BusyError as error:
            raise RequestError(
                429, "The engine's queue is full: try again shortly.", code="queue_full", retry_after_s=RETRY_AFTER_S
            ) from error

    async def _rows(self, request: ChatRequest) -> Sequence[Row]:
        adapter = self._adapters.get(request.model) if request.model else None
        if request.model not in (None, self._model_name) and adapter is None:
            raise RequestError(
                404, f"The model '{request.model}' is not served here.", param="model", code="model_not_found"
            )
        if request.n > self._scheduler.max_rows:
            raise wrong("n", f"is {request.n}: this engine decodes {self._scheduler.max_rows} answers together")
        try:
            row = self._generator.row(
                request.messages,
                max_new_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
                temperature=request.temperature or 0.0,
                seed=secrets.randbits(62) if request.seed is None else request.seed,
                top_p=1.0 if request.top_p is None else request.top_p,
                logprobs=request.logprobs,
                adapter=adapter,
            )
        except InputError as error:
            raise RequestError(400, str(error), param="messages", code="context_length_exceeded") from error
        rows = [row, *(row.another(number) for number in range(1, request.n))]
        if request.response_format is not None:
            await asyncio.to_thread(self._constrain, rows, request)
        return rows

    def _constrain(self, rows: Sequence[Row], request: ChatRequest) -> None:
        from serin.core.generation.constraints import FormatError

        assert request.response_format is not None
        try:
            for row in rows:
                row.constraint = self._generator.constraints.constraint(request.response_format)
        except FormatError as error:
            raise wrong("response_format", str(error)) from error


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


async def _serve(options: argparse.Namespace, listener: socket.socket, generator: Generator) -> None:
    scheduler = Scheduler(
        generator, options.max_rows, options.max_waiting, prefix_cache_bytes=int(options.prefix_cache_mib * (1 << 20))
    )
    engine = Engine(scheduler, options.model_name, os.environ.pop(TOKEN_VARIABLE, ""))
    for adapter in options.adapter:
        name, found, folder = adapter.partition("=")
        if not (name and found and folder):
            raise InputError(f"--adapter {adapter} is not NAME=DIR: give the name and the adapter's folder.")
        engine.add_adapter(name, Path(folder))
    await engine.run(listener, options.ready_file)


def main(arguments: list[str] | None = None) -> int:
    """Command line of the engine process."""
    parser = argparse.ArgumentParser(prog="python -m serin.serve.engine", description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True, help="Hugging Face model folder")
    parser.add_argument("--model-name", default="model", help="name in answers")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="written with port and pid once requests are answered")
    parser.add_argument("--parent-pid", type=int, help="end when this process ends")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="requests decoded together")
    parser.add_argument("--max-waiting", type=int, default=MAX_WAITING, help="requests that may queue")
    parser.add_argument("--max-context", type=int, help="tokens of prompt and answer together; the model's own")
    parser.add_argument("--prefix-cache-mib", type=float, default=64.0, help="kept of prompts that were run")
    parser.add_argument("--adapter", action="append", default=[], help="NAME=DIR: a LoRA adapter of the model")
    options = parser.parse_args(arguments)
    if options.parent_pid:
        die_with_parent(options.parent_pid)
    silence_dependencies()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        listener = bound_socket("127.0.0.1", options.port)
        generator = Generator.for_decoding(options.model_dir, options.threads)
        generator.generate([[{"role": "user", "content": "ready?"}]], max_new_tokens=2)  # the first forward is slow
        if options.max_context:
            generator.max_context = min(generator.max_context, options.max_context)
        run_on_loop(_serve(options, listener, generator))
    except SerinError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
