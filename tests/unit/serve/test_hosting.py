"""How a client that goes away ends the work on its answer, and nothing else does."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from serin.serve.hosting import Departure


class Client:
    """A request's client, as ASGI tells of it."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.told_more = False

    async def receive(self) -> dict[str, Any]:
        if not self.told_more:
            self.told_more = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


async def answering(client: Client) -> str:
    departure = Departure(client.receive)
    try:
        await asyncio.sleep(5)
        return "answered"
    except asyncio.CancelledError:
        if departure.ended_task():
            await asyncio.sleep(0)  # what is left to do can still wait for something
            return "the client is gone"
        raise
    finally:
        departure.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 4))


def test_work_ends_when_the_client_goes_away() -> None:
    async def test() -> None:
        client = Client()
        task = asyncio.create_task(answering(client))
        await asyncio.sleep(0.01)
        client.left.set()
        assert await task == "the client is gone"
        assert not task.cancelling()

    run(test())


@pytest.mark.parametrize("also_left", [False, True])
def test_a_server_that_ends_the_work_is_not_taken_for_a_client_that_left(also_left: bool) -> None:
    async def test() -> None:
        client = Client()
        task = asyncio.create_task(answering(client))
        await asyncio.sleep(0.01)
        if also_left:
            client.left.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test())


def test_a_client_that_leaves_after_the_watch_ended_disturbs_nothing() -> None:
    async def test() -> None:
        client = Client()
        departure = Departure(client.receive)
        await asyncio.sleep(0.01)
        client.left.set()
        departure.close()
        await asyncio.sleep(0.01)
        assert not departure.ended_task()

    run(test())
