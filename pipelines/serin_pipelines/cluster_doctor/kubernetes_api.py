"""The Kubernetes API with the kubeconfig's, or the pod's, identity."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3

from serin_pipelines.cluster_doctor.answers import NOT_FOUND, UNAUTHORIZED, RefusedError, cause, fail, request, short
from serin_pipelines.doctor import Check

MAX_CONNECTIONS = 20
"""As many as there are probes side by side."""


class KubernetesApi:
    """Requests to the Kubernetes API with the kubeconfig's, or the pod's, identity."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client, self.namespace = client, namespace

    @property
    def host(self) -> str:
        """Address of the API."""
        return str(self._client.configuration.host)

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()

    def get(self, path: str, accept: str = "application/json") -> dict[str, Any]:
        """GET a path; RefusedError on an error, urllib3's errors when there is no answer."""
        return self._send("GET", path, accept)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST one of the reviews, which change nothing."""
        return self._send("POST", path, "application/json", body)

    def _send(self, method: str, path: str, accept: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Accept": accept}
        # The client's own request() asks urllib3 for headers in a way that is deprecated; its pool and login do not.
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        pool = self._client.rest_client.pool_manager
        return request(pool, method, self.host + path, headers, body)


def connect(namespace: str) -> tuple[KubernetesApi | None, Check]:
    """The Kubernetes API, and the line about it."""
    try:
        api = KubernetesApi(_client(), namespace)
    except Exception as error:  # kubeconfigs fail in many ways: YAML, missing keys, plugins for logging in
        fix = "Set KUBECONFIG to a kubeconfig that works with kubectl, or run in a pod of the cluster."
        return None, fail("kubernetes", f"no usable kubeconfig ({short(str(error))})", fix)
    try:
        version = api.get("/version").get("gitVersion", "unknown version")
        who = _who(api)
    except RefusedError as error:
        if error.status == UNAUTHORIZED:
            fix = "Log in again: the kubeconfig's token or certificate has expired or is not taken."
            return None, fail("kubernetes", f"{api.host} refuses this identity (401)", fix)
        return None, fail("kubernetes", f"{api.host}: {error}", "Check the kubeconfig's server and this identity.")
    except urllib3.exceptions.HTTPError as error:
        fix = "Check the kubeconfig's server address, the network and the VPN."
        return None, fail("kubernetes", f"{api.host} does not answer ({cause(error)})", fix)
    except Exception as error:  # certificates that are missing, a login that fails: the client says it in many ways
        return None, fail("kubernetes", f"{api.host}: {short(str(error))}", "Check that kubectl works with it.")
    return api, Check(name="kubernetes", status="ok", found=f"{version} at {api.host}, {who}")


def group_versions(api: KubernetesApi, group: str) -> list[str]:
    """Versions of an API group, the preferred first; none where it is not installed."""
    try:
        return [entry["version"] for entry in api.get(f"/apis/{group}").get("versions", [])]
    except RefusedError as error:
        if error.status == NOT_FOUND:
            return []
        raise


def _client() -> Any:
    from kubernetes import client, config  # type: ignore[import-untyped]

    configuration = client.Configuration()
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    named = os.environ.get("KUBECONFIG", "")
    if named or (Path.home() / ".kube/config").is_file():
        # persist_config=False: a preflight writes no renewed token back
        config.load_kube_config(named or None, client_configuration=configuration, persist_config=False)
    else:
        config.load_incluster_config(client_configuration=configuration)
    return client.ApiClient(configuration)


def _who(api: KubernetesApi) -> str:
    """The identity as the server sees it; older servers (before 1.28) do not say."""
    try:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    except RefusedError as error:
        if error.status == UNAUTHORIZED:
            raise
        return "identity unknown"
    return f"as {answer.get('status', {}).get('userInfo', {}).get('username', 'unknown')}"
