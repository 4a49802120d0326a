"""A Kubernetes API over real HTTP on loopback, for one namespace: objects with resource versions and generations.

It admits what the project's roles allow and, where they are at hand, what the CustomResourceDefinitions know; it drops
unknown fields of kinds that are said to be old; a function plays the controllers, after each write.  It can be gone,
busy, contended, or lose its answers.
"""

import copy
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml
from tests.manifests import schemas

from serin.core.kubernetes import KubernetesApi

REPOSITORY = Path(__file__).resolve().parents[4]
NAMESPACE, TOKEN = "serin-test", "deployer-token"
Object = dict[str, Any]
PATH = re.compile(
    r"/(?:apis/(?P<group>[^/]+)|api)/(?P<version>v[^/]+)/namespaces/(?P<ns>[^/]+)/(?P<kind>\w+)(?:/(?P<name>[^/]+))?"
)
KINDS = {
    "inferenceservices": "InferenceService",
    "llminferenceservices": "LLMInferenceService",
    "httproutes": "HTTPRoute",
    "leases": "Lease",
    "services": "Service",
    "pods": "Pod",
    "revisions": "Revision",
}


def rules() -> list[Object]:
    """What the service account of rollouts may do, from the project's own roles."""
    found: list[Object] = []
    for name in ("deploy", "workflow"):
        text = (REPOSITORY / "manifests" / "base" / "rbac" / f"{name}.yaml").read_text()
        found += [rule for item in yaml.safe_load_all(text) for rule in item.get("rules", [])]
    return found


class FakeCluster:
    """The API server; a ``with`` statement long."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        """By resource and name."""
        self.history: list[dict[tuple[str, str], Object]] = []
        """All objects after each write."""
        self.controllers: Callable[[FakeCluster], None] = lambda cluster: None
        """Play what the cluster's controllers do about the objects."""
        self.unknown_fields: set[str] = set()
        """Fields of ``spec`` that this cluster's definitions do not have: dropped without a word."""
        self.schema_failures = 0
        self.fail_next: list[int] = []
        """HTTP statuses for the next requests; 0 breaks the connection before anything is done."""
        self.lose_next_answer = False
        """The next write is done, and its answer is lost."""
        self.touch_before_put = 0
        """So many of the next replacements find that a controller has just written a status."""
        self.requests: list[tuple[str, str]] = []
        self.rules = rules()
        self._version = 100
        self._lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the port of before."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Go away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def api(self, kind: type[KubernetesApi] = KubernetesApi) -> KubernetesApi:
        """A client of this server."""
        from kubernetes import client

        configuration = client.Configuration(host=f"http://127.0.0.1:{self._port}")
        configuration.api_key = {"authorization": f"Bearer {TOKEN}"}
        return kind(client.ApiClient(configuration), NAMESPACE)

    def put(self, resource: str, item: Object) -> None:
        """An object, written by somebody else than the project."""
        with self._lock:
            before = self.objects.get((resource, item["metadata"]["name"]), {"metadata": {}, "spec": None})
            generation = before["metadata"].get("generation", 0) + (before["spec"] != item.get("spec"))
            self._version += 1
            metadata = {**item["metadata"], "namespace": NAMESPACE, "generation": generation}
            metadata["resourceVersion"] = str(self._version)
            self.objects[resource, item["metadata"]["name"]] = {**copy.deepcopy(item), "metadata": metadata}
            self.history.append(copy.deepcopy(self.objects))

    def edit(self, resource: str, name: str, change: Callable[[Object], None]) -> None:
        """Somebody edits an object by hand."""
        item = copy.deepcopy(self.objects[resource, name])
        change(item)
        self.put(resource, item)

    def status(self, resource: str, name: str, **status: Any) -> None:
        """A controller writes parts of a status."""
        item = self.objects[resource, name]
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        item["status"] = {**item.get("status", {}), **status}

    def forget(self, resource: str, name: str) -> None:
        """An object is deleted."""
        self.objects.pop((resource, name), None)

    def writes(self) -> list[str]:
        """Paths of what the project wrote."""
        return [path for method, path in self.requests if method in ("PUT", "POST") and "dryRun" not in path]

    def answer(self, method: str, path: str, query: dict[str, str], body: Object) -> tuple[int, Object]:
        """What the API server says."""
        found = PATH.fullmatch(path)
        if not found or found["ns"] != NAMESPACE or found["kind"] not in KINDS:
            return _failure(404, "the server could not find the requested resource")
        resource, name = found["kind"], found["name"]
        verb = {"POST": "create", "PUT": "update"}.get(method) or ("get" if name else "list")
        if not self._allowed(found["group"] or "", resource, verb, name):
            return _failure(403, f'{resource} "{name}" is forbidden: User "serin-deploy" cannot {verb} it')
        with self._lock:
            if verb == "list":
                items = [item for (kind, _), item in self.objects.items() if kind == resource]
                return 200, {"items": [item for item in items if _selected(item, query.get("labelSelector", ""))]}
            if verb == "get":
                item = self.objects.get((resource, name))
                return (200, item) if item else _failure(404, f'{resource} "{name}" not found')
            return self._write(resource, verb, body, dry="dryRun" in query)

    def _write(self, resource: str, verb: str, body: Object, *, dry: bool) -> tuple[int, Object]:
        name = body["metadata"]["name"]
        before = self.objects.get((resource, name))
        if verb == "update" and self.touch_before_put and before is not None and resource != "leases":
            self.touch_before_put -= 1
            self.status(resource, name)
        if (before is None) != (verb == "create"):
            return _failure(409 if before else 404, f'{resource} "{name}" is there' if before else "not found")
        if before is not None and body["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
            return _failure(409, f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified')
        made = {**copy.deepcopy(body), **({"status": before["status"]} if before and "status" in before else {})}
        made["spec"] = {key: value for key, value in made["spec"].items() if key not in self.unknown_fields}
        if problems := self._problems(made):
            self.schema_failures += 1
            return _failure(422, f'{KINDS[resource]} "{name}" is invalid: {problems[0]}')
        if dry:
            return 200, made
        self.put(resource, made)
        if resource != "leases":
            self.controllers(self)
        return (201 if verb == "create" else 200), self.objects[resource, name]

    def _problems(self, item: Object) -> list[str]:
        group = item["apiVersion"].rpartition("/")[0]
        if group == "coordination.k8s.io" or not schemas.SHARED_CRDS.is_dir():
            return []
        return schemas.problems({key: value for key, value in item.items() if key != "status"})

    def _allowed(self, group: str, resource: str, verb: str, name: str | None) -> bool:
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and ("resourceNames" not in rule or name in rule["resourceNames"])
            for rule in self.rules
        )


def _handler(cluster: FakeCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        wbufsize = 65_536  # an answer in one segment: in two, each would wait 40 ms for an ACK
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if cluster._server is None:
                self.close_connection = True
                return
            status = cluster.fail_next.pop(0) if cluster.fail_next else None
            if status == 0:
                self.close_connection = True
                return
            if status is not None:
                self._json(*_failure(status, "the server is busy"))
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json(*_failure(401, "Unauthorized"))
                return
            cluster.requests.append((self.command, self.path))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            answer = cluster.answer(self.command, parts.path, query, json.loads(data) if data else {})
            if cluster.lose_next_answer and self.command != "GET":
                cluster.lose_next_answer = False
                self.close_connection = True
                return
            self._json(*answer)

        def _json(self, status: int, values: Object) -> None:
            data = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _respond

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return Handler


def _selected(item: Object, selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    pairs = [pair.partition("=") for pair in filter(None, selector.split(","))]
    return all(labels.get(key) == value for key, _, value in pairs)


def _failure(code: int, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code, "reason": "Fake"}
