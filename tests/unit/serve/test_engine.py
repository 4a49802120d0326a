import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from asking import Answer, call

from serin.core.errors import ServingError
from serin.core.generation import Generator, Row
from serin.serve.decoding import BusyError, Job, Scheduler
from serin.serve.engine import Engine
from serin.serve.supervisor import EngineProcess, EngineSettings

T = TypeVar("T")
PEFT_WARNING = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
ASKED = [{"role": "user", "content": "Tell me about kettles."}]
LONG = {"messages": ASKED, "max_tokens": 300, "temperature": 1.5}
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "other"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["intent", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator.load(tiny_model)


def row(generator: Generator, max_new_tokens: int = 20, **fields: Any) -> Row:
    return generator.row([{"role": "user", "content": "Hello"}], max_new_tokens=max_new_tokens, **fields)


async def text_of(job: Job) -> str:
    parts = []
    while pieces := await job.take():
        parts += [delta.text for _, delta in pieces]
    return "".join(parts)


def decoding(scheduler: Scheduler, scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a scenario gives while a scheduler runs."""

    async def run() -> T:
        task = asyncio.create_task(scheduler.run())
        try:
            return await asyncio.wait_for(scenario(), 60)
        finally:
            task.cancel()
            await asyncio.wait({task})

    return asyncio.run(run())


def test_a_full_queue_is_refused_and_what_waits_is_answered(generator: Generator):
    scheduler = Scheduler(generator, max_rows=1, max_waiting=2)

    async def scenario() -> list[str]:
        jobs = [scheduler.submit([row(generator)], ()) for _ in range(2)]
        with pytest.raises(BusyError):
            scheduler.submit([row(generator)], ())
        return [await text_of(job) for job in jobs]

    first, second = decoding(scheduler, scenario)
    assert first == second != ""


def test_leaving_early_ends_the_decoding_and_frees_the_place(generator: Generator):
    scheduler, long = Scheduler(generator, max_rows=1, max_waiting=2), row(generator, 400)

    async def scenario() -> str:
        job = scheduler.submit([long], ())
        await job.take()
        job.cancel()
        return await text_of(scheduler.submit([row(generator)], ()))

    assert decoding(scheduler, scenario)
    assert long.finish_reason == "cancelled"
    assert len(long.tokens) < 400


def test_leaving_while_waiting_takes_the_request_out_of_the_queue(generator: Generator):
    scheduler, left = Scheduler(generator, max_rows=1, max_waiting=1), row(generator, 400)

    async def scenario() -> str:
        first = scheduler.submit([row(generator, 30)], ())
        await first.take()
        scheduler.submit([left], ()).cancel()
        scheduler.submit([row(generator)], ()).cancel()
        last = scheduler.submit([row(generator)], ())
        return await text_of(first) and await text_of(last)

    assert decoding(scheduler, scenario)
    assert left.tokens == []


def test_a_client_that_leaves_before_a_whole_answer_ends_its_request(generator: Generator):
    scheduler, left = Scheduler(generator, max_rows=1, max_waiting=1), asyncio.Event()
    app, sent = Engine(scheduler, "base").app(), list[Any]()
    body = [json.dumps({"messages": ASKED}).encode()]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}

    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        left.set()  # once the request was read
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def scenario() -> None:  # no scheduler runs: nothing else can end it
        await asyncio.wait_for(app(scope, receive, send), 5)

    asyncio.run(scenario())
    assert left.is_set()
    assert sent[0]["status"] == 499


def test_a_request_that_cannot_be_decoded_fails_alone(generator: Generator):
    scheduler = Scheduler(generator, max_rows=4, max_waiting=4)

    async def scenario() -> str:
        good = scheduler.submit([row(generator)], ())
        with pytest.raises(Exception, match="tokens that the model does not have"):
            await text_of(scheduler.submit([Row([10**6], 5)], ()))
        return await text_of(good)

    assert decoding(scheduler, scenario)


def test_a_decoder_that_breaks_loses_its_batch_and_no_more(generator: Generator):
    class Odd(Row):
        @property
        def position(self) -> int:
            raise RuntimeError("out of order")

    scheduler = Scheduler(generator, max_rows=4, max_waiting=4)

    async def scenario() -> str:
        with pytest.raises(RuntimeError, match="out of order"):
            await text_of(scheduler.submit([Odd(row(generator).prompt, 5)], ()))
        return await text_of(scheduler.submit([row(generator)], ()))

    assert decoding(scheduler, scenario)


def test_long_steps_leave_the_loop_free(generator: Generator):
    scheduler = Scheduler(generator, max_rows=1, max_waiting=1)
    step, ticks = scheduler._decoder.step, []

    def slow() -> None:
        time.sleep(0.05)
        step()

    scheduler._decoder.step = slow

    async def scenario() -> None:
        job = scheduler.submit([row(generator, 12)], ())
        await job.take()
        task = asyncio.create_task(text_of(job))
        while not task.done():
            ticks.append(time.monotonic())
            await asyncio.sleep(0.005)

    decoding(scheduler, scenario)
    assert len(ticks) > 30, "the loop was blocked by steps"


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapter folders."""
    import torch
    from peft import LoraConfig, get_peft_model

    folders = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        get_peft_model(Generator.load(tiny_model).model, config).save_pretrained(folders[name])
    return folders


def test_an_engine_answers_refuses_when_full_and_ends(tiny_model: Path, tmp_path: Path):
    async def scenario() -> None:
        settings = EngineSettings(max_rows=1, max_waiting=1)
        engine = await EngineProcess.start(tiny_model, "base", settings, tmp_path)
        try:
            await asyncio.to_thread(check, engine.url)
        finally:
            await engine.stop()
        assert not engine.alive

    def check(url: str) -> None:
        def chat(_: int) -> Answer:
            return call(f"{url}/v1/chat/completions", LONG)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(chat, range(8)))
        assert {answer.status for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.body["error"]["code"] == "queue_full"
        too_long = {"messages": [{"role": "user", "content": "kettle " * 600}]}
        assert call(f"{url}/v1/chat/completions", too_long).body["error"]["code"] == "context_length_exceeded"
        assert call(f"{url}/v1/models").body["data"][0]["id"] == "base"
        assert call(f"{url}/health").status == 200
        _a_client_that_leaves_frees_its_row(url)

    asyncio.run(scenario())


def _a_client_that_leaves_frees_its_row(url: str) -> None:
    body = json.dumps({"messages": ASKED, "max_tokens": 480, "temperature": 1.9, "stream": True, "seed": 1}).encode()
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert b"200" in client.recv(2000)
    deadline = time.monotonic() + 10
    while call(f"{url}/health").body["active"]:
        assert time.monotonic() < deadline, "the row of a client that left goes on"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def engine(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, adapters: dict[str, Path]
) -> Iterator[EngineProcess]:
    """An engine of the tests that follow, with one adapter."""
    settings, first = EngineSettings(max_rows=3), {"first": adapters["first"]}
    folder = tmp_path_factory.mktemp("engine")
    engine = asyncio.run(EngineProcess.start(tiny_model, "base", settings, folder, adapters=first))
    yield engine
    asyncio.run(engine.stop())
    assert not engine.alive


@pytest.mark.filterwarnings(PEFT_WARNING)
def test_an_engine_takes_openai_fields_and_names_what_it_cannot_take(engine: EngineProcess):
    def chat(**fields: Any) -> Answer:
        return call(f"{engine.url}/v1/chat/completions", {"messages": ASKED, "max_tokens": 12, **fields})

    answer = chat(n=3, temperature=1, seed=5, logprobs=True, top_logprobs=2).body
    streamed = chat(n=3, temperature=1, seed=5, logprobs=True, top_logprobs=2, stream=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] > 12
    for number, choice in enumerate(answer["choices"]):
        assert choice["message"]["content"] == choice_text(streamed, number)
        assert choice["logprobs"]["content"] == choice_logprobs(streamed, number)
        assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    constrained = chat(response_format=wanted, max_tokens=60).body["choices"][0]
    assert constrained["finish_reason"] == "stop"
    assert set(json.loads(constrained["message"]["content"])) == {"intent", "days"}
    impossible = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}}
    _refused(chat(response_format=impossible), "response_format")
    assert chat(model="nobody").body["error"]["code"] == "model_not_found"
    _refused(chat(temprature=1), "temprature")
    _refused(chat(n=4), "n")


def choice_text(answer: Answer, number: int) -> str:
    deltas = [c["delta"] for event in answer.events for c in event["choices"] if c["index"] == number]
    return "".join(delta.get("content") or "" for delta in deltas)


def choice_logprobs(answer: Answer, number: int) -> list[Any]:
    choices = [c for event in answer.events for c in event["choices"] if c["index"] == number]
    return [entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", [])]


def _refused(answer: Answer, param: str) -> None:
    assert answer.status == 400
    assert answer.body["error"]["param"].startswith(param)


@pytest.mark.filterwarnings(PEFT_WARNING)
def test_adapters_come_and_go_while_an_engine_runs(engine: EngineProcess, tmp_path: Path, adapters: dict[str, Path]):
    async def scenario() -> None:
        base, one = await chat(engine, None), await chat(engine, "first")
        await engine.add_adapter("second", adapters["second"])
        await engine.add_adapter("second", adapters["second"])
        two = await chat(engine, "second")
        assert len({answer.text for answer in (base, one, two)}) == 3
        assert (await chat(engine, "base")).text == base.text
        await together(engine, {"base": base.text, "first": one.text, "second": two.text})
        with pytest.raises(ServingError, match="taken"):
            await engine.add_adapter("second", adapters["first"])
        with pytest.raises(ServingError, match="cannot be read"):
            await engine.add_adapter("third", tmp_path)
        await engine.remove_adapter("first")
        await engine.remove_adapter("first")
        assert (await chat(engine, "first")).status == 404
        assert list(engine.adapters) == ["second"]
        url, body = f"{engine.url}/admin/adapters", {"name": "x", "folder": str(adapters["first"])}
        for headers in ({}, {"authorization": "Bearer guess"}):
            assert (await asyncio.to_thread(call, url, body, headers)).status == 401

    async def chat(engine: EngineProcess, model: str | None) -> Answer:
        body = {"messages": ASKED, "max_tokens": 20, **({"model": model} if model else {})}
        return await asyncio.to_thread(call, f"{engine.url}/v1/chat/completions", body)

    async def together(engine: EngineProcess, expected: dict[str, str]) -> None:
        names = [*expected] * 4
        answers = await asyncio.gather(*(chat(engine, name) for name in names))
        assert [answer.text for answer in answers] == [expected[name] for name in names]

    asyncio.run(scenario())


def test_an_engine_without_a_model_says_what_is_missing(tmp_path: Path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ServingError, match=r"holds no config\.json"):
        asyncio.run(EngineProcess.start(tmp_path / "model", "test", EngineSettings(), tmp_path))
