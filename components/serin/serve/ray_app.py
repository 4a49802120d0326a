"""The gateway as a Ray Serve deployment: many replicas of the same app on one Ray cluster.

``import_path: serin.serve.ray_app:app`` of a RayService (or ``serve run serin.serve.ray_app:app store_uri=...``), with
``RayGatewayConfig`` as its ``args``.  Every replica loads releases as the gateway process does: with engines of its
own, or in front of the servers that ``SERIN_BACKENDS`` names.

All replicas serve the same: what the endpoint's journal names, or the deployment's ``user_config`` (the body of ``PUT
/admin/rollouts``), which Serve hands to every replica without a restart::

    deployments: [{name: gateway, user_config: {champion: ..., candidate: ..., candidate_weight_percent: 10, salt: s}}]

A session's track depends on the salt and its id alone, so it is the same at any replica.  ``PUT /admin/rollouts``
itself would change the one replica that it happens to reach: it is refused.

Budgets, admission and /metrics count per replica, and what ``GET /admin/rollouts`` says of ``instance``, ``mirrored``
and engines is one replica's.  Ray sends no usage reports where ``RAY_USAGE_STATS_ENABLED=0`` is set for its processes,
as the manifests do.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from pydantic import Field
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from serin.core.artifacts import ArtifactStore, home
from serin.core.config import Section
from serin.core.errors import ConfigError, ServingError
from serin.core.journal import Journal
from serin.core.telemetry import silence_dependencies
from serin.serve.access import Access, require_safe_host
from serin.serve.backends.connections import Connections
from serin.serve.errors import RequestError
from serin.serve.gateway import Gateway
from serin.serve.listening import PreparedAccess
from serin.serve.mirror import Mirror
from serin.serve.operations import load_operations
from serin.serve.rollouts import RolloutRequest, Rollouts
from serin.serve.runtime import Loader
from serin.serve.server import SILENCE_S, GatewaySettings, _Operations
from serin.serve.supervisor import EngineSettings

logger = logging.getLogger(__name__)

GIVE_UP_S = 60.0
"""How long a replica whose engine ended may try to start it again."""
ADMIN_ROLLOUTS = "/admin/rollouts"
OPEN_HOST = "0.0.0.0"  # noqa: S104 - where Serve's proxies listen in a cluster; said to be checked


class Autoscaling(Section):
    """How many replicas there are: Ray Serve adds and removes them by the requests under way."""

    min_replicas: int = Field(1, ge=1)
    """At least so many."""
    max_replicas: int = Field(4, ge=1)
    """At most so many."""
    target_ongoing_requests: float = Field(16.0, gt=0)
    """Requests under way per replica that are aimed at."""
    downscale_delay_s: float = Field(600.0, ge=0)
    """How long there must be too many before one goes."""


class RayGatewayConfig(Section):
    """The gateway on Ray Serve."""

    store_uri: str = ""
    """Where releases, their parts and the endpoint's events are; every node must reach it.  Empty: what
    ``SERIN_STORE_URI`` says there."""
    endpoint: str = ""
    """Its name, and the model name that users ask for; empty: what ``SERIN_ENDPOINT`` says, or assistant."""
    follow_journal: bool = True
    """Serve what the endpoint's journal names, until there is a ``user_config``; false waits for that."""
    num_replicas: int = Field(2, ge=1)
    """Replicas, where they are not by load."""
    autoscaling: Autoscaling | None = None
    """Replicas by load; None: a fixed number."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests under way in one replica; Serve holds others back."""
    cpus_per_replica: float = Field(1.0, ge=0)
    """CPUs that Ray sets aside for a replica with its engines."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Settings of engines of our own (``EngineSettings``)."""
    silence_s: float = Field(SILENCE_S, gt=0)
    """Longest wait for an engine's next token."""
    operations_file: str = ""
    """Access, limits, prices, traces: a file on every node; empty: defaults and environment."""
    host: str = OPEN_HOST
    """Where Serve's proxies listen; beyond loopback replicas start with authentication only."""


@serve.deployment
@serve.ingress()
class GatewayReplica:
    """One replica: the gateway's app, with releases loaded."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._replica = Replica(RayGatewayConfig.load(config))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray Serve asks for the app once, before requests come."""
        return await self._replica.open()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray Serve hands over the rollout, at the start and whenever it changes."""
        await self._replica.serve(RolloutRequest.load(user_config))

    async def check_health(self) -> None:
        """Ray Serve asks regularly, and replaces a replica that raises."""
        self._replica.check()

    async def __del__(self) -> None:
        await self._replica.close()


class Replica:
    """The gateway inside a Ray Serve replica."""

    def __init__(self, config: RayGatewayConfig) -> None:
        self._config = config
        self._following: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._rollouts: Rollouts | None = None
        self._down_since: float | None = None

    async def open(self) -> ASGIApp:
        """The app; with the journal's champion loaded where that is followed.

        Raises:
            ConfigError: a setting is wrong, or everybody could ask.
            SerinError: the champion cannot be loaded.
        """
        silence_dependencies()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        config = self._config
        store_uri = config.store_uri or os.environ.get("SERIN_STORE_URI", "")
        endpoint = config.endpoint or os.environ.get("SERIN_ENDPOINT", "assistant")
        if not store_uri:
            raise ConfigError("'store_uri' is empty: give it in the application's args, or set SERIN_STORE_URI.")
        operations_path = Path(config.operations_file) if config.operations_file else None
        settings = GatewaySettings(
            engine=EngineSettings(**config.engine),
            silence_s=config.silence_s,
            operations=load_operations(operations_path),
        )
        access = Access.from_environment(settings.operations.access)
        require_safe_host(config.host, access)
        store = ArtifactStore(store_uri)
        connections = await self._stack.enter_async_context(Connections())
        folder = home() / "serve" / endpoint / f"replica-{os.getpid()}"
        loader = Loader(store, connections, settings.engine, folder, settings.silence_s)
        self._stack.callback(loader.close)
        self._rollouts = rollouts = Rollouts(loader)
        operations = _Operations(store, endpoint, access, settings, rollouts)
        operations.start()
        self._stack.push_async_callback(asyncio.to_thread, operations.close)
        self._stack.push_async_callback(rollouts.close)
        mirror = Mirror(rollouts, settings.operations.mirror, operations.metrics.shadow_dropped)
        self._stack.push_async_callback(mirror.close)
        self._stack.push_async_callback(_ended, asyncio.create_task(rollouts.watch()))
        if config.follow_journal:
            journal = Journal(store.storage, endpoint)
            await rollouts.catch_up(journal)
            self._following = asyncio.create_task(rollouts.follow(journal))
            self._stack.push_async_callback(_ended, self._following)
        gateway = Gateway(
            endpoint,
            rollouts,
            operations.recorder,
            operations.metrics,
            access,
            follows_journal=True,
            admission=operations.admission,
            mirror=mirror,
        )
        return ReplicaApp(PreparedAccess(gateway.app(), access))

    async def serve(self, rollout: RolloutRequest) -> None:
        """Serve this from now on, whatever the journal says.

        Raises:
            SerinError: a release cannot be loaded; what was served before still is.
        """
        assert self._rollouts is not None
        if self._following is not None:
            await _ended(self._following)
        await self._rollouts.change(rollout)

    def check(self) -> None:
        """Raise where another replica would do better.

        Raises:
            ServingError: the champion's engine has ended and was not started again for long.
        """
        current = self._rollouts.current if self._rollouts else None
        if current is None or current.champion.backend.alive:
            self._down_since = None
            return
        self._down_since = self._down_since or time.monotonic()
        if time.monotonic() - self._down_since > GIVE_UP_S:
            raise ServingError("The champion's engine ended and does not start again: see its log.")

    async def close(self) -> None:
        """End engines, write events."""
        await self._stack.aclose()


class ReplicaApp:
    """ASGI layer: refuses what would change one replica only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == ADMIN_ROLLOUTS and scope["method"] != "GET":
            refusal = RequestError(
                409,
                "This gateway has replicas: change the deployment's 'user_config', or promote in the journal.",
                code="replicated",
            )
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def app(args: dict[str, Any]) -> serve.Application:
    """The application; for ``import_path``.

    Args:
        args: ``RayGatewayConfig``.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    config = RayGatewayConfig.load(args)
    scaling: dict[str, Any] = {"num_replicas": config.num_replicas}
    if config.autoscaling is not None:
        scaling = {"autoscaling_config": config.autoscaling.dump()}
    deployment = GatewayReplica.options(  # type: ignore[attr-defined]
        name="gateway",
        max_ongoing_requests=config.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.cpus_per_replica},
        graceful_shutdown_timeout_s=60.0,
        health_check_period_s=5.0,
        **scaling,
    )
    return deployment.bind(config.dump())


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
