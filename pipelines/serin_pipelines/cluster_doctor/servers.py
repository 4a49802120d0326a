"""Kubeflow Pipelines, MLflow and the store: can this identity use them."""

import os
import re
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import urllib3

from serin.core.errors import AlreadyExistsError, StorageError
from serin.core.storage import Storage, is_remote, storage_for
from serin_pipelines.cluster_doctor.answers import RefusedError, cause, fail, mend, new_pool, request, short, shown
from serin_pipelines.doctor import Check
from serin_pipelines.environments import Environment

AWAY = "Check the address, the network and that the server runs; inside the cluster, or through a forwarded port."
STORE_RIGHTS = "Give this identity s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket on it."


def kfp(environment: Environment) -> Iterator[Check]:
    """Whether Kubeflow Pipelines is up, of a version that we compile for, and takes this identity."""
    from serin_pipelines.kubeflow.tokens import find_source

    host = environment.kfp_host.rstrip("/")
    if not host:
        yield Check(name="kfp", status="warn", found="no address", fix="Set kfp_host in the environment.")
        return
    source = find_source(host)
    headers = {"Authorization": f"Bearer {source.token()}"} if source else {}
    health = yield from _asked("kfp", host, "GET", f"{host}/apis/v2beta1/healthz", headers)
    if health is None:
        return
    yield _kfp_version(host, str(health.get("tag_name", "unknown")))
    query = {"page_size": 1, **({"namespace": environment.namespace} if health.get("multi_user") else {})}
    url = f"{host}/apis/v2beta1/experiments?{urlencode(query)}"
    if (yield from _asked("kfp experiments", host, "GET", url, headers)) is not None:
        yield Check(name="kfp experiments", status="ok", found="can be listed")


def _kfp_version(host: str, version: str) -> Check:
    """Pipelines are compiled with our SDK, whose newer fields an older server refuses or ignores."""
    import kfp

    ours = tuple(int(part) for part in kfp.__version__.split(".")[:2])
    parsed = re.match(r"v?(\d+)\.(\d+)", version)
    found = f"{version} at {shown(host)}"
    if parsed is None:
        return Check(name="kfp", status="ok", found=found)
    theirs = (int(parsed[1]), int(parsed[2]))
    if theirs[0] != ours[0]:
        return fail("kfp", found, f"Use a server of version {ours[0]}.x: pipelines are compiled for that.")
    fix = f"Upgrade the server to {ours[0]}.{ours[1]}: older ones ignore some settings of our pods."
    return Check(name="kfp", status="warn" if theirs < ours else "ok", found=found, fix=fix if theirs < ours else "")


def mlflow(environment: Environment) -> Iterator[Check]:
    """Whether MLflow is up, and takes this identity."""
    uri = environment.tracking_uri.rstrip("/")
    if not uri.startswith(("http://", "https://")):
        fix = "Set tracking_uri in the environment to the MLflow server that the pods reach."
        yield Check(name="mlflow", status="warn", found=shown(uri) or "no address", fix=fix)
        return
    health = _mlflow_health(uri)
    yield health
    if health.status == "ok":
        url = f"{uri}/api/2.0/mlflow/experiments/search"
        done = yield from _asked("mlflow experiments", uri, "POST", url, _mlflow_login(), {"max_results": 1})
        if done is not None:
            yield Check(name="mlflow experiments", status="ok", found="can be searched")


def _mlflow_health(uri: str) -> Check:
    """Its answer is no JSON but the word OK."""
    try:
        with new_pool() as pool:
            status = pool.request("GET", f"{uri}/health", headers=_mlflow_login(), redirect=False).status
    except urllib3.exceptions.HTTPError as error:
        return fail("mlflow", f"{shown(uri)} does not answer ({cause(error)})", AWAY)
    if status != 200:
        return fail("mlflow", f"HTTP {status} from {shown(uri)}", mend(RefusedError(status, ""), "mlflow"))
    return Check(name="mlflow", status="ok", found=shown(uri))


def _mlflow_login() -> dict[str, str]:
    """What MLflow's own client sends: user and password, else a token."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user:
        return dict(urllib3.make_headers(basic_auth=f"{user}:{password}"))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _asked(
    name: str, server: str, method: str, url: str, headers: dict[str, str], body: Mapping[str, Any] | None = None
) -> Generator[Check, None, dict[str, Any] | None]:
    """Returns a server's answer; a refusal, or silence, is a line instead."""
    try:
        with new_pool() as pool:
            return request(pool, method, url, {"Accept": "application/json", **headers}, body)
    except RefusedError as error:
        yield fail(name, f"{shown(server)}: {error}", mend(error, name.split()[0]))
    except urllib3.exceptions.HTTPError as error:
        yield fail(name, f"{shown(server)} does not answer ({cause(error)})", AWAY)
    return None


def store(environment: Environment) -> Iterator[Check]:
    """Whether the store takes a conditional write; the probe is removed again."""
    uri = environment.store_uri
    if not is_remote(uri):
        fix = "Set store_uri in the environment to an s3:// prefix that the pods reach."
        yield Check(name="store", status="warn", found=uri or "no address", fix=fix)
    elif environment.object_store_url and not os.environ.get("AWS_ENDPOINT_URL"):
        fix = f"Set AWS_ENDPOINT_URL (the environment's is {shown(environment.object_store_url)}) and run this again."
        yield Check(name="store", status="warn", found=f"{uri}, not probed", fix=fix)
    else:
        yield _probed(storage_for(uri), f".serin-doctor/{uuid.uuid4().hex}")


def _probed(storage: Storage, key: str) -> Check:
    """Write, refuse to overwrite, and remove one small object."""
    problem, kept = "", True
    try:
        storage.write(key, b"serin doctor", if_absent=True)
        kept = _is_kept(storage, key)
    except StorageError as error:
        problem = str(error)
    finally:
        # after a write that failed too: its answer may have been lost, and not the object
        left = _left_behind(storage, key, written=not problem)
    if problem or left:
        return fail("store", f"{storage.uri}: {short(problem or left)}", STORE_RIGHTS)
    if not kept:
        fix = "Use a store with conditional writes (If-None-Match): without them two runs overwrite each other."
        return fail("store", f"{storage.uri} overwrites what it was asked to keep", fix)
    return Check(name="store", status="ok", found=f"{storage.uri}: written on condition, and removed")


def _is_kept(storage: Storage, key: str) -> bool:
    try:
        storage.write(key, b"again", if_absent=True)
    except AlreadyExistsError:
        return True
    return False


def _left_behind(storage: Storage, key: str, written: bool) -> str:
    """Remove the probe; says where it is when that failed."""
    try:
        storage.delete(key)
        gone = not storage.exists(key)
    except StorageError as error:
        return f"the probe {key} cannot be removed ({short(str(error), 80)})" if written else ""
    return "" if gone else f"the probe {key} is still there after it was removed"
