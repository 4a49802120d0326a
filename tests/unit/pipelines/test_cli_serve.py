import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from serin.core.errors import ConfigError, InputError, ServingError
from serin.core.policy import default_policy
from serin.serve.guardrails import Guardrails
from serin.serve.keys import KeyRing
from serin_pipelines.cli_serve import app
from serin_pipelines.load import Ask, at_rate, question_of, read_trace


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_a_key_is_printed_once_and_works_until_it_is_revoked(tmp_path: Path):
    file = tmp_path / "keys.json"
    made = as_json("key", "--name", "shop", "--label", "staff", "--tokens-per-day", "1000", "--file", str(file))
    assert made["key"] not in file.read_text()
    assert KeyRing(file).find(made["key"].encode()) is not None
    (listed,) = as_json("keys", "--file", str(file))["keys"]
    assert (listed["id"], listed["name"], listed["labels"]) == (made["id"], "shop", ["staff"])
    assert "sha256" not in listed
    assert made["key"] not in invoke("keys", "--file", str(file)).output
    assert as_json("revoke", made["id"], "--file", str(file)) == {"revoked": made["id"], "name": "shop"}
    assert KeyRing(file).find(made["key"].encode()) is None
    assert isinstance(invoke("revoke", made["id"], "--file", str(file)).exception, ConfigError)


def test_a_limit_that_is_none_is_refused_by_name(tmp_path: Path):
    refused = invoke("key", "--tokens-per-day", "0", "--file", str(tmp_path / "keys.json"))
    assert isinstance(refused.exception, ConfigError)
    assert "tokens_per_day" in str(refused.exception)


def test_a_trace_keeps_its_shape_at_every_rate(tmp_path: Path):
    file = tmp_path / "trace.csv.gz"
    file.write_bytes(gzip.compress(b"offset_s,ContextTokens,GeneratedTokens\n10,100,5\n11,200,6\n14,300,7\n"))
    asks = read_trace(file)
    assert asks == [Ask(10, 100, 5), Ask(11, 200, 6), Ask(14, 300, 7)]
    scaled = at_rate(asks, rate=3, seconds=1)
    assert [round(ask.offset_s, 3) for ask in scaled] == [0, 0.25, 1.0]
    longer = at_rate(asks, rate=10, seconds=2)
    assert len(longer) == 20
    assert [ask.prompt_tokens for ask in longer[:4]] == [100, 200, 300, 100]
    assert sorted(longer, key=lambda ask: ask.offset_s) == longer
    for wrong in (gzip.compress(b"a,b\n1,2\n"), gzip.compress(b"offset_s")[:-9], b"\x1f\x8b\x08\x00 no gzip at all"):
        file.write_bytes(wrong)
        with pytest.raises(InputError, match="offset_s"):
            read_trace(file)
    for nothing in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(InputError, match="is no file: name the trace itself"):
            read_trace(nothing)


class FakeEndpoint:
    """Streams five pieces 10 ms apart; refuses every tenth request."""

    def __init__(self) -> None:
        self.count, self.status = 0, 429
        self.bodies: list[dict[str, Any]] = []

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.count += 1
        if self.count % 10 == 0:
            return web.json_response({"error": {}}, status=self.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(5):
            await asyncio.sleep(0.01)
            await response.write(b'data: {"choices": [{"delta": {"content": "%d "}}]}\n\n' % number)
        await response.write(b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def endpoint() -> Iterator[tuple[FakeEndpoint, str]]:
    fake, ready, stop, found = FakeEndpoint(), threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        application = web.Application()
        application.router.add_get("/health", fake.health)
        application.router.add_post("/v1/chat/completions", fake.chat)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.append(runner.addresses[0][1])
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    yield fake, f"http://127.0.0.1:{found[0]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_a_replay_says_what_was_answered_how_fast_and_at_what_price(
    tmp_path: Path, endpoint: tuple[FakeEndpoint, str], monkeypatch: pytest.MonkeyPatch
):
    fake, url = endpoint
    rows = "".join(f"{number},{number * 10},{number}\n" for number in range(1, 40))
    trace = tmp_path / "trace.csv"
    trace.write_text("offset_s,ContextTokens,GeneratedTokens\n" + rows)
    monkeypatch.setenv("SERIN_API_KEY", "k")
    report = as_json(
        "bench", "--trace", str(trace), "--url", url, "--rates", "10,30", "--seconds", "1", "--p95-ms", "5000",
        "--tokens-scale", "1", "--price-per-1k-completion-tokens", "2",
    )  # fmt: skip
    slow, fast = report["levels"]
    assert (slow["requests"], fast["requests"]) == (10, 30)
    assert (slow["answered"], slow["shed"], slow["failed"]) == (9, 1, 0)
    assert fast["statuses"] == {"200": 27, "429": 3}
    assert slow["ttft_p50_ms"] >= 10
    assert slow["itl_p50_ms"] >= 5
    assert slow["cost_per_1k_answers"] == pytest.approx(10.0)
    assert report["qps_at_p95"] == 0  # one in ten was refused
    assert report["goodput_qps"] > 5
    assert max(body["max_tokens"] for body in fake.bodies) == 30
    assert len(fake.bodies[9]["messages"][0]["content"]) == 400
    assert len({body["messages"][0]["content"] for body in fake.bodies[10:]}) == 30
    table = invoke("bench", "--trace", str(trace), "--url", url, "--rates", "5", "--seconds", "1")
    assert "within" in table.output
    fake.status = 400
    refused = invoke("bench", "--trace", str(trace), "--url", url, "--rates", "5", "--seconds", "1")
    assert "1 with 400" in refused.output


def test_no_rail_takes_a_question_of_the_replay_for_something_else():
    guardrails = Guardrails(default_policy())
    asked = [question_of(number, chars) for number in range(9) for chars in (36, 120, 500, 2000)]
    assert [len(text) for text in asked[:4]] == [36, 120, 500, 2000]
    assert not [text for text in asked if guardrails.check("input", text).actions]


def test_a_replay_to_nobody_says_so(tmp_path: Path):
    trace = tmp_path / "trace.csv"
    trace.write_text("offset_s,ContextTokens,GeneratedTokens\n0,1,1\n1,1,1\n")
    for arguments, error in (
        (("--url", "http://127.0.0.1:9"), ServingError),
        (("--rates", "x"), ConfigError),
        (("--rates", "0"), ConfigError),
    ):
        assert isinstance(invoke("bench", "--trace", str(trace), *arguments).exception, error)
