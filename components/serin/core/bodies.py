"""Bodies of HTTP answers, read to their end but not beyond a limit."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp


async def read_body(response: "aiohttp.ClientResponse", most: int) -> bytes:
    """A body, or its first ``most`` bytes; a single ``read`` would give only what has arrived by then.

    Raises:
        aiohttp.ClientError: the connection broke.
    """
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size >= most:
            break
    return b"".join(parts)[:most]
