import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asking import Answer, call

from serin.core.errors import ServingError
from serin.core.generation import Generator, Row
from serin.serve.decoding import BusyError, DecodingThread
from serin.serve.supervisor import EngineProcess, EngineSettings

LONG = {"messages": [{"role": "user", "content": "Tell me about kettles."}], "max_tokens": 300, "temperature": 1.5}


@pytest.fixture
def thread(tiny_model: Path) -> Iterator[DecodingThread]:
    thread = DecodingThread(Generator.load(tiny_model), max_rows=1, max_waiting=2)
    yield thread
    thread.stop()
    if thread.is_alive():
        thread.join(10)


def row(thread: DecodingThread, max_new_tokens: int = 20) -> Row:
    return thread.generator.row([{"role": "user", "content": "Hello"}], max_new_tokens=max_new_tokens)


async def text_of(job) -> str:
    return "".join([delta.text async for delta in job.deltas()])


def test_a_full_queue_is_refused_and_what_waits_is_answered(thread: DecodingThread):
    async def scenario() -> list[str]:
        jobs = [thread.submit(row(thread), ()) for _ in range(2)]
        with pytest.raises(BusyError):
            thread.submit(row(thread), ())
        thread.start()
        return [await text_of(job) for job in jobs]

    first, second = asyncio.run(scenario())
    assert first == second != ""


def test_leaving_early_ends_the_decoding_and_frees_the_place(thread: DecodingThread):
    async def scenario() -> tuple[Row, str]:
        thread.start()
        long = row(thread, 400)
        deltas = thread.submit(long, ()).deltas()
        await anext(deltas)
        await deltas.aclose()
        return long, await text_of(thread.submit(row(thread), ()))

    left, answered = asyncio.run(scenario())
    assert left.finish_reason == "cancelled"
    assert len(left.tokens) < 400
    assert answered


def test_a_request_that_breaks_the_decoder_fails_alone(thread: DecodingThread):
    async def scenario() -> str:
        thread.start()
        with pytest.raises(IndexError):
            await text_of(thread.submit(Row([10**6], 5), ()))
        return await text_of(thread.submit(row(thread), ()))

    assert asyncio.run(scenario())


def test_an_engine_answers_refuses_when_full_and_ends(tiny_model: Path, tmp_path: Path):
    async def scenario() -> None:
        settings = EngineSettings(max_rows=1, max_waiting=1)
        engine = await EngineProcess.start(tiny_model, "test", settings, tmp_path)
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
        assert call(f"{url}/v1/models").body["data"][0]["id"] == "test"
        assert call(f"{url}/health").status == 200

    asyncio.run(scenario())


def test_an_engine_without_a_model_says_what_is_missing(tmp_path: Path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ServingError, match=r"holds no config\.json"):
        asyncio.run(EngineProcess.start(tmp_path / "model", "test", EngineSettings(), tmp_path))
