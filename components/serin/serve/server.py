"""The gateway as a process.

python -m serin.serve.server --store-uri STORE --endpoint assistant --champion RELEASE --port 8080
"""

import argparse
import asyncio
import gc
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serin.core.artifacts import ArtifactStore, home
from serin.core.errors import ConfigError, SerinError
from serin.core.journal import Journal
from serin.core.processes import die_with_parent
from serin.core.telemetry import silence_dependencies
from serin.serve import conventions
from serin.serve.access import Access, require_safe_host
from serin.serve.admission import Admission
from serin.serve.backends.connections import Connections
from serin.serve.budgets import Budgets
from serin.serve.gateway import Gateway
from serin.serve.hosting import bound_socket, exit_with, serve_on, write_ready
from serin.serve.listening import PreparedAccess, server_options
from serin.serve.logs import configure_logging, log_request
from serin.serve.metrics import Metrics
from serin.serve.mirror import Mirror
from serin.serve.operations import OperationsConfig, load_operations
from serin.serve.recorder import BATCH_EVENTS, INTERVAL_S, Recorder
from serin.serve.rollouts import RolloutRequest, Rollouts
from serin.serve.runtime import Loader
from serin.serve.spool import Spool
from serin.serve.supervisor import EngineSettings
from serin.serve.tracing import Tracing, collector_of

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
SILENCE_S = 30.0
GC_OBJECTS = 10_000
"""New objects between two looks of the garbage collector (Python's own 700 are a look in every few requests)."""


@dataclass(frozen=True)
class GatewaySettings:
    """How a gateway runs; none of it changes an answer."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    silence_s: float = SILENCE_S
    """Longest wait for an engine's next token, seconds."""
    batch_events: int = BATCH_EVENTS
    """Endpoint events in one batch."""
    interval_s: float = INTERVAL_S
    """Longest time that an event stays unwritten, seconds."""
    ready_file: Path | None = None
    """Written with host, port and pid once the releases are loaded."""
    operations: OperationsConfig = field(default_factory=OperationsConfig)
    """Access, limits, prices, traces."""


def run_gateway(
    store_uri: str,
    endpoint: str,
    champion: str,
    *,
    candidate: str | None = None,
    candidate_weight_percent: float = 0.0,
    salt: str = "",
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    settings: GatewaySettings | None = None,
) -> None:
    """Serve an endpoint until SIGINT or SIGTERM; to be called on the main thread.

    Args:
        store_uri: where releases, their parts and the endpoint's events are.
        endpoint: its name, and the model name that users ask for.
        champion: release id, or an unambiguous prefix of it; empty: whatever the endpoint's journal names, from the
            first champion on and after every promotion and rollback.
        candidate: another release id.
        candidate_weight_percent: the candidate's share of sessions, 0 to 100.
        salt: deals sessions to the two.
        host: where to listen; beyond loopback only with API keys.
        port: 0 takes a free one.
        settings: how it runs.

    Raises:
        ConfigError: an open host without keys, or a rollout that contradicts itself.
        ServingError: the port is in use, or an engine does not start.
        SerinError: a release or a part of it cannot be loaded.
    """
    settings = settings or GatewaySettings()
    access = Access.from_environment(settings.operations.access)
    require_safe_host(host, access)
    options = server_options(settings.operations.connections, settings.operations.tls)
    listener = bound_socket(host, port)
    rollout = RolloutRequest(
        champion=champion, candidate=candidate, candidate_weight_percent=candidate_weight_percent, salt=salt
    )
    _run(_serve(store_uri, endpoint, rollout, listener, access, settings, options))


async def _serve(
    store_uri: str,
    endpoint: str,
    rollout: RolloutRequest,
    listener: socket.socket,
    access: Access,
    settings: GatewaySettings,
    options: dict[str, Any],
) -> None:
    store = ArtifactStore(store_uri)
    async with Connections() as connections:
        loader = Loader(store, connections, settings.engine, home() / "serve" / endpoint, settings.silence_s)
        rollouts = Rollouts(loader)
        operations = _Operations(store, endpoint, access, settings, rollouts)
        mirror = Mirror(rollouts, settings.operations.mirror, operations.metrics.shadow_dropped)
        gateway = Gateway(
            endpoint,
            rollouts,
            operations.recorder,
            operations.metrics,
            access,
            follows_journal=not rollout.champion,
            admission=operations.admission,
            mirror=mirror,
        )
        tasks = [asyncio.create_task(rollouts.watch())]

        async def load() -> None:
            if rollout.champion:
                await rollouts.change(rollout)
            else:
                tasks.append(asyncio.create_task(rollouts.follow(Journal(store.storage, endpoint))))
            _settle()
            if settings.ready_file:
                write_ready(settings.ready_file, listener)
            scheme = "https" if settings.operations.tls.cert_file else "http"
            logger.info("Endpoint %r answers on %s.", endpoint, _url(listener, scheme))

        operations.start()
        try:
            await serve_on(PreparedAccess(gateway.app(), access), listener, load, **options)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await mirror.close()
            await rollouts.close()
            loader.close()
            await asyncio.to_thread(operations.close)


class _Operations:
    """What watches a gateway and what it may be asked: metrics, events, traces, admission."""

    def __init__(
        self, store: ArtifactStore, endpoint: str, access: Access, settings: GatewaySettings, rollouts: Rollouts
    ) -> None:
        config, folder = settings.operations, home() / "serve" / endpoint
        self.metrics = Metrics()
        budgets = Budgets(access.limits_of, folder / f"budgets-{_short(store.storage.uri)}.json")
        self.admission = Admission(config.admission, budgets)
        self.tracing = self._tracing(config, folder, rollouts)
        spool = Spool(
            folder / "spool" / f"events-{_short(store.storage.uri)}" if config.spool.enabled else None,
            max_bytes=config.spool.max_mib << 20,
            lost=lambda kind, count: self.metrics.lost(count),
        )
        self.recorder = Recorder(
            store.storage,
            endpoint,
            batch_events=settings.batch_events,
            interval_s=settings.interval_s,
            lost=self.metrics.lost,
            spool=spool,
            prices=config.prices,
            observers=[self.metrics.observe_scored, log_request, *([self.tracing] if self.tracing else [])],
        )
        self.metrics.watch(
            in_flight=lambda: self.admission.in_flight,
            limit=lambda: self.admission.limit or 0,
            refused=lambda: dict(self.admission.refused),
            spooled={"events": lambda: spool.size} | ({"traces": self.tracing.waiting_bytes} if self.tracing else {}),
        )

    def start(self) -> None:
        """Start the threads."""
        self.recorder.start()
        if self.tracing:
            self.tracing.start()

    def close(self) -> None:
        """Write and send the rest, or leave it spooled."""
        self.recorder.close()
        if self.tracing:
            self.tracing.close()
        self.admission.close()

    def _tracing(self, config: OperationsConfig, folder: Path, rollouts: Rollouts) -> Tracing | None:
        collector = collector_of(config.tracing)
        if collector is None:
            return None
        spool = Spool(
            folder / "spool" / f"traces-{_short(collector.url)}" if config.spool.enabled else None,
            max_bytes=config.tracing.max_spool_mib << 20,
            lost=lambda kind, count: self.metrics.traces_lost(count),
        )
        facts = _Facts(rollouts)
        return Tracing(config.tracing, collector, spool, facts_of=facts, lost=self.metrics.traces_lost)


class _Facts:
    """What traces say of a release; kept for those that are unloaded before their last requests are traced."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts
        self._known: dict[str, dict[str, str]] = {}

    def __call__(self, release_id: str) -> dict[str, str]:
        rollout = self._rollouts.current
        if release_id not in self._known and rollout is not None:
            for runtime, _ in rollout.loaded():
                release = runtime.release
                self._known[release.id] = {
                    conventions.INDEX_VERSION: release.index.digest,
                    conventions.MODEL_VERSION: release.model.digest,
                    conventions.POLICY_VERSION: release.guardrails_digest,
                }
        return self._known.get(release_id, {})


def _settle() -> None:
    """What was loaded stays: the garbage collector need not walk through it again in the middle of an answer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)


def _short(uri: str) -> str:
    """Keeps apart what belongs to different stores and collectors."""
    return hashlib.sha256(uri.encode()).hexdigest()[:12]


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed: half the cost of a small write."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        logger.info("uvloop is not installed: the gateway runs on asyncio's own loop, which is slower.")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


def main(arguments: list[str] | None = None) -> int:
    """Command line of the gateway process."""
    parser = argparse.ArgumentParser(prog="python -m serin.serve.server", description=__doc__)
    parser.add_argument("--store-uri", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--champion", default="", metavar="RELEASE", help="default: what the journal says, always")
    parser.add_argument("--candidate", metavar="RELEASE")
    parser.add_argument("--candidate-weight-percent", type=float, default=0.0)
    parser.add_argument("--salt", default="", help="deals sessions to champion and candidate")
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="written with host, port and pid once releases are loaded")
    parser.add_argument("--parent-pid", type=int, help="end when this process ends")
    parser.add_argument("--admin-token-from-env", action="store_true", help="refuse to start without SERIN_ADMIN_TOKEN")
    parser.add_argument("--engine-threads", type=int, default=1, help="CPU threads of each engine")
    parser.add_argument("--operations", type=Path, metavar="FILE", help="YAML: access, limits, prices, traces")
    parser.add_argument("--log-format", choices=("text", "json"), help="default: what the operations file says")
    options = parser.parse_args(arguments)
    if options.parent_pid:
        die_with_parent(options.parent_pid)
    silence_dependencies()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    configure_logging(options.log_format or "text")
    try:
        operations = load_operations(options.operations)
        configure_logging(options.log_format or operations.log_format)
        if options.admin_token_from_env and not Access.from_environment().admin_token:
            raise ConfigError("SERIN_ADMIN_TOKEN is not set: set it, or leave --admin-token-from-env out.")
        run_gateway(
            options.store_uri,
            options.endpoint,
            options.champion,
            candidate=options.candidate,
            candidate_weight_percent=options.candidate_weight_percent,
            salt=options.salt,
            host=options.host,
            port=options.port,
            settings=GatewaySettings(
                engine=EngineSettings(threads=options.engine_threads),
                ready_file=options.ready_file,
                operations=operations,
            ),
        )
    except SerinError as error:
        return exit_with(error)
    return 0


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
