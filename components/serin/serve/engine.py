"""The engine: one process, one model, an OpenAI-compatible server on loopback for the gateway in front of it.

    python -m serin.serve.engine --model-dir MODEL --port 0 --ready-file FILE

It loads the model, listens, writes ``{"port": ..., "pid": ...}`` to the ready file, and decodes in one thread in which
concurrent requests share a batch.  A full queue answers 429; a client that goes away frees its place.
"""

import argparse
import asyncio
import logging
import secrets
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serin.core.errors import InputError, SerinError
from serin.core.generation import Delta, Generator
from serin.core.processes import die_with_parent
from serin.core.telemetry import silence_dependencies
from serin.serve.decoding import BusyError, DecodingThread, Job
from serin.serve.hosting import bound_socket, exit_with, serve_on, unless_disconnected, write_ready
from serin.serve.protocol import (
    DONE,
    ChatRequest,
    ChunkWriter,
    RequestError,
    completion,
    event,
    parse_chat,
    read_json,
    usage_of,
)

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 256
MAX_ROWS = 16
MAX_WAITING = 64
RETRY_AFTER_S = 1


def build_engine(thread: DecodingThread, model_name: str) -> Starlette:
    """The engine's HTTP application.

    Args:
        thread: running, with its model loaded.
        model_name: what the model calls itself in answers.
    """

    async def chat(request: Request) -> Response:
        try:
            parsed = parse_chat(await read_json(request), ("system", "user", "assistant"))
            job = _submit(thread, parsed)
        except RequestError as error:
            return error.response()
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        if parsed.stream:
            chunks = _chunks(job, ChunkWriter(completion_id, model_name), parsed.include_usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        answer = await unless_disconnected(request, _whole(job))
        if answer is None:
            return Response(status_code=499)
        text, last = answer
        usage = usage_of(last.prompt_tokens, last.completion_tokens)
        return JSONResponse(
            completion(completion_id, model_name, {"content": text}, last.finish_reason or "stop", usage)
        )

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": model_name, "object": "model", "owned_by": "serin"}]})

    async def health(_: Request) -> Response:
        alive = thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "decoding has stopped"}, 200 if alive else 503)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ]
    )


def _submit(thread: DecodingThread, request: ChatRequest) -> Job:
    try:
        row = thread.generator.row(
            request.messages,
            max_new_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=request.temperature or 0.0,
            seed=secrets.randbits(62) if request.seed is None else request.seed,
        )
        return thread.submit(row, request.stop)
    except InputError as error:
        raise RequestError(400, str(error), param="messages", code="context_length_exceeded") from error
    except BusyError as error:
        raise RequestError(
            429, "The engine's queue is full: try again shortly.", code="queue_full", retry_after_s=RETRY_AFTER_S
        ) from error


async def _whole(job: Job) -> tuple[str, Delta]:
    parts = []
    last = Delta("")
    async for last in job.deltas():
        parts.append(last.text)
    return "".join(parts), last


async def _chunks(job: Job, writer: ChunkWriter, include_usage: bool) -> AsyncIterator[bytes]:
    yield writer.delta({"role": "assistant", "content": ""})
    last = Delta("")
    try:
        async for last in job.deltas():
            if last.text:
                yield writer.delta({"content": last.text})
    except Exception:
        logger.exception("A request failed while its answer was being decoded.")
        yield event(RequestError(500, "Decoding failed: see the engine's log.").body())
        return
    yield writer.delta({}, last.finish_reason)
    if include_usage:
        yield writer.usage(usage_of(last.prompt_tokens, last.completion_tokens))
    yield DONE


async def run_engine(thread: DecodingThread, model_name: str, listener: socket.socket, ready_file: Path | None) -> None:
    """Serve until a signal comes; the ready file is written once requests are answered."""

    async def ready() -> None:
        if ready_file:
            write_ready(ready_file, listener)

    thread.start()
    try:
        await serve_on(build_engine(thread, model_name), listener, ready)
    finally:
        thread.stop()
        await asyncio.to_thread(thread.join, 5)


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
    options = parser.parse_args(arguments)
    if options.parent_pid:
        die_with_parent(options.parent_pid)
    silence_dependencies()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        listener = bound_socket("127.0.0.1", options.port)
        generator = Generator.load(options.model_dir, options.threads)
        generator.generate([[{"role": "user", "content": "ready?"}]], max_new_tokens=2)  # the first forward is slow
        thread = DecodingThread(generator, options.max_rows, options.max_waiting)
        asyncio.run(run_engine(thread, options.model_name, listener, options.ready_file))
    except SerinError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
