"""The gateway as a process.

python -m serin.serve.server --store-uri STORE --endpoint assistant --champion RELEASE --port 8080
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from serin.core.artifacts import ArtifactStore, home
from serin.core.errors import ConfigError, SerinError
from serin.core.journal import Journal
from serin.core.processes import die_with_parent
from serin.core.telemetry import silence_dependencies
from serin.serve.access import Access, require_safe_host
from serin.serve.gateway import Gateway
from serin.serve.hosting import bound_socket, exit_with, serve_on, write_ready
from serin.serve.metrics import Metrics
from serin.serve.recorder import BATCH_EVENTS, INTERVAL_S, Recorder
from serin.serve.rollouts import RolloutRequest, Rollouts
from serin.serve.runtime import Loader
from serin.serve.supervisor import EngineSettings

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
SILENCE_S = 30.0


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
        host: where to listen; beyond loopback only with API keys (``SERIN_API_KEYS``).
        port: 0 takes a free one.
        settings: how it runs.

    Raises:
        ConfigError: an open host without keys, or a rollout that contradicts itself.
        ServingError: the port is in use, or an engine does not start.
        SerinError: a release or a part of it cannot be loaded.
    """
    access = Access.from_environment()
    require_safe_host(host, access)
    listener = bound_socket(host, port)
    rollout = RolloutRequest(
        champion=champion, candidate=candidate, candidate_weight_percent=candidate_weight_percent, salt=salt
    )
    asyncio.run(_serve(store_uri, endpoint, rollout, listener, access, settings or GatewaySettings()))


async def _serve(
    store_uri: str,
    endpoint: str,
    rollout: RolloutRequest,
    listener: socket.socket,
    access: Access,
    settings: GatewaySettings,
) -> None:
    store, metrics = ArtifactStore(store_uri), Metrics()
    recorder = Recorder(
        store.storage,
        endpoint,
        batch_events=settings.batch_events,
        interval_s=settings.interval_s,
        lost=metrics.lost,
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        loader = Loader(store, session, settings.engine, home() / "serve" / endpoint, settings.silence_s)
        rollouts = Rollouts(loader)
        gateway = Gateway(endpoint, rollouts, recorder, metrics, access, follows_journal=not rollout.champion)
        tasks = [asyncio.create_task(rollouts.watch())]

        async def load() -> None:
            if rollout.champion:
                await rollouts.change(rollout)
            else:
                tasks.append(asyncio.create_task(rollouts.follow(Journal(store.storage, endpoint))))
            if settings.ready_file:
                write_ready(settings.ready_file, listener)
            logger.info("Endpoint %r answers on %s.", endpoint, _url(listener))

        recorder.start()
        try:
            await serve_on(gateway.app(), listener, load)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await rollouts.close()
            loader.close()
            await asyncio.to_thread(recorder.close)


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
    options = parser.parse_args(arguments)
    if options.parent_pid:
        die_with_parent(options.parent_pid)
    silence_dependencies()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
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
                engine=EngineSettings(threads=options.engine_threads), ready_file=options.ready_file
            ),
        )
    except SerinError as error:
        return exit_with(error)
    return 0


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
