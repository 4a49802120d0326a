"""A connection to the API server of Kubeflow Pipelines, and what its refusals mean."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import kfp
import kfp_server_api  # type: ignore[import-untyped]
import urllib3

from serin.core.errors import ConfigError, UnavailableError
from serin_pipelines.environments import Environment
from serin_pipelines.kubeflow.tokens import TokenSource, find_source
from serin_pipelines.kubeflow.transport import (
    TOO_MANY,
    TRANSIENT,
    UNAUTHORIZED,
    NotTheApiError,
    Patience,
    PatientRest,
    TlsError,
)

T = TypeVar("T")

FORBIDDEN, NOT_FOUND, CONFLICT, BAD_REQUEST = 403, 404, 409, 400
LOST = 0
"""Status of a refusal that no server sent: the connection was refused or lost."""
PAGE_SIZE = 100
MAX_PAGES = 20
ACTIVE = ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED")
"""States of runs that have not ended; a run has none until its workflow is first seen."""
MAX_MESSAGE_CHARS = 500
CA_VARIABLE = "SSL_CERT_FILE"
"""Names a file of certificate authorities, as for Python's own HTTPS; without it the SDK takes Mozilla's."""


class KubeflowError(UnavailableError):
    """Kubeflow Pipelines refused or did not answer.

    Args:
        message: one sentence.
        status: HTTP status; 0 when there was no answer.
        detail: what the server said.
    """

    def __init__(self, message: str, status: int = LOST, detail: str = "") -> None:
        super().__init__(message)
        self.status, self.detail = status, detail

    @property
    def passing(self) -> bool:
        """Whether it may work in a moment."""
        return self.status in (LOST, TOO_MANY, *TRANSIENT)


class _Client(kfp.Client):
    """The SDK's client without the settings and cookies that a person's earlier sessions left in their home."""

    def __init__(self, namespace: str, **options: Any) -> None:
        self._own_namespace = namespace
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # says which servers it works with, on every start
            super().__init__(namespace=namespace, **options)

    def _load_context_setting_or_default(self) -> None:
        self._context_setting = {"namespace": self._own_namespace}


class Kubeflow:
    """One environment's API server.  Use it in a ``with`` statement, which closes its connections.

    Args:
        host: address of the API, such as ``https://kubeflow.example/pipeline``.
        ui: the same for people.
        namespace: of the runs; servers for a single user ignore it.
        source: of tokens; None without authentication.
        patience: how long to try again.
    """

    def __init__(
        self, host: str, ui: str, namespace: str, source: TokenSource | None, patience: Patience | None = None
    ) -> None:
        self.host, self.ui, self.namespace, self.source = host, ui.rstrip("/"), namespace, source
        self.patience = patience or Patience()
        authorities = os.environ.get(CA_VARIABLE) or None
        self.kfp = _Client(namespace, host=host, ui_host=ui, credentials=source, ssl_ca_cert=authorities)
        # all services of the client share one API client, reached through any bound method
        api = self.kfp.runs.run_service_get_run.__self__.api_client
        self._rest = api.rest_client = PatientRest(api.configuration, self.patience, source)
        self.models = self.kfp.api_models

    @classmethod
    def connect(cls, environment: Environment, host: str = "", patience: Patience | None = None) -> Self:
        """The server of an environment; nothing is sent yet.

        Args:
            environment: names the server, its namespace and the address for people.
            host: another address of the API than the environment's, such as a forwarded port.
            patience: how long to try again.

        Raises:
            ConfigError: there is no address, or it would get a token over plain HTTP.
        """
        address = (host or environment.kfp_host).rstrip("/")
        if not address:
            raise ConfigError(f"Environment {environment.name!r} has no kfp_host: add it, or give --host.")
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"{address!r} is no address of an API: write https://{address}.")
        ui = environment.kfp_ui or address
        return cls(address, ui, environment.namespace, find_source(address), patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rest.pool_manager.clear()

    def run_url(self, run_id: str) -> str:
        """Where a person looks at a run."""
        return f"{self.ui}/#/runs/details/{run_id}"

    def call(self, what: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call one of the client's functions.

        Args:
            what: what is attempted, for the message, such as ``create the run``.
            function: the client's.
            *args: its arguments.
            **options: and its named ones.

        Raises:
            KubeflowError: one sentence for whatever went wrong.
        """
        with self._explained(what):
            return function(*args, **options)

    def create(self, what: str, find: Callable[[], T | None], post: Callable[[], T]) -> tuple[T, int]:
        """Create what must exist once: after an answer that was lost, look before creating again.

        Args:
            what: what is attempted, for the message.
            find: gives it if it is there.
            post: creates it.

        Returns:
            It, and how many times its creation was sent; more than once, the server may hold two.

        Raises:
            KubeflowError: the server refuses, or stays away for longer than our patience.
        """
        delays = self.patience.delays()
        for sent in range(1, self.patience.tries + 1):
            try:
                return self.call(what, post), sent
            except KubeflowError as error:
                delay = 0.0 if error.status == CONFLICT else next(delays, None)
                if delay is None or not (error.passing or error.status == CONFLICT):
                    raise
                time.sleep(delay)
                if (found := find()) is not None:
                    return found, sent
                if error.status == CONFLICT:
                    raise
        raise AssertionError("the delays end before the tries do")

    def pages(self, what: str, function: Callable[..., Any], items: str, **options: Any) -> Iterator[Any]:
        """All items of a listing, page by page, at most 2,000."""
        token = ""
        for _ in range(MAX_PAGES):
            page = self.call(what, function, page_token=token, page_size=PAGE_SIZE, **options)
            yield from getattr(page, items) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def newest_runs(self, experiment_id: str) -> list[Any]:
        """The newest 100 runs of an experiment, newest first."""
        options = {"experiment_id": experiment_id, "sort_by": "created_at desc", "page_size": PAGE_SIZE}
        page = self.call("list the runs", self.kfp.runs.run_service_list_runs, **options)
        return list(page.runs or ())

    def active_runs(self, experiment_id: str) -> list[Any]:
        """The runs of an experiment that have not ended."""
        where = {"operation": "IN", "key": "state", "string_values": {"values": list(ACTIVE)}}
        try:
            runs = self._runs(experiment_id, filter=json.dumps({"predicates": [where]}))
        except KubeflowError as error:
            if error.status != BAD_REQUEST:
                raise
            runs = self._runs(experiment_id)  # older servers do not filter by state
        return [run for run in runs if (run.state or ACTIVE[-1]) in ACTIVE]

    def _runs(self, experiment_id: str, **options: Any) -> list[Any]:
        options |= {"experiment_id": experiment_id, "sort_by": "created_at desc"}
        return list(self.pages("list the runs", self.kfp.runs.run_service_list_runs, "runs", **options))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except kfp_server_api.ApiException as error:
            raise self._refusal(what, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise KubeflowError(
                f"Kubeflow Pipelines at {self.host} does not answer ({_cause(error)}), so Serin cannot {what}: check "
                "the address, the network and the ml-pipeline Deployment."
            ) from error
        except TlsError as error:
            raise KubeflowError(
                f"The certificate of {self.host} is not taken ({error}): set {CA_VARIABLE} to the file of the "
                "authority that signed it.",
                BAD_REQUEST,
            ) from error
        except NotTheApiError as error:
            raise KubeflowError(
                f"{self.host} does not answer like the API of Kubeflow Pipelines when asked to {what}: give the "
                "address of the API (often the UI's plus /pipeline), not of a page.",
                BAD_REQUEST,
            ) from error

    def _refusal(self, what: str, error: Any) -> KubeflowError:
        detail = _message(error)
        if error.status == UNAUTHORIZED:
            return KubeflowError(f"Kubeflow Pipelines refuses to {what} (401): {self._advice()}.", error.status, detail)
        if error.status in (301, 302, 303, 307, 308):
            return KubeflowError(
                f"{self.host} sends us elsewhere (HTTP {error.status}), often to a login page: {self._advice()}.",
                error.status,
            )
        if error.status == FORBIDDEN:
            return KubeflowError(
                f"This identity may not {what} in namespace {self.namespace!r} (403: {detail}): ask for a RoleBinding.",
                error.status,
                detail,
            )
        return KubeflowError(f"Kubeflow Pipelines refuses to {what} ({error.status}): {detail}", error.status, detail)

    def _advice(self) -> str:
        if self.source is None:
            return "no token was found; set KFP_TOKEN or KFP_TOKEN_FILE, or run where the pod or CI job has one"
        return f"the token from {self.source.name} is not taken; renew it and check its audience"


def _message(error: Any) -> str:
    try:
        body = json.loads(error.body)
        text = str(body.get("message") or body.get("error_message") or body.get("error"))
    except (ValueError, TypeError, AttributeError):
        text = str(error.body or error.reason or "")
    text = " ".join(text.split())[:MAX_MESSAGE_CHARS]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _cause(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused or name unknown"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    return "connection lost"
