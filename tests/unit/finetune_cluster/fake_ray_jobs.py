"""The HTTP API of Ray Job Submission, on loopback: jobs that a test moves along."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

TOKEN = "ray-token"


class RayJob:
    """One submitted job."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.status, self.message, self.logs = "PENDING", "", ""
        self.stopped = threading.Event()

    @property
    def request_uri(self) -> str:
        return str(self.body["entrypoint"].split()[-1])


class FakeRayJobs:
    """A dashboard; a ``with`` statement long.

    Args:
        script: what happens to each job that is submitted; runs in a thread of its own.
    """

    def __init__(self, script: Callable[[RayJob], None]) -> None:
        self.script = script
        self.jobs: dict[str, RayJob] = {}
        self.submitted: list[str] = []
        self.stops: list[str] = []
        self.broken_answers = 0
        """So many requests from now on are answered with 503."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON, or a text as Ray's errors are."""
        if self.broken_answers:
            self.broken_answers -= 1
            return 503, "no agent"
        parts = path.removeprefix("/api/jobs/").split("/")
        if method == "POST" and not parts[0]:
            return self._submit(body)
        job = self.jobs.get(parts[0])
        if job is None:
            return 404, f"Job {parts[0]} does not exist"
        if parts[1:] == ["stop"]:
            self.stops.append(parts[0])
            job.stopped.set()
            return 200, {"stopped": True}
        if parts[1:] == ["logs"]:
            return 200, {"logs": job.logs}
        return 200, {"status": job.status, "message": job.message, "metadata": job.body["metadata"]}

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["submission_id"]
        if name in self.jobs:
            return (
                500,
                f"Traceback\nValueError: Job with submission_id {name} already exists. Please use a different one.",
            )
        job = self.jobs[name] = RayJob(body)
        self.submitted.append(name)
        threading.Thread(target=self.script, args=(job,), daemon=True).start()
        return 200, {"submission_id": name, "job_id": name}


def _handler(api: FakeRayJobs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, values = 401, "Unauthorized"
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                status, values = api.answer(self.command, urlsplit(self.path).path, json.loads(data) if data else {})
            answer = values.encode() if isinstance(values, str) else json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _respond

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return Handler
