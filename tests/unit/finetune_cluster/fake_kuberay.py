"""A Kubernetes API with KubeRay behind it, over real HTTP on loopback, for one namespace.

It keeps objects with resource versions, serves lists, watches and growing logs, admits only what the project's roles
allow and what the RayJob's definition knows, and can be restarted in the middle of everything.  What happens to a job
that is created is a function that a test gives.
"""

import gzip
import json
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
CRD = REPOSITORY.parent / "shared" / "crds" / "ray.io_rayjobs.yaml.gz"
NAMESPACE = "serin-test"
TOKEN = "launcher-token"
Object = dict[str, Any]
Script = Callable[["Job"], None]


@cache
def allowed() -> frozenset[tuple[str, str, str]]:
    """(group, resource, verb) of the service account that launchers run as, from the project's own roles."""
    found = set()
    for name in ("training", "workflow"):
        text = (REPOSITORY / "manifests" / "base" / "rbac" / f"{name}.yaml").read_text()
        for item in yaml.safe_load_all(text):
            for rule in item.get("rules", []):
                if "resourceNames" not in rule:
                    found |= {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    return frozenset(found)


@cache
def ray_job_schema() -> dict[str, Any] | None:
    """The strict schema of ray.io/v1 RayJobs; None where the definitions are not here."""
    if not CRD.is_file():
        return None
    versions = yaml.load(gzip.decompress(CRD.read_bytes()), Loader=yaml.CSafeLoader)["spec"]["versions"]
    schema = _strict(next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return dict(schema)


def _strict(schema: Any) -> Any:
    """A structural schema that rejects unknown fields."""
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(inner) for key, inner in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@dataclass
class Pod:
    """A pod with its log."""

    body: Object
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(time, text)."""
    cut_after: int | None = None
    """Streams of the log break off after this many lines, once."""


class Job:
    """A RayJob, for the function that plays KubeRay and the driver."""

    def __init__(self, api: "FakeKubeRay", body: Object) -> None:
        self.api, self.body = api, body
        self.name: str = body["metadata"]["name"]
        self.gone = threading.Event()
        self.process: subprocess.Popen[str] | None = None

    @property
    def request_uri(self) -> str:
        return shlex.split(self.body["spec"]["entrypoint"])[-1]

    def status(self, deployment: str, job: str = "", **more: Any) -> None:
        """What KubeRay reports."""
        self.api.change(self.name, {"jobDeploymentStatus": deployment, "jobStatus": job, **more})

    def runs(self) -> "Job":
        """Through to the driver's start."""
        self.status("Initializing", rayClusterName=f"{self.name}-abcde")
        self.status("Running", "RUNNING", rayClusterName=f"{self.name}-abcde")
        self.api.add_pod(f"{self.name}-sub", {"batch.kubernetes.io/job-name": self.name})
        return self

    def says(self, *lines: str) -> None:
        """Lines in the driver's log."""
        for line in lines:
            self.api.log(f"{self.name}-sub", line)

    def ends(self, deployment: str, job: str, **more: Any) -> None:
        """The submitter's pod ends, then the job."""
        self.api.phase(f"{self.name}-sub", "Succeeded" if job == "SUCCEEDED" else "Failed")
        self.status(deployment, job, **more)

    def drive(self) -> None:
        """Run the real driver in a process, its output as the pod's log."""
        self.runs()
        command = [sys.executable, "-W", "ignore", *shlex.split(self.body["spec"]["entrypoint"])[1:]]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.says(line.rstrip("\n"))
        code = self.process.wait()
        if code == 0:
            self.ends("Complete", "SUCCEEDED")
        else:
            self.ends("Failed", "FAILED", reason="AppFailed", message=f"Job entrypoint command failed with {code}")


class FakeKubeRay:
    """The API server; a ``with`` statement long.

    Args:
        script: what happens to each job that is created; runs in a thread of its own.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Pod] = {}
        self.events: list[Object] = []
        self.handles: dict[str, Job] = {}
        self.requests: list[tuple[str, str]] = []
        """Method and path of each request."""
        self.deletions: list[tuple[str, Object]] = []
        """Name and DeleteOptions."""
        self.created: list[Object] = []
        self.refuse_create: tuple[int, str] | None = None
        """Status and message of the answer to the next creations."""
        self.lose_answer_of_create = False
        """The next creation works, and its answer is lost."""
        self.extra_rights: set[tuple[str, str, str]] = set()
        self.version = 100
        self._oldest = 0
        self._history: list[tuple[int, str, Object]] = []
        self._changed = threading.Condition()
        self._generation = 0
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        for job in self.handles.values():
            if job.process and job.process.poll() is None:
                job.process.kill()
                job.process.wait()

    def kubeconfig(self, folder: Path) -> Path:
        """Writes a kubeconfig that leads here."""
        path = folder / "kubeconfig"
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": NAMESPACE}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(values))
        return path

    def stop(self) -> None:
        """Go away: every connection breaks, none is taken."""
        if self._server is None:
            return
        with self._changed:
            self._generation += 1
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    def restart(self, down_s: float) -> None:
        """Go away for a while."""
        self.stop()
        time.sleep(down_s)
        self._listen()

    def forget_history(self) -> None:
        """Versions until now are too old for a watch; watches that are open end with 410 as well."""
        with self._changed:
            self.version += 1
            self._oldest = self.version
            self._history.clear()
            self._changed.notify_all()

    def change(self, name: str, status: Object) -> None:
        """KubeRay writes a status, if the job is still there."""
        with self._changed:
            if name not in self.jobs:
                return
            job = {**self.jobs[name], "status": {**self.jobs[name].get("status", {}), **status}}
            self._store("MODIFIED", job)

    def suspend(self, name: str, suspended: bool) -> None:
        """Kueue holds a job back, or lets it go."""
        with self._changed:
            job = {**self.jobs[name], "spec": {**self.jobs[name]["spec"], "suspend": suspended}}
            self._store("MODIFIED", job)

    def put_job(self, job: Object) -> None:
        """An object that is there already."""
        made = {**job, "metadata": {"namespace": NAMESPACE, "uid": str(uuid.uuid4()), **job["metadata"]}}
        with self._changed:
            self._store("ADDED", made)
            self.handles[made["metadata"]["name"]] = Job(self, made)

    def add_pod(self, name: str, labels: dict[str, str], phase: str = "Running", **more: Any) -> None:
        body = {
            "metadata": {"name": name, "uid": str(uuid.uuid4()), "labels": labels, **more.pop("metadata", {})},
            "status": {"phase": phase, **more},
        }
        with self._changed:
            self.pods.setdefault(name, Pod(body))

    def phase(self, name: str, phase: str) -> None:
        with self._changed:
            if name in self.pods:
                self.pods[name].body["status"]["phase"] = phase
                self._changed.notify_all()

    def log(self, name: str, line: str) -> None:
        with self._changed:
            if name in self.pods:
                moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                self.pods[name].lines.append((moment, line))
                self._changed.notify_all()

    def num_requests(self, method: str, part: str) -> int:
        return sum(1 for made, path in self.requests if made == method and part in path)

    def _store(self, kind: str, job: Object) -> None:
        self.version += 1
        job = {**job, "metadata": {**job["metadata"], "resourceVersion": str(self.version)}}
        if kind == "DELETED":
            self.jobs.pop(job["metadata"]["name"], None)
        else:
            self.jobs[job["metadata"]["name"]] = job
        self._history.append((self.version, kind, job))
        self._changed.notify_all()

    def create(self, job: Object) -> tuple[int, Object]:
        """Admit a job as the API server would."""
        if self.refuse_create:
            return _failure(*self.refuse_create)
        if problems := _problems(job):
            return _failure(422, f'RayJob.ray.io "{job["metadata"].get("name")}" is invalid: {problems[0]}')
        with self._changed:
            name = job["metadata"]["name"]
            if name in self.jobs:
                return _failure(409, f'rayjobs.ray.io "{name}" already exists')
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            made = {"namespace": NAMESPACE, "uid": str(uuid.uuid4()), "creationTimestamp": moment, **job["metadata"]}
            self._store("ADDED", {**job, "metadata": made})
            self.created.append(self.jobs[name])
            handle = self.handles[name] = Job(self, self.jobs[name])
            threading.Thread(target=self._play, args=(handle,), daemon=True).start()
            return 201, self.jobs[name]

    def _play(self, job: Job) -> None:
        try:
            self.script(job)
        except BaseException as error:
            job.status("Failed", reason="TheTestsScriptFailed", message=repr(error))
            raise

    def delete(self, name: str, options: Object) -> tuple[int, Object]:
        """Delete a job: KubeRay's finalizer stops the driver."""
        with self._changed:
            job = self.jobs.get(name)
            if job is None:
                return _failure(404, f'rayjobs.ray.io "{name}" not found')
            wanted = options.get("preconditions", {}).get("uid")
            if wanted and wanted != job["metadata"]["uid"]:
                return _failure(409, "the UID in the precondition does not match")
            self.deletions.append((name, options))
            self._store("DELETED", job)
        handle = self.handles[name]
        handle.gone.set()
        if handle.process and handle.process.poll() is None:
            handle.process.terminate()
        return 200, {"kind": "Status", "status": "Success"}

    def _listen(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self, self._generation))
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def alive(self, generation: int) -> bool:
        return generation == self._generation

    def watch_events(self, version: int, until: float, generation: int) -> Any:
        """(kind, object) of every change since a version, until a moment."""
        while True:
            with self._changed:
                if version < self._oldest:
                    yield "ERROR", _failure(410, f"too old resource version: {version}")[1]
                    return
                new = [entry for entry in self._history if entry[0] > version]
                if not new and self.alive(generation):
                    self._changed.wait(max(0.0, min(until - time.monotonic(), 0.2)))
            for number, kind, job in new:
                version = number
                yield kind, job
            if not self.alive(generation):
                raise ConnectionAbortedError
            if not new and time.monotonic() >= until:
                bookmark = {"kind": "RayJob", "metadata": {"resourceVersion": str(self.version)}}
                yield "BOOKMARK", bookmark
                return

    def log_lines(self, name: str, follow: bool, since: str, generation: int) -> Any:
        """Lines of a pod's log, from the second of ``since`` on."""
        pod, position, given = self.pods[name], 0, 0
        while True:
            with self._changed:
                new = pod.lines[position:]
                position += len(new)
                ended = pod.body["status"]["phase"] in ("Succeeded", "Failed")
                if not new and follow and not ended and self.alive(generation):
                    self._changed.wait(0.2)
            for moment, line in new:
                if moment[:19] < since[:19]:
                    continue
                if pod.cut_after is not None and given >= pod.cut_after:
                    pod.cut_after = None
                    raise ConnectionAbortedError
                given += 1
                yield f"{moment} {line}"
            if not self.alive(generation):
                raise ConnectionAbortedError
            if not new and (ended or not follow):
                return


def _handler(api: FakeKubeRay, generation: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            if not api.alive(generation):
                self.close_connection = True
                return
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.requests.append((self.command, self.path))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json(*_failure(401, "Unauthorized"))
                return
            try:
                self._route(parts.path, query, json.loads(data) if data else {})
            except (ConnectionAbortedError, BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _route(self, path: str, query: dict[str, str], body: Object) -> None:
            found = re.fullmatch(r"/(?:apis/ray\.io/v1|api/v1)/namespaces/([^/]+)/(\w+)(?:/([^/]+))?(?:/(\w+))?", path)
            if not found or found[1] != NAMESPACE:
                self._json(*_failure(404, "the server could not find the requested resource"))
                return
            kind, name, inner = found[2], found[3], found[4]
            group, resource = ("ray.io" if kind == "rayjobs" else ""), f"{kind}/{inner}" if inner else kind
            verb = {"POST": "create", "DELETE": "delete"}.get(self.command) or (
                "get" if name else "watch" if query.get("watch") else "list"
            )
            if (group, resource, verb) not in allowed() | api.extra_rights:
                self._json(*_failure(403, f'{resource} is forbidden: User cannot {verb} resource "{resource}"'))
            elif kind == "rayjobs":
                self._ray_jobs(verb, name, query, body)
            elif inner == "log":
                self._log(name, query)
            else:
                self._core(kind, name, query)

        def _ray_jobs(self, verb: str, name: str, query: dict[str, str], body: Object) -> None:
            if verb == "create":
                answer = api.create(body)
                if api.lose_answer_of_create:
                    api.lose_answer_of_create = False
                    raise ConnectionAbortedError
                self._json(*answer)
            elif verb == "delete":
                self._json(*api.delete(name, body))
            elif verb == "get":
                self._json(200, api.jobs[name]) if name in api.jobs else self._json(*_failure(404, "not found"))
            elif verb == "watch":
                until = time.monotonic() + float(query["timeoutSeconds"])
                events = api.watch_events(int(query["resourceVersion"]), until, generation)
                self._stream(
                    json.dumps({"type": event, "object": job})
                    for event, job in events
                    if event in ("ERROR", "BOOKMARK") or _selected(job, query)
                )
            else:
                items = [job for job in api.jobs.values() if _selected(job, query)]
                self._json(200, {"metadata": {"resourceVersion": str(api.version)}, "items": items})

        def _core(self, kind: str, name: str | None, query: dict[str, str]) -> None:
            if kind == "events":
                wanted = query.get("fieldSelector", "")
                items = [
                    each for each in api.events if f"involvedObject.name={each['involvedObject']['name']}" in wanted
                ]
                self._json(200, {"items": items})
                return
            items = [pod.body for pod in api.pods.values() if _selected(pod.body, query)]
            if name:
                found = [pod for pod in items if pod["metadata"]["name"] == name]
                self._json(200, found[0]) if found else self._json(*_failure(404, "not found"))
            else:
                self._json(200, {"items": items})

        def _log(self, name: str, query: dict[str, str]) -> None:
            if name not in api.pods:
                self._json(*_failure(404, "not found"))
                return
            self._stream(api.log_lines(name, query.get("follow") == "true", query.get("sinceTime", ""), generation))

        def _stream(self, lines: Any) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in lines:
                data = line.encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def _json(self, status: int, values: Object) -> None:
            data = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _respond

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return Handler


def _selected(item: Object, query: dict[str, str]) -> bool:
    metadata = item["metadata"]
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = pair.partition("=")
        if metadata.get("labels", {}).get(key) != value:
            return False
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return not name or metadata["name"] == name


def _problems(job: Object) -> list[str]:
    metadata = job["metadata"]
    found = []
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", metadata["name"]) or len(metadata["name"]) > 47:
        found.append(f"metadata.name: {metadata['name']}")
    for value in metadata.get("labels", {}).values():
        if len(value) > 63 or not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", value):
            found.append(f"metadata.labels: {value}")
    if schema := ray_job_schema():
        errors = jsonschema.Draft202012Validator(schema).iter_errors(job)
        found += [f"{error.json_path}: {error.message}"[:300] for error in errors]
    return found


def _failure(code: int, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code, "reason": "Fake"}
