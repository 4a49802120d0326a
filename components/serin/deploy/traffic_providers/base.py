"""The interface of traffic providers: read what an endpoint serves, and have it serve a split.

A provider is declarative.  ``apply`` is told the whole split each time, so that the same call can be made again after
a crash, and what the endpoint was told last is kept beside the endpoint itself (a Lease, or the gateway's state), so
that a controller which starts anew can tell an edit by someone else from its own work.
"""

from dataclasses import dataclass
from typing import Protocol

from serin.core.errors import FencedError, ServingError

__all__ = ["DriftError", "FencedError", "Live", "Split", "TrafficProvider"]


class DriftError(ServingError):
    """The endpoint no longer serves what it was told to: somebody edited it.  Stop, and say so."""


@dataclass(frozen=True)
class Split:
    """Who serves which share of the sessions."""

    champion: str
    """Release id."""
    candidate: str | None = None
    """Release id; None: the champion alone."""
    percent: float = 0.0
    """The candidate's share of sessions, 0 to 100; the champion has the rest, so shares always sum to 100."""
    salt: str = ""
    """Deals sessions to the two, where the target is sticky: the rollout's id."""
    mirror_percent: float = 0.0
    """Share of the champion's requests that the candidate answers as well, without anybody seeing it (shadow)."""


@dataclass(frozen=True)
class Live:
    """What an endpoint serves now."""

    split: Split | None
    """What it was told last and still serves; None before anything was told."""
    fence: int
    """Of the lease under which that was told; 0 before."""
    candidate_ready: bool
    """Whether the candidate can take traffic (True without a candidate)."""
    reason: str = ""
    """Why it cannot yet, in a sentence."""
    failed: bool = False
    """Whether it never will without help: a crash loop, an image that cannot be pulled."""
    restarts: int = 0
    """How often the candidate's processes were started again."""


class TrafficProvider(Protocol):
    """Moves the traffic of one endpoint."""

    sticky: bool
    """Whether a session stays with its release while weights only grow."""

    def check(self, steps_percent: tuple[float, ...], *, mirror: bool) -> None:
        """Refuse what this target cannot do: shares between its steps, mirroring, objects that it cannot split.

        Raises:
            ConfigError: naming the limit and what to set instead.
        """

    def live(self) -> Live:
        """What is served now.

        Raises:
            DriftError: somebody changed it since it was told.
            UnavailableError: the API did not answer for as long as the provider is patient.
        """

    def apply(self, split: Split, *, fence: int) -> None:
        """Have the endpoint serve a split; telling it the same again changes nothing.

        ``Split(champion=X)`` with X the former candidate is the promotion, and with X the champion the way back: model,
        index, prompt and guardrails change together, since a release holds them all.  Nothing is left half-told: the
        endpoint keeps the split before, or has the new one.

        A candidate gets its first share only after it was applied with a share of 0 and became ready.

        Raises:
            ConfigError: the split contradicts itself, or the target cannot have it.
            DriftError: somebody changed the endpoint since it was told.
            FencedError: a later lease has told it something.
            NotReadyError: the candidate cannot take a share, or all, yet; or a gateway does not answer.
            UnavailableError: the API did not answer.
            ServingError: the endpoint refuses.
        """
