"""A real MLflow server on loopback, and a proxy before it that is slow, answers 500, or is not there."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

START_TIMEOUT_S = 90.0
CHUNK_BYTES = 65536


class MlflowServer:
    """``mlflow server`` over a sqlite file; can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self._folder / 'server.db'}",
            "--artifacts-destination": str(self._folder / "artifacts"),
        }
        command = [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self._folder
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                with urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise TimeoutError("The MLflow server did not start: see server.log.")

    def kill(self) -> None:
        """SIGKILL to it and its workers."""
        if self._process:
            os.killpg(self._process.pid, 9)
            self._process.wait(10)
            self._process = None


class Proxy:
    """TCP before a server: passes on, waits first, answers 500 by itself, or closes its port."""

    def __init__(self, target: int) -> None:
        self._target, self.port = target, free_port()
        self.delay_s, self.broken = 0.0, False
        self._listener: socket.socket | None = None
        self.num_connections = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listen."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections."""
        if self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                if self.broken:
                    connection.recv(CHUNK_BYTES)
                    text = json.dumps({"error_code": "INTERNAL_ERROR", "message": "the database is on fire"})
                    head = f"HTTP/1.1 500 E\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
                    connection.sendall((head + text).encode())
                    return
                with socket.create_connection(("127.0.0.1", self._target), timeout=30) as upstream:
                    back = threading.Thread(target=self._copy, args=(upstream, connection, 0.0), daemon=True)
                    back.start()
                    self._copy(connection, upstream, self.delay_s)
                    back.join(30)
            except OSError:
                return

    def _copy(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                if self.broken:  # a connection that was kept open from better times
                    source.shutdown(socket.SHUT_RDWR)
                    return
                time.sleep(delay_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Connections:
    """Counts the connections that one thread makes, from an audit hook that stays for the process's life."""

    def __init__(self) -> None:
        self._thread, self.count = 0, 0
        sys.addaudithook(self._hear)

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Count meanwhile."""
        self._thread, self.count = threading.get_ident(), 0
        try:
            yield
        finally:
            self._thread = 0

    def _hear(self, event: str, arguments: tuple) -> None:
        if event == "socket.connect" and threading.get_ident() == self._thread:
            self.count += 1
