"""The Kubernetes API with the kubeconfig's, or the pod's, identity: requests, watches and logs.

The official client makes the configuration, renews the login and holds the connections.  Its own request functions are
left aside: of the release that KFP allows they ask urllib3 2.7 for headers in a deprecated way, and its models have no
custom resources.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3

from serin.core.errors import UnavailableError

logger = logging.getLogger(__name__)

CONNECT_S, READ_S = 5.0, 30.0
"""Time limits of one request."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, TOO_MANY = 401, 403, 404, 409, 410, 429
POD_ADDRESS_VARIABLE = "KUBERNETES_SERVICE_HOST"
"""Set by Kubernetes in every pod."""
T = TypeVar("T")


class RefusedError(Exception):
    """The API server answered with an error.

    Args:
        status: HTTP's.
        message: the server's own words.
        reason: its word for the kind of error, as AlreadyExists or Expired.
    """

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message, self.reason = status, message, reason

    @property
    def passing(self) -> bool:
        """Whether the same request may be taken later."""
        return self.status == TOO_MANY or self.status >= 500


class LostError(Exception):
    """There was no answer, or it broke off: the server restarts, or the network is down."""


@dataclass(frozen=True)
class Clock:
    """Time, as it can be handed in by a test."""

    now: Callable[[], float] = time.monotonic
    """Seconds since some moment."""
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Patience:
    """How long, and how often, a server that does not answer is asked again."""

    first_s: float = 0.5
    """Pause after the first failure; it doubles after each."""
    most_s: float = 15.0
    """Longest pause."""
    total_s: float = 300.0
    """After this long without an answer it is an error."""

    def call(self, function: Callable[[], T], clock: Clock) -> T:
        """A function's result, tried again while the server is lost or busy.

        Raises:
            UnavailableError: it was so for ``total_s``.
            RefusedError: the server refused for good.
        """
        start, pause = clock.now(), self.first_s
        while True:
            try:
                return function()
            except (RefusedError, LostError) as error:
                if isinstance(error, RefusedError) and not error.passing:
                    raise
                if clock.now() - start >= self.total_s:
                    raise UnavailableError(
                        f"The Kubernetes API did not answer for {self.total_s:g} s ({error}): try again once it is up."
                    ) from error
                logger.info("The Kubernetes API is asked again in %.1f s: %s", pause, error)
            clock.sleep(pause)
            pause = min(pause * 2, self.most_s)


class KubernetesApi:
    """Requests to one API server.

    Args:
        client: a ``kubernetes.client.ApiClient``.
        namespace: the one that its user works in.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self._client, self.namespace = client, namespace

    @property
    def host(self) -> str:
        """Address of the API."""
        return str(self._client.configuration.host)

    def again(self) -> "KubernetesApi":
        """The same server and identity over connections of its own: for signal handlers and other threads."""
        from kubernetes import client  # type: ignore[import-untyped]

        return KubernetesApi(client.ApiClient(self._client.configuration), self.namespace)

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET an object or a list; RefusedError or LostError, as all of these."""
        return self._answer("GET", path, query)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        return self._answer("POST", path, body=body)

    def put(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """Replace an object; with the ``resourceVersion`` that was read, RefusedError 409 where it changed since."""
        return self._answer("PUT", path, query, body)

    def delete(self, path: str, options: Mapping[str, Any], timeout_s: float = READ_S) -> dict[str, Any]:
        """Delete an object with DeleteOptions."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        return self._answer("DELETE", path, body=body, timeout_s=timeout_s)

    def watch(self, path: str, *, resource_version: str, timeout_s: int, **query: Any) -> Iterator[dict[str, Any]]:
        """The changes of a list since a version of it, for at most ``timeout_s``.

        Raises:
            RefusedError: with status 410 when that version is too old: list again.
            LostError: the stream broke off.
        """
        query |= {
            "watch": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_s,
            "allowWatchBookmarks": "true",
        }
        for line in self.lines(path, read_s=timeout_s + READ_S, **query):
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise RefusedError(int(status.get("code", 500)), status.get("message", ""), status.get("reason", ""))
            yield event

    def lines(self, path: str, *, read_s: float, **query: Any) -> Iterator[str]:
        """The lines of an answer as they come; one that the server left unfinished is not given.

        Args:
            path: of the API.
            read_s: the stream counts as lost after this long without a byte.
            query: parameters.
        """
        response = self._send("GET", path, query, timeout_s=read_s, stream=True)
        left = b""
        with closing(response):
            try:
                for chunk in response.stream(2**16):
                    *whole, left = (left + chunk).split(b"\n")
                    yield from (line.decode(errors="replace") for line in whole if line)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise LostError(f"the stream broke off ({_cause(error)})") from error

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout_s: float = READ_S,
    ) -> dict[str, Any]:
        response = self._send(method, path, query or {}, body, timeout_s)
        try:
            answer = json.loads(response.data)
        except ValueError:
            answer = None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LostError(f"the answer broke off ({_cause(error)})") from error
        if not isinstance(answer, dict):
            raise RefusedError(502, "the answer is a page, not the API's")
        return answer

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Mapping[str, Any] | None = None,
        timeout_s: float = READ_S,
        stream: bool = False,
    ) -> Any:
        headers = {"Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        try:
            response = self._client.rest_client.pool_manager.request(
                method,
                f"{self.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                headers=headers,
                body=None if body is None else json.dumps(body),
                timeout=urllib3.Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s),
                retries=False,
                redirect=False,
                preload_content=not stream,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LostError(_cause(error)) from error
        if not 200 <= response.status < 300:
            raise _refusal(response)
        return response


def connect(namespace: str = "") -> KubernetesApi:
    """The API of ``$KUBECONFIG``, of the pod that this runs in, or of the user's kubeconfig.

    Args:
        namespace: to work in; empty takes the pod's, or the kubeconfig's.

    Raises:
        UnavailableError: there is no usable configuration.
    """
    try:
        from kubernetes import client, config

        configuration = client.Configuration()
        named = os.environ.get("KUBECONFIG", "")
        if named or POD_ADDRESS_VARIABLE not in os.environ:
            # persist_config=False: no renewed token is written into the user's file
            config.load_kube_config(named or None, client_configuration=configuration, persist_config=False)
        else:
            config.load_incluster_config(client_configuration=configuration)
        return KubernetesApi(client.ApiClient(configuration), namespace or _namespace(named))
    except Exception as error:  # kubeconfigs fail in many ways: YAML, missing keys, plugins for logging in
        reason = " ".join(str(error).split())[:160]
        raise UnavailableError(
            f"No Kubernetes API can be used ({reason}): set KUBECONFIG to a kubeconfig that works with kubectl, or run "
            "in a pod whose service account token is mounted."
        ) from error


def pod_namespace() -> str:
    """The namespace of the pod that this runs in; empty outside of pods."""
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _namespace(named: str) -> str:
    from kubernetes import config

    if not named and POD_ADDRESS_VARIABLE in os.environ:
        return pod_namespace() or "default"
    _, active = config.list_kube_config_contexts(named or None)
    return str(active["context"].get("namespace", "default"))


def _refusal(response: Any) -> RefusedError:
    try:
        answer = json.loads(response.data)
    except (ValueError, urllib3.exceptions.HTTPError):
        answer = {}
    finally:
        response.release_conn()
    known = answer if isinstance(answer, dict) else {}
    message = " ".join(str(known.get("message") or response.reason or "no reason given").split())
    return RefusedError(response.status, message[:500], str(known.get("reason", "")))


def _cause(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused or name unknown"
    return "timed out" if isinstance(error, urllib3.exceptions.TimeoutError) else "connection lost"
