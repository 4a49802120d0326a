"""What a client may not do to the gateway's connections, over real sockets."""

import asyncio
import datetime
import json
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serin.core.errors import ConfigError
from serin.serve.hosting import bound_socket
from serin.serve.listening import ConnectionLimits, TlsConfig, server_options

QUICK = ConnectionLimits(header_timeout_s=0.4, body_timeout_s=0.6, stall_timeout_s=0.5, keep_alive_s=1)
BIG = b"x" * (64 << 20)
handled: list[str] = []


async def echo(request: Request) -> Response:
    handled.append(request.url.path)
    return JSONResponse({"bytes": len(await request.body())})


async def big(_: Request) -> Response:
    return Response(BIG)


async def piecewise(_: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(6):
            yield b"%d" % number
            if number in (1, 3):
                await asyncio.sleep(0.05)

    return StreamingResponse(pieces())


@contextmanager
def serving(limits: ConnectionLimits = QUICK, tls: TlsConfig | None = None) -> Iterator[int]:
    app = Starlette(
        routes=[Route("/echo", echo, methods=["POST", "GET"]), Route("/big", big), Route("/pieces", piecewise)]
    )
    options = server_options(limits, tls or TlsConfig())
    listener = bound_socket("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    handled.clear()
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as found:
        yield found


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def everything(client: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    data = b""
    while piece := client.recv(1 << 16):
        data += piece
    return data


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_requests_within_the_limits_are_answered_on_one_connection(port: int):
    with connect(port) as client:
        for number in range(3):
            body = b"y" * (number * 1000)
            client.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            answer = client.recv(1 << 16)
            assert status_of(answer) == 200
            assert b"server:" not in answer.lower()
            assert b"access-control" not in answer.lower()
            time.sleep(0.5)  # longer than headers may take, shorter than a connection may be idle
        began = time.monotonic()
        assert everything(client) == b""
        assert time.monotonic() - began < 2


def test_a_connection_that_says_nothing_is_closed(port: int):
    began = time.monotonic()
    with connect(port) as client:
        assert everything(client) == b""
    assert time.monotonic() - began < 2


def test_headers_that_drip_are_cut_off(port: int):
    with connect(port) as client:
        client.sendall(b"GET /echo HTTP/1.1\r\n")
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012 - a slow client
            for number in range(40):
                client.sendall(b"x-%d: y\r\n" % number)
                time.sleep(0.05)
        assert time.monotonic() - began < 2


def test_a_body_that_drips_is_refused_in_openais_form(port: int):
    with connect(port) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n")
        for _ in range(4):
            client.sendall(b"y")
            time.sleep(0.05)
        answer = everything(client)
    assert status_of(answer) == 408
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["type"] == "invalid_request_error"
    assert b"x-serin-trace-id: " in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /echo HTTP/1.1\r\nhost: a\r\nx-large: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /echo?" + b"y" * 40_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(10_000)),
    ],
)
def test_headers_that_are_too_large_are_refused(port: int, head: bytes):
    before = len(handled)
    with connect(port) as client:
        client.sendall(head)
        assert status_of(everything(client)) == 431
    assert len(handled) == before


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(port: int):
    before = len(handled)
    with connect(port) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 2000000\r\n\r\nyyy")
        assert status_of(everything(client)) == 413
    assert len(handled) == before


def test_a_client_that_does_not_read_its_answer_loses_it(port: int):
    with connect(port) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        time.sleep(1.5)
        received = 0
        try:
            while piece := client.recv(1 << 20):
                received += len(piece)
        except ConnectionResetError:
            pass
    assert received < len(BIG)


def test_a_client_that_reads_slowly_gets_all_of_it(port: int):
    with connect(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        received, began = 0, time.monotonic()
        while piece := client.recv(1 << 20):
            received += len(piece)
            if time.monotonic() - began < 1.2:
                time.sleep(0.1)
    assert received > len(BIG)


def test_other_requests_are_answered_while_slow_ones_hang(port: int):
    slow = [connect(port) for _ in range(50)]
    for client in slow:
        client.sendall(b"POST /echo HTTP/1.1\r\n")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/echo", timeout=2) as answer:
        assert answer.status == 200
    for client in slow:
        client.close()


def certificate(folder: Path, name: str) -> TlsConfig:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    tls = TlsConfig(cert_file=str(folder / f"{name}.pem"), key_file=str(folder / f"{name}.key"))
    Path(tls.cert_file).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    Path(tls.key_file).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    Path(tls.key_file).chmod(0o600)
    return tls


def test_tls_is_a_matter_of_two_files(tmp_path: Path):
    tls = certificate(tmp_path, "gateway")
    with serving(QUICK, tls) as port:
        context = ssl.create_default_context(cafile=tls.cert_file)
        with urllib.request.urlopen(f"https://localhost:{port}/echo", context=context, timeout=5) as answer:
            assert answer.status == 200
        old = ssl.create_default_context(cafile=tls.cert_file)
        with pytest.warns(DeprecationWarning, match="TLS"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with connect(port) as client, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(client, server_hostname="localhost")
        with connect(port) as client:
            client.sendall(b"GET /echo HTTP/1.1\r\nhost: a\r\n\r\n")
            assert not client.recv(100).startswith(b"HTTP/1.1 200")


def test_files_that_do_not_belong_together_are_refused_before_listening(tmp_path: Path):
    one, other = certificate(tmp_path, "one"), certificate(tmp_path, "other")
    for tls in (
        TlsConfig(cert_file=one.cert_file, key_file=other.key_file),
        TlsConfig(cert_file=one.cert_file, key_file=str(tmp_path / "absent")),
    ):
        with pytest.raises(ConfigError, match="cannot be used"):
            server_options(QUICK, tls)
    with pytest.raises(ConfigError, match="key_file"):
        TlsConfig.load({"cert_file": one.cert_file})


def test_what_is_written_at_once_goes_out_at_once_and_nothing_waits_for_what_comes_later() -> None:
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(2):
            client.sendall(b"GET /pieces HTTP/1.1\r\nhost: x\r\n\r\n")
            reads = [client.recv(65536)]
            while not reads[-1].endswith(b"0\r\n\r\n"):
                reads.append(client.recv(65536))
            head, _, beginning = reads[0].partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            chunks = [b"1\r\n%d\r\n" % number for number in range(6)]
            assert beginning == chunks[0] + chunks[1]
            assert reads[1] == chunks[2] + chunks[3]
            assert b"".join(reads[2:]) == chunks[4] + chunks[5] + b"0\r\n\r\n"


def test_heads_without_a_body_and_interim_answers_are_not_held_back() -> None:
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(5)
        client.sendall(b"HEAD /pieces HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(65536).endswith(b"GMT\r\n\r\n")
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
