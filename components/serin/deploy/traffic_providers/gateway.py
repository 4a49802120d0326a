"""Our own gateway: one process, or several behind a name, each of which is told.

A gateway deals sessions by a hash of the split's salt, so that all replicas deal the same session to the same release,
and a session stays with the candidate while its share only grows.  A promotion and the way back change model, index,
prompt and guardrails in one step, without an answer under way noticing.

What was told is the gateway's own state: the split, the highest fence that it saw, and whether a person told it
something since.  A gateway that starts anew follows the journal to the champion and is told again.
"""

import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from serin.core.errors import ConfigError, FencedError
from serin.core.gateway_client import GATEWAY_VARIABLE, GatewayClient, NotReadyError
from serin.deploy.traffic_providers.base import DriftError, Live, Split
from serin.deploy.traffic_providers.cluster import require_whole
from serin.deploy.traffic_providers.releases import short

ANY_SHARE = 1e-9
"""A gateway's shares are floats."""
State = dict[str, Any]


class GatewayTraffic:
    """Splits the traffic of one or several gateways.

    Args:
        find: the gateways as they are now; asked each time, since replicas come and go.
    """

    sticky = True

    def __init__(self, find: Callable[[], Sequence[GatewayClient]]) -> None:
        self._find = find
        self._told: Split | None = None

    @classmethod
    def from_urls(cls, urls: Sequence[str]) -> "GatewayTraffic":
        """Gateways by URL, with the token of the environment.

        Raises:
            ConfigError: there is none.
            ServingError: SERIN_ADMIN_TOKEN is not set.
        """
        if not urls:
            raise ConfigError(f"No gateway is named: set traffic.gateways, or {GATEWAY_VARIABLE}.")
        token = GatewayClient.from_environment(urls[0]).admin_token
        return cls(lambda: [GatewayClient(each, token) for url in urls for each in addresses(url)])

    @classmethod
    def from_environment(cls) -> "GatewayTraffic":
        """The gateway in SERIN_GATEWAY_URL; ConfigError where none is named."""
        return cls.from_urls(tuple(filter(None, [os.environ.get(GATEWAY_VARIABLE, "")])))

    def check(self, steps_percent: tuple[float, ...], *, mirror: bool) -> None:
        """See TrafficProvider; a gateway can all of it."""
        for step in steps_percent:
            require_whole(Split("", "-", step), ANY_SHARE, "gateway")

    def live(self) -> Live:
        """See TrafficProvider.

        Raises:
            NotReadyError: one does not answer.
        """
        states = self._each(GatewayClient.state)
        for state in states:
            if state["edited"] and self._told is not None:
                raise _drift(state, self._told)
        split = _common([_split(state) for state in states], states, self._told)
        fence = min(int(state["fence"]) for state in states)
        if split.candidate is None:
            return Live(split, fence, candidate_ready=True)
        return _readiness(split, fence, states)

    def apply(self, split: Split, *, fence: int) -> None:
        """See TrafficProvider; gateways that can be told are, whatever the others say."""
        require_whole(split, ANY_SHARE, "gateway")

        def tell(gateway: GatewayClient) -> None:
            state = gateway.state()
            if state["edited"] and split.salt and state["salt"] == split.salt:
                raise _drift(state, self._told or split)
            if _split(state) == split and int(state["fence"]) == fence:
                return
            gateway.set_rollout(
                champion=split.champion,
                candidate=split.candidate,
                candidate_weight_percent=split.percent,
                salt=split.salt,
                mirror_percent=split.mirror_percent,
                fence=fence,
            )

        self._each(tell)
        self._told = split

    def _each(self, work: Callable[[GatewayClient], Any]) -> list[Any]:
        """Ask all at once; the weightiest of their errors is raised once all have answered."""
        gateways = self._find()
        with ThreadPoolExecutor(max_workers=len(gateways)) as pool:
            asked = [pool.submit(work, gateway) for gateway in gateways]
        errors = [error for one in asked if (error := one.exception()) is not None]
        for kind in (FencedError, DriftError, BaseException):
            for error in errors:
                if isinstance(error, kind):
                    raise error
        return [one.result() for one in asked]


def addresses(url: str) -> list[str]:
    """The URLs of all gateways that a URL's host name stands for.

    Raises:
        NotReadyError: nobody knows the name: none is there, or it is wrong.
        ConfigError: several do, and each would need a certificate for its address.
    """
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotReadyError(
            f"The gateway {url} cannot be found ({error}): start it, or mend 'traffic.gateways'."
        ) from error
    hosts = sorted({str(address[0]) for family, *_, address in found if family == socket.AF_INET})
    if len(hosts) < 2:
        return [url]
    if parts.scheme == "https":
        raise ConfigError(f"{url} stands for {len(hosts)} gateways, and https needs a name for each: list them.")
    return [f"{parts.scheme}://{host}:{parts.port or 80}" for host in hosts]


def _split(state: State) -> Split:
    return Split(
        champion=str(state["champion"]),
        candidate=state["candidate"],
        percent=float(state["candidate_weight_percent"]),
        salt=str(state["salt"]),
        mirror_percent=float(state.get("mirror_percent", 0.0)),
    )


def _common(splits: Sequence[Split], states: Sequence[State], told: Split | None) -> Split:
    """What all serve; where they differ, what is served by one that has to be told again."""
    if len(set(splits)) == 1:
        return splits[0]
    behind = [split for split in splits if split != told]
    lowest = min(range(len(splits)), key=lambda index: int(states[index]["fence"]))
    return behind[0] if told is not None else splits[lowest]


def _readiness(split: Split, fence: int, states: Sequence[State]) -> Live:
    assert split.candidate
    ready, reason, failed, restarts = True, "", False, 0
    for state in states:
        release = state["releases"].get(split.candidate)
        if release is None:
            ready, reason = False, f"A gateway has not loaded {short(split.candidate)} yet."
            continue
        restarts += int(release.get("restarts", 0))
        if not release["ready"]:
            ready, failed = False, failed or not release["engine_alive"]
            reason = "Its engine has ended." if not release["engine_alive"] else "Its engine does not answer yet."
    return Live(split, fence, ready, reason, failed, restarts)


def _drift(state: State, expected: Split) -> DriftError:
    found, wanted = asdict(_split(state)), asdict(expected)
    fields = [name for name in wanted if found[name] != wanted[name]]
    changed = fields[0] if fields else "champion"
    who = state.get("edited_by") or "Somebody"
    return DriftError(
        f"{who} changed the gateway's {changed} by hand: expected {wanted[changed]!r}, found {found[changed]!r}.  It "
        "is left so: start the rollout again when that is settled."
    )
