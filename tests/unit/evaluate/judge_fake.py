"""A judge model over HTTP that likes long answers, and whatever stands first a little too well."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeFake:
    """Prefers the longer answer; within ``bias`` characters, the one that stands first.

    ``failures`` are the statuses that the next requests get instead of a verdict (0: the connection is dropped; 1: a
    reply without a verdict); ``hangs`` makes it wait until it is closed.
    """

    def __init__(self, bias: int = 0) -> None:
        self.bias, self.failures, self.hangs = bias, list[int](), False
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.pause_s = 0.0
        """Between the two packets of a reply."""
        self._closing, self._lock = threading.Event(), threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, reply = fake.answer(self.path, self.headers.get("authorization", ""), body)
                if status == 0:
                    self.connection.close()
                    return
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                for part in (data[:20], data[20:]):  # as a network may cut it
                    self.wfile.write(part)
                    self.wfile.flush()
                    time.sleep(fake.pause_s)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "JudgeFake":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and reply."""
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            failure = self.failures.pop(0) if self.failures else None
        if self.hangs:
            self._closing.wait(30)
            return 0, {}
        if path != "/v1/chat/completions":
            return 404, {}
        if failure is not None and failure != 1:
            return failure, {"error": {"message": "no"}}
        text = "I would rather not say." if failure == 1 else self.verdict(json.loads(body["messages"][1]["content"]))
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    def verdict(self, material: dict[str, Any]) -> str:
        """What it says about two answers, with some talk around it."""
        longer = len(material["A"]) - len(material["B"])
        side = "A" if abs(longer) <= self.bias or longer > 0 else "B"
        if not longer and not self.bias:
            side = "tie"
        return f'Both are {{polite}}. {{"verdict": "{side}"}}'
