"""A small stateful stand-in for the API server of Kubeflow Pipelines (v2beta1), over real HTTP on loopback.

It keeps pipelines, versions, experiments, runs and recurring runs across a stop and a start, as a server with a
database does, and refuses what the real one refuses: IR that does not parse, unknown or missing arguments, names that
exist, changes to recurring runs, bad tokens.  A run takes one step of its script each time somebody looks at it, so
tests need no clock.  Routes and rules follow backend/src/apiserver (server/, model/) of kubeflow/pipelines 2.17.
"""

import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from http.server import ThreadingHTTPServer
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from .fake_http import Fault, Handler, Refusal, Server
from .fake_scripts import ENDED, Script, task_details

PREFIX = "/apis/v2beta1"
FILTER_KEYS = ("name", "display_name", "description", "state", "created_at", "experiment_id")
TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
KEPT = (
    "experiment_id",
    "display_name",
    "description",
    "pipeline_version_reference",
    "runtime_config",
    "service_account",
    "plugins_input",
)
"""What a run keeps of its request."""
MLFLOW_FIELDS = {"experiment_name", "experiment_id", "disabled"}


class FakeKubeflow:
    """The server and its state; ``with FakeKubeflow() as fake`` runs it until the block ends."""

    def __init__(self) -> None:
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.scripts: list[Script] = []
        """Of the next runs, in order; without one a run waits in PENDING."""
        self.tokens: set[str] | None = None
        """Bearer tokens that are taken; None for a server without authentication."""
        self.plugins = "none"
        """mlflow: has the plugin; none: takes plugins_input and does nothing; old: knows no such field."""
        self.page_limit = 100
        self.filter_keys = set(FILTER_KEYS)
        self.tls: ssl.SSLContext | None = None
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] | None = None
        """Called with method and path before a request is carried out; may act as another client would."""
        self.held: list[tuple[str, str, dict[str, str], bytes, Any]] = []
        """Requests that hang."""
        self._playing: dict[str, tuple[Script, int]] = {}
        self._lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self._made = 0

    @property
    def host(self) -> str:
        """Address of the API; the same after a restart."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}"

    def __enter__(self) -> "FakeKubeflow":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        fake = self

        class Mine(Handler):
            kubeflow = fake

        self._server = Server(("127.0.0.1", self._port), Mine)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cut all connections and stop listening; the state stays."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.cut()
            self._server.server_close()
            self._thread.join(5)
        self._server = self._thread = None

    def fail(self, method: str, path: str, **what: Any) -> None:
        """Let the next fitting requests go wrong; see ``Fault``."""
        self.faults.append(Fault(method, path, **what))

    def sent(self, method: str, path: str) -> int:
        """How many requests of that method had a path that fits the expression."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def fire(self, recurring_id: str) -> str:
        """Let the scheduler start a run of a recurring run; returns its id."""
        with self._lock:
            job = self.recurring[recurring_id]
            if job["status"] != "ENABLED":
                raise AssertionError("a disabled recurring run starts nothing")
            run = self._new_run({**job, "display_name": f"{job['display_name']}-run", "description": ""})
            run["recurring_run_id"] = recurring_id
            return str(run["run_id"])

    def set_state(self, run_id: str, state: str) -> None:
        """Move a run, as its workflow would."""
        with self._lock:
            self.runs[run_id]["state"] = state

    def enabled(self, name: str) -> list[dict[str, Any]]:
        """The enabled recurring runs of a name."""
        found = list(self.recurring.values())
        return [job for job in found if job["display_name"] == name and job["status"] == "ENABLED"]

    def handle(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> Any:
        """Carry a request out; returns the answer's JSON value."""
        if self.before is not None:
            self.before(method, path)
        if self.held and self.held[0][:2] == (method, path):
            self.handle(*self.held.pop(0))
        with self._lock:
            self.requests.append((method, path))
            self._authenticate(headers)
            for pattern, verb, act in self._routes():
                found = re.fullmatch(PREFIX + pattern, path)
                if found and verb == method:
                    return act(*found.groups(), query=query, body=body, headers=headers)
        raise Refusal(501 if method in ("PUT", "PATCH") else 404, "Not Found")

    def fault(self, method: str, path: str, done: bool) -> Fault | None:
        """The fault that befalls this request, used up once."""
        with self._lock:
            for found in self.faults:
                if found.times and found.done == done and found.method == method and re.search(found.path, path):
                    if found.skip:
                        found.skip -= 1
                        continue
                    found.times -= 1
                    return found
        return None

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        one = "/([^/:]+)"
        return [
            ("/healthz", "GET", lambda **_: {"multi_user": True}),
            ("/pipelines", "GET", self._list_pipelines),
            ("/pipelines", "POST", self._create_pipeline),
            ("/pipelines/upload_version", "POST", self._upload_version),
            (f"/pipelines{one}/versions", "GET", self._list_versions),
            (f"/pipelines{one}/versions{one}", "GET", lambda _, version, **__: self._get(self.versions, version)),
            ("/experiments", "GET", self._list_experiments),
            ("/experiments", "POST", self._create_experiment),
            ("/runs", "GET", self._list_runs),
            ("/runs", "POST", self._create_run),
            (f"/runs{one}", "GET", self._get_run),
            (f"/runs{one}:terminate", "POST", self._terminate),
            (f"/runs{one}", "DELETE", lambda run, **_: self._delete(self.runs, run)),
            ("/recurringruns", "GET", self._list_recurring),
            ("/recurringruns", "POST", self._create_recurring),
            (f"/recurringruns{one}", "GET", lambda job, **_: self._get(self.recurring, job)),
            (f"/recurringruns{one}", "DELETE", lambda job, **_: self._delete(self.recurring, job)),
            (f"/recurringruns{one}:enable", "POST", lambda job, **_: self._switch(job, "ENABLED")),
            (f"/recurringruns{one}:disable", "POST", lambda job, **_: self._switch(job, "DISABLED")),
        ]

    def _authenticate(self, headers: Any) -> None:
        if self.tokens is not None and headers.get("Authorization", "") not in {f"Bearer {one}" for one in self.tokens}:
            raise Refusal(401, "Request header error: there is no user identity header.")

    # pipelines and versions

    def _list_pipelines(self, *, query: dict[str, str], **_: Any) -> Any:
        return self._page("pipelines", list(self.pipelines.values()), query)

    def _create_pipeline(self, *, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", asked.get("name", "")):
            raise Refusal(400, "Invalid input error: pipeline's name must be a DNS label")
        if any(one["name"] == asked["name"] for one in self.pipelines.values()):
            raise Refusal(409, f"Already exist error: pipeline {asked['name']} exists")
        made = {**asked, "pipeline_id": self._id(), "created_at": self._now()}
        self.pipelines[made["pipeline_id"]] = made
        return made

    def _list_versions(self, pipeline_id: str, *, query: dict[str, str], **_: Any) -> Any:
        mine = [one for one in self.versions.values() if one["pipeline_id"] == pipeline_id]
        return self._page("pipeline_versions", mine, query)

    def _upload_version(self, *, query: dict[str, str], body: bytes, headers: Any, **_: Any) -> Any:
        self._get(self.pipelines, query.get("pipelineid", ""))
        spec = _parsed(_uploaded(body, headers))
        same = [one for one in self.versions.values() if one["pipeline_id"] == query["pipelineid"]]
        if any(one["name"] == query["name"] for one in same):
            raise Refusal(409, f"Already exist error: version {query['name']} exists")
        made = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": self._id(),
            "name": query["name"],
            "display_name": query["name"],
            "description": query.get("description", ""),
            "created_at": self._now(),
            "pipeline_spec": spec,
        }
        self.versions[made["pipeline_version_id"]] = made
        return made

    # experiments

    def _list_experiments(self, *, query: dict[str, str], **_: Any) -> Any:
        return self._page("experiments", list(self.experiments.values()), query)

    def _create_experiment(self, *, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        if not asked.get("display_name"):
            raise Refusal(400, "Invalid input error: experiment's name is empty")
        if any(one["display_name"] == asked["display_name"] for one in self.experiments.values()):
            raise Refusal(409, f"Already exist error: experiment {asked['display_name']} exists")
        made = {**asked, "experiment_id": self._id(), "created_at": self._now()}
        self.experiments[made["experiment_id"]] = made
        return made

    # runs

    def _list_runs(self, *, query: dict[str, str], **_: Any) -> Any:
        mine = [one for one in self.runs.values() if one["experiment_id"] == query.get("experiment_id")]
        return self._page("runs", mine, query)

    def _create_run(self, *, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        if not asked.get("display_name"):
            raise Refusal(400, "Invalid input error: The run name is empty. Please specify a valid name")
        if "plugins_output" in asked:
            raise Refusal(400, "plugins_output must not be set by the client")
        run = self._new_run(asked)
        self._plug(asked.get("plugins_input"), run)
        return run

    def _new_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check(asked)
        run = {name: asked[name] for name in KEPT if name in asked}
        run |= {"run_id": self._id(), "state": "PENDING", "created_at": self._now(), "tasks": {}}
        self.runs[run["run_id"]] = run
        if self.scripts:
            self._playing[run["run_id"]] = (self.scripts.pop(0), 0)
        return run

    def _plug(self, given: dict[str, Any] | None, run: dict[str, Any]) -> None:
        settings = (given or {}).get("mlflow") or {}
        if self.plugins != "mlflow" or settings.get("disabled"):
            return
        if set(settings) - MLFLOW_FIELDS:
            raise Refusal(400, "plugins_input.mlflow must follow schema {experiment_name?, experiment_id?, disabled?}")
        name = settings.get("experiment_name", "KFP-Default")
        entries = {"experiment_name": {"value": name}, "root_run_id": {"value": self._id()}}
        run["plugins_output"] = {"mlflow": {"state": "PLUGIN_SUCCEEDED", "entries": entries}}

    def _check(self, asked: dict[str, Any]) -> None:
        if self.plugins == "old" and "plugins_input" in asked:
            raise Refusal(400, 'proto: (line 1:9): unknown field "plugins_input"')
        self._get(self.experiments, asked.get("experiment_id", ""))
        self._check_arguments(asked)

    def _check_arguments(self, asked: dict[str, Any]) -> None:
        reference = asked.get("pipeline_version_reference") or {}
        version = self._get(self.versions, reference.get("pipeline_version_id", ""))
        spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
        known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        given = (asked.get("runtime_config") or {}).get("parameters") or {}
        for name, value in given.items():
            if name not in known:
                raise Refusal(400, f"Invalid input error: parameter {name} is not an input of the pipeline")
            kind = known[name]["parameterType"]
            if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
                raise Refusal(400, f"Invalid input error: input parameter {name} requires type {kind}")
        for name, one in known.items():
            if name not in given and "defaultValue" not in one and not one.get("isOptional"):
                raise Refusal(400, f"Invalid input error: parameter {name} is not optional, yet has no value")

    def _get_run(self, run_id: str, **_: Any) -> Any:
        self._get(self.runs, run_id)
        self._play(run_id)
        return self._get(self.runs, run_id)

    def _play(self, run_id: str) -> None:
        script, step = self._playing.get(run_id, (None, 0))
        if script is None or step >= len(script.steps):
            return
        self._playing[run_id] = (script, step + 1)
        if step in script.at:
            script.at[step](run_id)
        run = self.runs.get(run_id)
        if run is None or run["state"] in ENDED:
            return
        for name, state in script.steps[step].items():
            if name == "RUN":
                run["state"] = state
            else:
                run["tasks"][name] = state
        if run["state"] == "FAILED":
            run["error"] = {"code": 2, "message": "child phase failed"}
        run["run_details"] = {"task_details": task_details(run, script.errors)}

    def _terminate(self, run_id: str, **_: Any) -> Any:
        run = self._get(self.runs, run_id)
        if run["state"] in ENDED:
            raise Refusal(400, f"Failed to terminate run {run_id}: it has ended")
        run["state"] = "CANCELED"
        self._playing.pop(run_id, None)
        return {}

    # recurring runs

    def _list_recurring(self, *, query: dict[str, str], **_: Any) -> Any:
        mine = [one for one in self.recurring.values() if one["experiment_id"] == query.get("experiment_id")]
        return self._page("recurringRuns", mine, query)  # the name in the proto

    def _create_recurring(self, *, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        self._check(asked)
        cron = asked.get("trigger", {}).get("cron_schedule", {}).get("cron", "")
        if len(cron.split()) != 6:
            raise Refusal(400, f"Schedule cron is not a supported format: expected 6 fields, found {cron!r}")
        if not 1 <= int(asked.get("max_concurrency", 0)) <= 10:
            raise Refusal(400, "The max concurrency of the job is out of range. Support 1-10.")
        made = {
            **asked,
            "max_concurrency": str(asked["max_concurrency"]),
            "recurring_run_id": self._id(),
            "status": "ENABLED" if asked.get("mode") == "ENABLE" else "DISABLED",
            "created_at": self._now(),
        }
        self.recurring[made["recurring_run_id"]] = made
        return made

    def _switch(self, job_id: str, status: str) -> Any:
        job = self._get(self.recurring, job_id)
        job["status"], job["mode"] = status, status.removesuffix("D")
        return {}

    # everything

    def _page(self, items: str, found: list[dict[str, Any]], query: dict[str, str]) -> Any:
        chosen = self._filtered(found, query.get("filter", ""))
        field_name, _, order = query.get("sort_by", "").partition(" ")
        if field_name:
            chosen.sort(key=lambda one: one[field_name], reverse=order == "desc")
        size = min(int(query.get("page_size") or 10), self.page_limit)
        start = int(query.get("page_token") or 0)
        answer: dict[str, Any] = {items: chosen[start : start + size], "total_size": len(chosen)}
        if start + size < len(chosen):
            answer["next_page_token"] = str(start + size)
        return answer

    def _filtered(self, found: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        for predicate in json.loads(text)["predicates"] if text else ():
            key, operation = predicate["key"], predicate["operation"]
            if key not in self.filter_keys:
                raise Refusal(400, f"Invalid input error: no support for filtering on unrecognized field {key!r}")
            if operation in ("EQUALS", 1):
                value = predicate.get("string_value", predicate.get("stringValue"))
                found = [one for one in found if one.get(key) == value]
            elif operation in ("IN", 8):
                found = [one for one in found if one.get(key) in predicate["string_values"]["values"]]
            else:
                raise Refusal(400, f"Invalid input error: filter operation {operation!r} is not supported")
        return list(found)

    def _get(self, things: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        if key not in things:
            raise Refusal(404, f"ResourceNotFoundError: {key!r} not found")
        return things[key]

    def _delete(self, things: dict[str, dict[str, Any]], key: str) -> Any:
        self._get(things, key)
        del things[key]
        return {}

    def _id(self) -> str:
        self._made += 1
        return f"{self._made:08d}-{uuid.uuid4().hex[:12]}"

    def _now(self) -> str:
        """Whole seconds, as the real server keeps them; each thing a second after the one before."""
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._made)
        return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _uploaded(body: bytes, headers: Any) -> bytes:
    kind = headers.get("Content-Type", "")
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    parts = [part for part in message.get_payload() if part.get_param("name", header="content-disposition")]
    if len(parts) != 1 or parts[0].get_param("name", header="content-disposition") != "uploadfile":
        raise Refusal(400, "Failed to read the file: there is no form part named uploadfile")
    return bytes(parts[0].get_payload(decode=True))


def _parsed(data: bytes) -> dict[str, Any]:
    documents = [one for one in yaml.safe_load_all(data) if one]
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        if len(documents) > 1:
            json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
    except (json_format.ParseError, IndexError, AttributeError) as error:
        raise Refusal(400, f"Invalid input error: Please upload a valid pipeline spec: {error}") from error
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]} if len(documents) > 1 else documents[0]


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)
