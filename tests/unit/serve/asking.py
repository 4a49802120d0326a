"""What the tests of the endpoint ask, and what they get."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer's text, streamed or not."""
        if self.events:
            choices = [choice for event in self.events for choice in event.get("choices", [])]
            return "".join(choice["delta"].get("content") or "" for choice in choices)
        return str(self.body["choices"][0]["message"]["content"])


def call(url: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None) -> Answer:
    """One HTTP request; error statuses are answers too."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return _answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, dict(error.headers), error.read())


def ask(url: str, question: str = "Where is my order?", session: str | None = None, **fields: Any) -> Answer:
    """One chat request."""
    body = {"messages": [{"role": "user", "content": question}], **fields}
    return call(f"{url}/v1/chat/completions", body, {"x-session-id": session} if session else {})


def _answer(status: int, headers: dict[str, str], data: bytes) -> Answer:
    headers = {name.lower(): value for name, value in headers.items()}
    if not headers.get("content-type", "").startswith("text/event-stream"):
        is_json = headers.get("content-type", "").startswith("application/json")
        return Answer(status, headers, json.loads(data) if is_json else data.decode())
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    return Answer(status, headers, lines, [json.loads(line) for line in lines if line != "[DONE]"])
