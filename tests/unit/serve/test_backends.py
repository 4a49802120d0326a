"""The backend of OpenAI-compatible servers, against servers that fail in every way over real HTTP."""

import asyncio
import logging
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai_fake import (
    ANSWER,
    WORDS,
    FakeOpenAI,
    answers_whole,
    chunk,
    dies,
    hangs,
    refuses,
    sends,
    sse,
    usage,
)

from serin.core.errors import ConfigError, ServingError
from serin.serve.backends.config import BackendConfig
from serin.serve.backends.connections import Connections
from serin.serve.backends.pool import Pool
from serin.serve.engine_client import EngineError, EnginePiece, EngineRequest

TEXT = "".join(WORDS)
REQUEST = EngineRequest(({"role": "user", "content": "What does the kettle cost?"},), 16, 0.0, None, ())


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


@asynccontextmanager
async def pool_of(*fakes: FakeOpenAI, **settings: Any) -> AsyncIterator[Pool]:
    defaults = {"backoff_s": 0.01, "connect_s": 1, "first_token_s": 5, "silence_s": 5, "health_s": 60, "ready_s": 20}
    config = BackendConfig.load({"urls": [fake.url for fake in fakes], "model": "m", **defaults, **settings})
    async with Connections() as connections:
        pool = await Pool.open(connections, config, "m")
        try:
            yield pool
        finally:
            await pool.close()
            await asyncio.sleep(0)


async def asked(pool: Pool, request: EngineRequest = REQUEST) -> list[EnginePiece]:
    async with aclosing(pool.stream(request)) as pieces:
        return [piece async for piece in pieces]


async def text_of(pool: Pool, request: EngineRequest = REQUEST) -> str:
    return "".join(piece.text for piece in await asked(pool, request))


async def error_of(pool: Pool, request: EngineRequest = REQUEST) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await asked(pool, request)
    return caught.value


def test_an_answer_comes_in_pieces_with_the_servers_token_counts() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            pieces = await asked(pool)
            assert [piece.text for piece in pieces if piece.text] == list(WORDS)
            assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]
            assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == (7, 6)
            assert fake.bodies[0]["model"] == "m"
            assert fake.bodies[0]["stream_options"] == {"include_usage": True}

    run(test())


def test_connections_are_used_again() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            for _ in range(5):
                assert await text_of(pool) == TEXT
            assert len(fake.peers) == 1
            assert pool.state()["servers"][0]["in_flight"] == 0

    run(test())


@pytest.mark.parametrize("first", [dies(), refuses(502), refuses(503, "busy"), refuses(504), dies(sse(chunk("")))])
def test_a_failure_before_the_first_token_is_tried_elsewhere(first: Any) -> None:
    async def test() -> None:
        async with FakeOpenAI() as one, FakeOpenAI() as other, pool_of(one, other) as pool:
            one.always = other.always = once = _first_only(first)
            assert await text_of(pool) == TEXT
            assert once.calls >= 2
            assert one.bodies
            assert other.bodies

    run(test())


class _first_only:
    """Fails at the first server that is asked, until another one is."""

    def __init__(self, first: Any) -> None:
        self.first, self.calls, self.failing = first, 0, None

    async def __call__(self, fake: FakeOpenAI, request: Any) -> Any:
        self.calls += 1
        self.failing = self.failing or fake
        return await (self.first if fake is self.failing else sends(ANSWER))(fake, request)


def test_a_server_that_is_down_is_tried_elsewhere_at_once() -> None:
    async def test() -> None:
        async with FakeOpenAI() as one, FakeOpenAI() as other, pool_of(one, other, backoff_s=30) as pool:
            await one.stop()
            started = time.monotonic()
            for _ in range(4):
                assert await text_of(pool) == TEXT
            assert time.monotonic() - started < 2
            await one.start()

    run(test())


@pytest.mark.parametrize(
    "broken",
    [
        dies(sse(chunk("The"), chunk(" kettle"))),
        sends(sse(chunk("The"), chunk(" kettle"))),
        sends(sse(chunk("The"), chunk(" kettle"), '{"oops')),
        sends(sse(chunk("The"), chunk(" kettle"), {"error": {"message": "engine died", "code": 500}})),
    ],
)
def test_a_failure_after_the_first_token_is_an_error_and_is_not_tried_again(broken: Any) -> None:
    async def test() -> None:
        async with FakeOpenAI() as one, FakeOpenAI() as other, pool_of(one, other) as pool:
            one.always = other.always = broken
            pieces = pool.stream(REQUEST)
            assert [(await anext(pieces)).text for _ in range(2)] == ["The", " kettle"]
            with pytest.raises(EngineError) as caught:
                await anext(pieces)
            assert caught.value.status == 502
            assert len(one.bodies) + len(other.bodies) == 1

    run(test())


def test_what_the_client_did_wrong_is_not_tried_again() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            body = {"object": "error", "message": "This model's maximum context length is 8 tokens", "code": 400}
            error = await error_of(_set(fake, pool, refuses(400, body)))
            assert (error.status, error.code) == (400, "context_length_exceeded")
            assert (await error_of(_set(fake, pool, refuses(500)))).status == 502
            assert len(fake.bodies) == 2

    run(test())


def _set(fake: FakeOpenAI, pool: Pool, *behaviours: Any) -> Pool:
    fake.behave(*behaviours)
    return pool


def test_retry_after_is_kept_to_where_it_is_short_and_handed_on_where_it_is_long() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake, max_retry_after_s=1) as pool:
            fake.behave(refuses(429, **{"retry-after": "0.4"}))
            started = time.monotonic()
            assert await text_of(pool) == TEXT
            assert 0.4 <= time.monotonic() - started < 2
            fake.behave(refuses(429, **{"retry-after": "7"}))
            started = time.monotonic()
            error = await error_of(pool)
            assert (error.status, error.retry_after_s) == (429, 7.0)
            again = await error_of(pool)
            assert again.status == 503, "nobody asks a server that asked to be left alone"
            assert 6 < (again.retry_after_s or 0) <= 7
            assert time.monotonic() - started < 1
            assert len(fake.bodies) == 3

    run(test())


def test_a_busy_server_leaves_the_request_to_another() -> None:
    async def test() -> None:
        async with FakeOpenAI() as one, FakeOpenAI() as other, pool_of(one, other) as pool:
            one.always = refuses(429, **{"retry-after": "60"})
            for _ in range(6):
                assert await text_of(pool) == TEXT
            assert len(one.bodies) <= 1
            assert len(other.bodies) == 6

    run(test())


def test_tries_have_an_end() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake, retries=2, breaker_failures=9) as pool:
            fake.always = refuses(503)
            assert (await error_of(pool)).status == 503
            assert len(fake.bodies) == 3

    run(test())


def test_the_breaker_opens_and_closes_again() -> None:
    async def test() -> None:
        settings = {"retries": 0, "breaker_failures": 3, "breaker_open_s": 0.3}
        async with FakeOpenAI() as fake, pool_of(fake, **settings) as pool:
            fake.always = dies()
            for _ in range(3):
                assert (await error_of(pool)).status == 502
            before = len(fake.bodies)
            error = await error_of(pool)
            assert (error.status, error.code) == (503, "backend_unavailable")
            assert error.retry_after_s
            assert len(fake.bodies) == before, "nobody waits for a server that is down"
            assert not await pool.healthy()
            assert pool.state()["servers"][0]["breaker"] == "open"
            await asyncio.sleep(0.35)
            fake.always = sends(ANSWER)
            assert await text_of(pool) == TEXT
            assert pool.state()["servers"][0]["breaker"] == "closed"
            assert await pool.healthy()

    run(test())


def test_a_silent_server_is_a_504_before_and_after_the_first_token() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake, first_token_s=0.3, silence_s=0.2, total_s=0.6) as pool:
            started = time.monotonic()
            assert (await error_of(_set(fake, pool, hangs))).status == 504
            assert (await error_of(_set(fake, pool, sends(sse(chunk("")), 9.0)))).status == 504
            assert (await error_of(_set(fake, pool, sends(sse(chunk("The")), 9.0)))).status == 504
            slow = sends(*[part for _ in range(60) for part in (sse(chunk("x")), 0.05)])
            assert (await error_of(_set(fake, pool, slow))).status == 504, "never silent, never done"
            assert time.monotonic() - started < 3
            assert len(fake.bodies) == 4

    run(test())


def test_pauses_shorter_than_the_limit_are_no_silence() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake, first_token_s=1, silence_s=0.5) as pool:
            parts = [part for word in WORDS for part in (0.1, sse(chunk(word)))]
            fake.behave(sends(*parts, 0.1, sse(chunk(None, "stop"), "[DONE]")))
            assert await text_of(pool) == TEXT

    run(test())


def test_a_client_that_goes_away_ends_the_answer_at_the_server() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            fake.behave(sends(sse(chunk("The")), 9.0))
            pieces = pool.stream(REQUEST)
            assert (await anext(pieces)).text == "The"
            assert pool.state()["servers"][0]["in_flight"] == 1
            await pieces.aclose()
            assert pool.state()["servers"][0]["in_flight"] == 0
            await asyncio.sleep(0.2)
            assert fake.cancelled == 1
            fake.behave(hangs)
            waiting = asyncio.create_task(asked(pool))
            await asyncio.sleep(0.1)
            waiting.cancel()
            await asyncio.wait([waiting])
            await asyncio.sleep(0.2)
            assert fake.cancelled == 2
            assert pool.state()["servers"][0]["breaker"] == "closed"
            assert await text_of(pool) == TEXT

    run(test())


def test_the_server_with_the_fewest_requests_under_way_is_asked() -> None:
    async def test() -> None:
        async with FakeOpenAI() as one, FakeOpenAI() as other, pool_of(one, other) as pool:
            slow = sends(sse(chunk("a")), 0.3, sse(chunk(None, "stop"), "[DONE]"))
            one.always = other.always = slow
            await asyncio.gather(*(asked(pool) for _ in range(8)))
            assert (len(one.bodies), len(other.bodies)) == (4, 4)

    run(test())


def test_a_server_whose_health_fails_is_left_out_until_it_is_back() -> None:
    async def test() -> None:
        async with FakeOpenAI() as one, FakeOpenAI() as other, pool_of(one, other, health_s=0.05) as pool:
            one.healthy = False
            await asyncio.sleep(0.3)
            for _ in range(6):
                await asked(pool)
            assert (len(one.bodies), len(other.bodies)) == (0, 6)
            assert [server["healthy"] for server in pool.state()["servers"]] == [False, True]
            one.healthy, other.healthy = True, False
            await asyncio.sleep(0.3)
            await asked(pool)
            assert len(one.bodies) == 1
            one.healthy = False
            await asyncio.sleep(0.3)
            assert not await pool.healthy()
            assert await text_of(pool) == TEXT, "better a doubtful server than none"

    run(test())


def test_several_choices_log_probabilities_and_formats_go_through() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            entry = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}
            both = {
                "choices": [chunk("a", logprobs={"content": [entry]})["choices"][0], chunk("b", index=1)["choices"][0]]
            }
            fake.behave(sends(sse(both, chunk("c", "stop", 1), chunk(None, "length"), usage(3, 3), "[DONE]")))
            schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
            asking = EngineRequest(REQUEST.messages, 4, 0.7, 1, ("\n",), 0.9, 2, 3, schema)
            pieces = await asked(pool, asking)
            texts = ["".join(piece.text for piece in pieces if piece.index == index) for index in (0, 1)]
            assert texts == ["a", "bc"]
            assert {piece.index: piece.finish_reason for piece in pieces if piece.finish_reason} == {
                0: "length",
                1: "stop",
            }
            assert pieces[0].logprobs == (entry,)
            assert fake.bodies[0]["response_format"] == schema
            assert (fake.bodies[0]["logprobs"], fake.bodies[0]["top_logprobs"], fake.bodies[0]["n"]) == (True, 3, 2)

    run(test())


@pytest.mark.parametrize(
    "behaviour",
    [
        sends(ANSWER.replace(b"\n", b"\r\n")),
        sends(*[ANSWER[i : i + 7] for i in range(0, len(ANSWER), 7)]),
        sends(ANSWER.replace(b"\n\n", b"\n")),
        sends(ANSWER.replace(b"data: [DONE]\n\n", b"")),
        sends(ANSWER.rstrip(b"\n")),
        sends(b": keep-alive\n\n", ANSWER),
        answers_whole,
    ],
)
def test_streams_that_are_not_quite_right_are_understood(behaviour: Any) -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            pieces = await asked(_set(fake, pool, behaviour))
            assert "".join(piece.text for piece in pieces) == TEXT
            assert pieces[-1].completion_tokens == 6

    run(test())


def test_tokens_are_counted_where_the_server_does_not() -> None:
    async def test() -> None:
        async with FakeOpenAI() as fake, pool_of(fake) as pool:
            fake.behave(sends(sse(*(chunk(word) for word in WORDS), chunk(None, "stop"), "[DONE]")))
            last = (await asked(pool))[-1]
            assert (last.prompt_tokens, last.completion_tokens) == (7, len(WORDS))

    run(test())


def test_a_key_comes_from_a_file_that_may_change_and_is_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        file = tmp_path / "key"
        file.write_text("sk-one\n")
        async with FakeOpenAI(key="sk-one") as fake, pool_of(fake, api_key_file=str(file), retries=1) as pool:
            assert await text_of(pool) == TEXT
            fake.key = "sk-two"
            error = await error_of(pool)
            assert error.status == 502, "the gateway's key is no business of the client's"
            file.write_text("sk-two\n")
            assert await text_of(pool) == TEXT
            assert fake.keys[-1] == "Bearer sk-two"
            fake.always = refuses(503)
            await error_of(pool)
            shown = f"{error} {error!r} {pool.state()} {caplog.text}"
            assert "sk-one" not in shown
            assert "sk-two" not in shown

    with caplog.at_level(logging.DEBUG, "serin"):
        run(test())


def test_a_release_is_not_loaded_on_servers_that_cannot_serve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def opened(*fakes: FakeOpenAI, **settings: Any) -> None:
        async with pool_of(*fakes, **settings):
            pass

    async def test() -> None:
        async with FakeOpenAI(models=("other", "third")) as fake:
            with pytest.raises(ServingError, match=r"has no model 'm' \(it has other, third\)"):
                await opened(fake)
        async with FakeOpenAI(key="sk-one") as fake:
            with pytest.raises(ServingError, match="refuses the key"):
                await opened(fake)
            with pytest.raises(ConfigError, match="'api_key_env'"):
                await opened(fake, api_key_env="SERIN_NO_SUCH_KEY")
            with pytest.raises(ConfigError, match="cannot be read"):
                await opened(fake, api_key_file="/nowhere/key")
            with pytest.raises(ConfigError, match="'ca_file'"):
                await opened(fake, ca_file="/nowhere/ca.pem")
            monkeypatch.setenv("SERIN_SOME_KEY", "sk-one")
            await opened(fake, api_key_env="SERIN_SOME_KEY")
        with pytest.raises(ServingError, match=r"No backend answered within 0\.1 s"):
            await opened(fake, ready_s=0.1)

    run(test())


def test_a_server_that_still_starts_is_waited_for() -> None:
    async def test() -> None:
        fake = FakeOpenAI()
        async with fake:
            port = fake.port
        assert port

        async def late() -> None:
            await asyncio.sleep(0.6)
            await fake.start()

        starting = asyncio.create_task(late())
        async with pool_of(fake, ready_s=10) as pool:
            assert await text_of(pool) == TEXT
        await starting
        await fake.stop()

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 by an authority that nobody knows, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_tls_is_checked_against_the_configured_authority(certificate: Path) -> None:
    async def test() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        async with FakeOpenAI(tls=context) as fake:
            async with pool_of(fake, ca_file=str(certificate / "cert.pem")) as pool:
                assert await text_of(pool) == TEXT
            with pytest.raises(ServingError, match="No backend answered"):
                async with pool_of(fake, ready_s=0):
                    pass
            await asyncio.sleep(0.1)

    run(test())
