"""Tokens, retries and refusals, over real HTTP with the real client."""

import ipaddress
import json
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serin.core.errors import ConfigError, UnavailableError
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow import runs
from serin_pipelines.kubeflow.client import Kubeflow, KubeflowError
from serin_pipelines.kubeflow.packages import Package
from serin_pipelines.kubeflow.tokens import find_source
from serin_pipelines.kubeflow.transport import repeatable, retry_after_s

from .conftest import QUICK
from .fake_kfp import FakeKubeflow


class Issuer:
    """GitHub's token endpoint: answers each request with a token of its own."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """(audience, authorization) of each request."""
        self.issued: list[str] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                audience = parse_qs(urlparse(self.path).query).get("audience", [""])[0]
                issuer.asked.append((audience, self.headers.get("Authorization", "")))
                issuer.issued.append(f"jwt-{len(issuer.issued) + 1}")
                data = json.dumps({"value": issuer.issued[-1]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token?api-version=2"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A running issuer."""
    running = Issuer()
    yield running
    running.stop()


def test_connecting_sends_nothing_warns_of_nothing_and_reads_no_settings_of_earlier_sessions(
    fake: FakeKubeflow, environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Kubeflow.connect(environment) as kubeflow:
            assert kubeflow.kfp.get_user_namespace() == "serin-test"
    assert fake.requests == []
    assert capsys.readouterr().out == ""


def test_a_token_in_the_environment_is_sent(
    fake: FakeKubeflow, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tokens = {"the-secret"}
    monkeypatch.setenv("KFP_TOKEN", "the-secret")
    with Kubeflow.connect(environment, patience=QUICK) as kubeflow:
        assert runs.experiment(kubeflow, "serin-test") in fake.experiments


def test_a_token_that_is_not_taken_is_one_sentence_without_the_token(
    fake: FakeKubeflow, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tokens = {"another"}
    monkeypatch.setenv("KFP_TOKEN", "the-secret")
    with (
        Kubeflow.connect(environment, patience=QUICK) as kubeflow,
        pytest.raises(KubeflowError, match=r"\(401\): the token from KFP_TOKEN is not taken") as caught,
    ):
        runs.experiment(kubeflow, "serin-test")
    assert "the-secret" not in f"{caught.value!r} {caught.value.__cause__} {kubeflow.source!r}"
    assert len(fake.requests) == 1


def test_without_a_token_the_sentence_says_where_one_would_come_from(fake: FakeKubeflow, kubeflow: Kubeflow) -> None:
    fake.tokens = {"another"}
    with pytest.raises(KubeflowError, match="no token was found; set KFP_TOKEN or KFP_TOKEN_FILE"):
        runs.experiment(kubeflow, "serin-test")


def test_a_token_file_that_rotates_is_read_again(
    fake: FakeKubeflow, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    fake.tokens = {"first"}
    monkeypatch.setenv("KFP_TOKEN_FILE", str(file))
    with Kubeflow.connect(environment, patience=QUICK) as kubeflow:
        made = runs.experiment(kubeflow, "serin-test")
        fake.tokens = {"second"}
        file.write_text("second\n")
        assert runs.experiment(kubeflow, "serin-test") == made
        fake.tokens = {"third"}
        with pytest.raises(KubeflowError, match="the token from the file in KFP_TOKEN_FILE is not taken"):
            runs.experiment(kubeflow, "serin-test")


@pytest.mark.parametrize("text", ["the-secret\nX-Other: 1", "the-secret two", "the-secrët", ""])
def test_what_is_no_token_is_refused_without_showing_it(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "token").write_text(text)
    monkeypatch.setenv("KFP_TOKEN_FILE", str(tmp_path / "token"))
    with (
        Kubeflow.connect(environment, patience=QUICK) as kubeflow,
        pytest.raises(UnavailableError, match="What the file in KFP_TOKEN_FILE gives is no bearer token") as caught,
    ):
        runs.experiment(kubeflow, "serin-test")
    assert "secr" not in str(caught.value)


def test_a_token_file_that_cannot_be_read_is_one_sentence(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_TOKEN_FILE", str(tmp_path / "none"))
    with (
        Kubeflow.connect(environment, patience=QUICK) as kubeflow,
        pytest.raises(UnavailableError, match=r"which cannot be read: No such file or directory\."),
    ):
        runs.experiment(kubeflow, "serin-test")


def test_the_pods_service_account_gives_a_token(
    fake: FakeKubeflow, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "projected"
    file.write_text("of-the-pod")
    fake.tokens = {"of-the-pod"}
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    with Kubeflow.connect(environment, patience=QUICK) as kubeflow:
        assert kubeflow.source is not None
        assert kubeflow.source.name == "the pod's service account"
        runs.experiment(kubeflow, "serin-test")
    assert len(fake.experiments) == 1


def test_a_ci_job_gets_a_token_from_its_oidc_issuer_and_another_when_it_has_expired(
    fake: FakeKubeflow, environment: Environment, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", issuer.url)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job")
    monkeypatch.setenv("KFP_OIDC_AUDIENCE", "https://kubeflow.example/?a=b")
    fake.tokens = {"jwt-1"}
    with Kubeflow.connect(environment, patience=QUICK) as kubeflow:
        runs.experiment(kubeflow, "serin-test")
        fake.tokens = {"jwt-2"}
        runs.experiment(kubeflow, "serin-test")
    assert issuer.asked == [("https://kubeflow.example/?a=b", "Bearer of-the-job")] * 2


def test_an_issuer_that_does_not_answer_is_one_sentence(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, issuer: Issuer
) -> None:
    issuer.stop()
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", issuer.url)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job")
    with (
        Kubeflow.connect(environment, patience=QUICK) as kubeflow,
        pytest.raises(UnavailableError, match="OIDC issuer does not answer"),
    ):
        runs.experiment(kubeflow, "serin-test")


def test_a_jobs_token_does_not_go_to_an_issuer_over_plain_http(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "http://issuer.example/token")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job")
    with (
        Kubeflow.connect(environment, patience=QUICK) as kubeflow,
        pytest.raises(UnavailableError, match="ACTIONS_ID_TOKEN_REQUEST_URL is no https"),
    ):
        runs.experiment(kubeflow, "serin-test")


def test_no_token_goes_over_plain_http_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_source("http://kubeflow.example") is None
    monkeypatch.setenv("KFP_TOKEN", "the-secret")
    with pytest.raises(ConfigError, match=r"plain HTTP .* use https://, or set KFP_ALLOW_HTTP=1"):
        find_source("http://kubeflow.example/pipeline")
    assert find_source("http://127.0.0.1:8080") is not None
    assert find_source("https://kubeflow.example/pipeline") is not None
    monkeypatch.setenv("KFP_ALLOW_HTTP", "1")
    assert find_source("http://ml-pipeline.kubeflow.svc:8888") is not None


def test_an_environment_without_an_address_says_so() -> None:
    with pytest.raises(ConfigError, match="has no kfp_host"):
        Kubeflow.connect(Environment(name="test"))
    with pytest.raises(ConfigError, match=r"write https://kubeflow\.example"):
        Kubeflow.connect(Environment(name="test"), "kubeflow.example")


def test_retry_after_is_honoured_for_every_request(fake: FakeKubeflow, kubeflow: Kubeflow) -> None:
    fake.fail("GET", "/experiments", status=429, headers={"Retry-After": "0.3"})
    fake.fail("POST", "/experiments", status=429, headers={"Retry-After": "0.3"})
    start = time.monotonic()
    runs.experiment(kubeflow, "serin-test")
    assert time.monotonic() - start >= 0.6
    assert len(fake.experiments) == 1


def test_a_server_that_asks_for_too_long_a_wait_is_refused(fake: FakeKubeflow, kubeflow: Kubeflow) -> None:
    fake.fail("GET", "/experiments", status=429, headers={"Retry-After": "3600"}, times=100, message="slow down")
    with pytest.raises(KubeflowError, match=r"\(429\): slow down"):
        runs.find_experiment(kubeflow, "serin-test")
    assert len(fake.requests) == 1


def test_reading_survives_a_burst_of_errors_but_not_a_longer_one(fake: FakeKubeflow, kubeflow: Kubeflow) -> None:
    fake.fail("GET", "/experiments", status=503, times=3)
    assert runs.find_experiment(kubeflow, "serin-test") is None
    assert len(fake.requests) == 4
    fake.fail("GET", "/experiments", status=500, times=4, message="database is down")
    with pytest.raises(KubeflowError, match=r"refuses to find the experiment 'serin-test' \(500\): database is down\."):
        runs.find_experiment(kubeflow, "serin-test")


def test_a_certificate_of_ones_own_authority_is_taken_when_it_is_named(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certify(tmp_path)
    fake = FakeKubeflow()
    fake.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    fake.tls.load_cert_chain(certificate, key)
    with fake:
        with (
            Kubeflow.connect(environment, fake.host, QUICK) as kubeflow,
            pytest.raises(KubeflowError, match=r"certificate of https://.* is not taken .*: set SSL_CERT_FILE"),
        ):
            runs.experiment(kubeflow, "serin-test")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Kubeflow.connect(environment, fake.host, QUICK) as kubeflow:
            runs.experiment(kubeflow, "serin-test")
    assert len(fake.experiments) == 1


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "serin test")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "certificate.pem", folder / "key.pem"


def test_runs_that_have_not_ended_are_found_on_servers_that_do_not_filter_by_state_too(
    fake: FakeKubeflow, kubeflow: Kubeflow, package: Package
) -> None:
    experiment_id = runs.experiment(kubeflow, "serin-test")
    order = runs.Order(runs.publish(kubeflow, package), experiment_id, "a run", {"source_uri": "s3://b/s"})
    first, second = (runs.start(kubeflow, order, lambda _: None).run_id for _ in range(2))
    fake.set_state(first, "SUCCEEDED")
    assert [run.run_id for run in kubeflow.active_runs(experiment_id)] == [second]
    fake.filter_keys.remove("state")
    fake.page_limit = 1
    assert [run.run_id for run in kubeflow.active_runs(experiment_id)] == [second]


def test_what_may_be_sent_twice() -> None:
    base = "https://kubeflow.example:443/apis/v2beta1"
    assert repeatable("GET", f"{base}/runs?page_size=10")
    assert repeatable("DELETE", f"{base}/recurringruns/1")
    assert repeatable("POST", f"{base}/recurringruns/1:disable")
    assert not repeatable("POST", f"{base}/runs")
    assert not repeatable("POST", f"{base}/pipelines/upload_version?name=a%3Ab")


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s({"Retry-After": "2"}) == 2.0
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({}) is None


def test_a_page_instead_of_the_api_is_one_sentence(fake: FakeKubeflow, kubeflow: Kubeflow) -> None:
    fake.fail("GET", "/experiments", status=200, message="<html>", headers={"Content-Type": "text/html"})
    with pytest.raises(KubeflowError, match="does not answer like the API of Kubeflow Pipelines when asked to find"):
        runs.find_experiment(kubeflow, "serin-test")
    fake.fail("GET", "/experiments", status=302, headers={"Location": "https://login.example/"})
    with pytest.raises(KubeflowError, match=r"sends us elsewhere \(HTTP 302\), often to a login page"):
        runs.find_experiment(kubeflow, "serin-test")
    fake.fail("GET", "/experiments", status=403, message="User is not authorized")
    with pytest.raises(KubeflowError, match=r"may not find the experiment .* namespace 'serin-test' \(403"):
        runs.find_experiment(kubeflow, "serin-test")
