"""The HTTP side of the fake server: answers, refusals, and faults that a test asks for."""

import json
import socket
import sys
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlparse

if TYPE_CHECKING:
    from .fake_kfp import FakeKubeflow


class Refusal(Exception):
    """An answer that is an error, in the form that grpc-gateway gives it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass
class Fault:
    """What goes wrong with the next requests that fit."""

    method: str
    path: str
    """Regular expression, searched in the path."""
    status: int = 0
    """0: the connection is cut."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "the fake was told to fail"
    done: bool = False
    """The request is carried out before its answer is lost."""
    late: bool = False
    """The request is carried out when the next one of its kind comes, as by a server that hung."""
    skip: int = 0
    """Let that many pass first."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """End connections that are kept alive, as a process that dies does."""
        for request in list(self._open):
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that a test cuts are no errors to print; all others are."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    kubeflow: "FakeKubeflow"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self) -> None:
        parsed = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(parsed.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = parsed.path
        fault = self.kubeflow.fault(self.command, path, done=False)
        if fault is not None and fault.late:
            self.kubeflow.held.append((self.command, path, query, body, self.headers))
        if self._go_wrong(fault, path):
            return
        try:
            value = self.kubeflow.handle(self.command, path, query, body, self.headers)
        except Refusal as refusal:
            self._send(refusal.status, _error(path, refusal.message), {})
            return
        if self._go_wrong(self.kubeflow.fault(self.command, path, done=True), ""):
            return
        self._send(200, value, {})

    def _go_wrong(self, fault: Fault | None, path: str) -> bool:
        if fault is None:
            return False
        if path:
            self.kubeflow.requests.append((self.command, path))
        if fault.status:
            self._send(fault.status, {"message": fault.message, "code": 14}, fault.headers)
        else:
            self.close_connection = True
        return True

    def _send(self, status: int, value: Any, headers: dict[str, str]) -> None:
        data = json.dumps(
            {k: v for k, v in value.items() if k != "tasks"} if isinstance(value, dict) else value
        ).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def _error(path: str, message: str) -> dict[str, Any]:
    """Uploads are not served by grpc-gateway, and their errors have another form."""
    if "/upload" in path:
        return {"error_message": message, "error_details": message}
    return {"error": message, "code": 2, "message": message}
