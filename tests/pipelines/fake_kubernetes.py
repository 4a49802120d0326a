"""Fakes over real HTTP, on loopback, for the preflight: a Kubernetes API, a service with fixed answers, a bucket."""

import json
import threading
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


class Served(AbstractContextManager["Served"]):
    """An HTTP server on a free port of loopback, for the length of a ``with`` statement."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[tuple[str, str]] = []
        """Method and path of each request."""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        raise NotImplementedError

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                served.requests.append((self.command, self.path))
                status, kind, data = served.answer(self.command, self.path, headers, body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _respond

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        return Handler


def as_json(status: int, values: Any) -> Answer:
    return status, "application/json", json.dumps(values).encode()


class FakeKubernetes(Served):
    """The part of a Kubernetes API server that the preflight asks, for one namespace; change its fields at will."""

    TOKEN = "kube-token"

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.token = self.TOKEN
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that the access review says no to."""
        self.forbidden: set[str] = set()
        """Last parts of paths that answer 403."""
        self.broken: set[str] = set()
        """Last parts of paths that answer 200 with a list instead of an object."""
        self.groups: dict[str, dict[str, list[str]]] = {
            "ray.io": {"v1": ["rayjobs", "rayclusters"], "v1alpha1": ["rayjobs"]},
            "serving.kserve.io": {
                "v1beta1": ["inferenceservices"],
                "v1alpha1": ["llminferenceservices"],
                "v1alpha2": ["llminferenceservices"],
            },
            "gateway.networking.k8s.io": {"v1": ["gateways", "httproutes"]},
            "pipelines.kubeflow.org": {"v2beta1": ["pipelines", "pipelineversions"]},
            "monitoring.coreos.com": {"v1": ["servicemonitors"]},
        }
        self.nodes = [gpu_node("gpu-1", 4)]
        self.quotas: list[dict[str, Any]] = []
        self.local_queues: list[dict[str, Any]] = []
        self.cluster_queues: dict[str, dict[str, Any]] = {}
        self.storage_classes = [storage_class("fast", default=True), storage_class("slow")]
        self.names: dict[str, set[str]] = {"serviceaccounts": set(), "secrets": set()}
        self.secret_values_read = 0

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        """Writes a kubeconfig that leads here."""
        named = {"name": "fake", "cluster": {"server": self.url}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": self.namespace}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [named],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [context],
            "current-context": "fake",
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if headers.get("authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized")
        parts = urlsplit(path)
        last = parts.path.rsplit("/", 1)[-1]
        if last in self.forbidden:
            return status(403, f"{last} is forbidden: User cannot list it")
        if last in self.broken:
            return as_json(200, [])
        if method == "POST":
            return self._review(last, json.loads(body))
        return self._get(parts.path, parse_qs(parts.query), headers.get("accept", ""))

    def _review(self, kind: str, body: dict[str, Any]) -> Answer:
        if kind == "selfsubjectreviews":
            return as_json(201, {"status": {"userInfo": {"username": f"system:serviceaccount:{self.namespace}:ci"}}})
        assert kind == "selfsubjectaccessreviews"
        asked = body["spec"]["resourceAttributes"]
        assert asked["namespace"] == self.namespace
        return as_json(201, {"status": {"allowed": (asked["verb"], asked["resource"]) not in self.denied}})

    def _get(self, path: str, query: dict[str, list[str]], accept: str) -> Answer:
        inside = f"/api/v1/namespaces/{self.namespace}"
        queues = "/apis/kueue.x-k8s.io/v1beta2"
        lists = {
            "/api/v1/nodes": lambda: self._selected(query),
            f"{inside}/resourcequotas": lambda: self.quotas,
            "/apis/storage.k8s.io/v1/storageclasses": lambda: self.storage_classes,
            f"{queues}/namespaces/{self.namespace}/localqueues": lambda: self.local_queues,
        }
        if path == "/version":
            return as_json(200, {"gitVersion": "v1.34.1"})
        if path in lists:
            return as_json(200, {"items": lists[path]()})
        if path.startswith(f"{queues}/clusterqueues/"):
            return self._found(self.cluster_queues.get(path.rsplit("/", 1)[-1]))
        if path.startswith(f"{inside}/"):
            return self._named(*path.removeprefix(f"{inside}/").split("/"), accept)
        return self._discovery(path.removeprefix("/apis/").split("/"))

    def _named(self, plural: str, name: str, accept: str) -> Answer:
        if name not in self.names[plural]:
            return status(404, f'{plural} "{name}" not found')
        if plural == "secrets" and "as=PartialObjectMetadata" not in accept:
            self.secret_values_read += 1
            return as_json(200, {"metadata": {"name": name}, "data": {"key": "dG9wIHNlY3JldA=="}})
        return as_json(200, {"kind": "PartialObjectMetadata", "metadata": {"name": name}})

    def _discovery(self, parts: list[str]) -> Answer:
        versions = self.groups.get(parts[0])
        if versions is None or (parts[1:] and parts[1] not in versions):
            return status(404, "the server could not find the requested resource")
        if parts[1:]:
            return as_json(200, {"resources": [{"name": plural} for plural in versions[parts[1]]]})
        return as_json(200, {"versions": [{"version": version} for version in versions]})

    def _selected(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = [pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair]
        return [node for node in self.nodes if all(node["metadata"]["labels"].get(k) == v for k, v in wanted)]

    def _found(self, value: Any) -> Answer:
        return as_json(200, value) if value else status(404, "not found")


def status(code: int, message: str) -> Answer:
    return as_json(code, {"kind": "Status", "status": "Failure", "message": message, "code": code})


def gpu_node(name: str, gpus: int, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"serin.dev/accelerator": "gpu"}},
        "spec": spec,
        "status": {"allocatable": {"cpu": "16", "nvidia.com/gpu": str(gpus)}},
    }


def quota(hard: int, used: int) -> dict[str, Any]:
    key = "requests.nvidia.com/gpu"
    return {"metadata": {"name": "compute"}, "status": {"hard": {key: str(hard)}, "used": {key: str(used)}}}


def storage_class(name: str, *, default: bool = False, **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"} if default else None,
        },
        "provisioner": "csi.example",
        "allowVolumeExpansion": True,
        "volumeBindingMode": "WaitForFirstConsumer",
        **fields,
    }


class FakeService(Served):
    """Fixed answers by path; anything else is 404.  With ``login``, what the Authorization header must be."""

    def __init__(self, answers: dict[str, Answer], login: str = "") -> None:
        super().__init__()
        self.answers, self.login = answers, login

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if self.login and headers.get("authorization") != self.login:
            return 401, "text/html", b"<p>Who are you?</p>"
        return self.answers.get(urlsplit(path).path, (404, "text/plain", b"nothing here"))


class ReadOnlyBucket(Served):
    """An S3 bucket that can be listed, is empty, and refuses every write."""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if method == "GET":
            return 200, "application/xml", b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        return 403, "application/xml", b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class ForgetfulBucket(Served):
    """An S3 bucket that ignores the conditions of writes, and with ``keeps`` also every removal."""

    def __init__(self, *, keeps: bool = False) -> None:
        super().__init__()
        self.keys: set[str] = set()
        self.keeps = keeps

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        key = urlsplit(path).path.split("/", 2)[-1]
        if method == "PUT":
            self.keys.add(key)
            return 200, "application/xml", b""
        if method == "DELETE":
            if not self.keeps:
                self.keys.discard(key)
            return 204, "application/xml", b""
        entries = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in sorted(self.keys))
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
        return 200, "application/xml", body
